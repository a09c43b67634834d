#!/usr/bin/env bash
# Judges what compute-sanitizer's racecheck says of a program: every report must be of a kernel and a pair of accesses that
# racecheck_ordered.txt lists, since racecheck does not see all that orders them. Exits 1 and names the others.
#   check_racecheck.sh LOG             a log that is there
#   check_racecheck.sh LOG COMMAND...  runs the command under racecheck and writes the log
set -euo pipefail
ordered=$(dirname "$0")/racecheck_ordered.txt
log=$1
shift
if [ $# -gt 0 ]; then
  found=9 status=0
  compute-sanitizer --error-exitcode $found --tool racecheck "$@" >"$log" 2>&1 || status=$?
  if [ $status -ne 0 ] && [ $status -ne $found ]; then
    cat "$log"
    exit $status
  fi
fi
awk -v ordered="$ordered" '
  function kernel_of(line) {
    if (match(line, /slidetile::cuda::[A-Za-z0-9_]+</)) return substr(line, RSTART + 17, RLENGTH - 18)
    sub(/.* access at /, "", line)
    return line
  }
  BEGIN {
    while ((getline line < ordered) > 0) {
      if (line ~ /^[^#]/) known[line] = 1
    }
  }
  /RACECHECK SUMMARY/ { finished = 1 }
  /Race reported between (Read|Write) access/ {
    first = $0 ~ /between Read/ ? "Read" : "Write"
    ++reports
    next
  }
  /and (Read|Write) access at/ {
    second = $0 ~ /and Read/ ? "Read" : "Write"
    ++pairs
    key = kernel_of($0) " " (first < second ? first " " second : second " " first)
    if (key in known) next
    if (!(key in seen)) print "not in racecheck_ordered.txt: " key
    seen[key] = 1
    failed = 1
    next
  }
  /^========= (Error|Warning): / {
    print
    failed = 1
  }
  END {
    if (!finished) {
      print "racecheck did not finish"
      failed = 1
    }
    print reports + 0 " reports of " pairs + 0 " pairs of accesses"
    exit failed
  }' "$log"
