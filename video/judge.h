// Generates a clip for each of many sentences and lets the checker read them: the score of a model. Needs none of torch's headers.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "video/attention_pattern.h"
#include "video/sprite_checker.h"

namespace slidetile::video {

struct JudgeRequest {
  std::string model;  // folder
  std::vector<std::string> sentences;
  Dim3 extent{16, 64, 64};
  int64_t steps = 30;
  double guidance = 3;
  uint64_t seed = 1;  // that of the first clip; each next has the next
  AttentionPattern pattern;
  int64_t batch = 16;
  std::string device = "cpu";  // or "cuda", "cuda:1"
  int threads = 0;             // on CPU; 0: all that this process may use
  std::function<void(int64_t done, int64_t clips)> on_batch;
};

struct Verdict {
  std::string sentence;
  Score score;
  std::vector<Sighting> seen;
};

struct Judgement {
  std::vector<Verdict> verdicts;
  double seconds = 0, density = 1;  // visible pairs as a fraction of all
  std::string kernel;

  /// Shares of objects, and of clips where all is right.
  struct Shares {
    double shape = 0, colour = 0, motion = 0, all = 0;
  };
  Shares shares() const;
  /// Objects of single-object sentences by motion asked for and seen; the last column counts those not found.
  std::array<std::array<int, kMotions + 1>, kMotions> motions() const;
};

/// Throws Error: unknown words, a model that can't be read, torch's failures.
Judgement judge(const JudgeRequest& request);

/// The sentences of a file, one a line; blank lines are left out. Throws where it can't be read, or holds none, or one is no sentence.
std::vector<std::string> read_sentences(const std::string& path);

}  // namespace slidetile::video
