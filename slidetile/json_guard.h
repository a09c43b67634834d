// Parses JSON from files that nobody vouches for: keys given twice and deep nesting are errors. A template, so that headers need no JSON.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "slidetile/error.h"

namespace slidetile {

/// Names come from files: a message shows at most the beginning of one.
inline std::string in_quotes(std::string_view name) {
  constexpr size_t kShown = 100;
  return '\'' + std::string(name.substr(0, kShown)) + (name.size() > kShown ? "...'" : "'");
}

template <typename Json>
std::string shown(const Json& value) {
  constexpr size_t kShown = 60;
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= kShown ? text : text.substr(0, kShown) + "...";
}

/// The value of `text`; `where` opens the message of an error. Values are nested at most `deepest` levels below the outermost.
template <typename Json>
Json parse_json(std::string_view text, const std::string& where, int deepest) {
  std::vector<std::unordered_set<std::string>> keys(static_cast<size_t>(deepest) + 1);  // of the open object of each level
  const auto guard = [&](int depth, typename Json::parse_event_t event, const Json& parsed) {
    require(depth <= deepest, where, "its JSON is nested deeper than ", deepest, " levels");
    if (event == Json::parse_event_t::object_start) {
      keys[static_cast<size_t>(depth)].clear();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = parsed.template get_ref<const std::string&>();
      require(keys[static_cast<size_t>(depth) - 1].insert(key).second, where, "its JSON has ", in_quotes(key), " twice");
    }
    return true;
  };
  try {
    return Json::parse(text, guard);
  } catch (const typename Json::exception& error) {
    const std::string_view what = error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    fail(ErrorCode::kInvalidArgument, where, "it is no JSON: ", what.substr(std::min(what.find(']') + 2, what.size())));
  }
}

}  // namespace slidetile
