#include "slidetile/window_table.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <iterator>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "slidetile/error.h"
#include "slidetile/file.h"
#include "slidetile/json_guard.h"

namespace slidetile {

// data/hunyuan_strategy.json.gz, as cmake/embed.cmake writes it.
extern const unsigned char kHunyuanStrategy[];
extern const std::size_t kHunyuanStrategyBytes;

namespace {

using Json = nlohmann::json;

constexpr size_t kLargestText = size_t{64} << 20;
constexpr int64_t kLargestIndex = 1'000'000;  // of a step, layer or head: the product of three fits 64 bits
constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

bool is_gzip(std::string_view text) { return text.starts_with("\x1f\x8b"); }

Bytef* bytes_of(std::string_view text) { return reinterpret_cast<Bytef*>(const_cast<char*>(text.data())); }

std::string inflate_gzip(std::string_view compressed, const std::string& where) {
  constexpr int kGzip = 15 + 16;
  z_stream stream{};
  if (inflateInit2(&stream, kGzip) != Z_OK) fail(ErrorCode::kOutOfMemory, where, "no memory to decompress it");
  stream.next_in = bytes_of(compressed);
  stream.avail_in = static_cast<uInt>(compressed.size());
  std::string text;
  std::vector<char> chunk(size_t{1} << 16);
  int status = Z_OK;
  while (status == Z_OK && text.size() <= kLargestText) {
    stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
    stream.avail_out = static_cast<uInt>(chunk.size());
    status = inflate(&stream, Z_NO_FLUSH);
    if (status == Z_OK || status == Z_STREAM_END) text.append(chunk.data(), chunk.size() - stream.avail_out);
  }
  const size_t left = stream.avail_in;
  inflateEnd(&stream);
  require(text.size() <= kLargestText, where, "it decompresses to more than ", kLargestText, " bytes");
  require(status == Z_STREAM_END, where, "its gzip data are ", status == Z_BUF_ERROR ? "truncated" : "damaged", " after ", text.size(),
          " bytes of text");
  require(left == 0, where, "it has ", left, " bytes after the end of its gzip data");
  return text;
}

std::string deflate_gzip(std::string_view text) {
  constexpr int kGzip = 15 + 16, kMostMemory = 9;
  z_stream stream{};
  if (deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, kGzip, kMostMemory, Z_DEFAULT_STRATEGY) != Z_OK) {
    fail(ErrorCode::kOutOfMemory, "window table: no memory to compress it");
  }
  std::string compressed(deflateBound(&stream, text.size()), '\0');
  stream.next_in = bytes_of(text);
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = bytes_of(compressed);
  stream.avail_out = static_cast<uInt>(compressed.size());
  deflate(&stream, Z_FINISH);  // one call: the bound holds everything
  compressed.resize(stream.total_out);
  deflateEnd(&stream);
  return compressed;
}

Window window_from(const Json& value, const std::string& where, const std::string& key) {
  std::array<int32_t, 3> extents{};
  bool ok = value.is_array() && value.size() == extents.size();
  for (size_t axis = 0; ok && axis < extents.size(); ++axis) {
    ok = value[axis].is_number_unsigned() && value[axis].get<uint64_t>() - 1 < uint64_t{std::numeric_limits<int32_t>::max()};
    if (ok) extents[axis] = value[axis].get<int32_t>();
  }
  require(ok, where, in_quotes(key), " is ", shown(value), ", expected [t, h, w] in tiles, each at least 1");
  return {extents[0], extents[1], extents[2]};
}

using Index = std::array<int64_t, 3>;  // step, layer, head

std::string key_of(const Index& at) { return std::to_string(at[0]) + '_' + std::to_string(at[1]) + '_' + std::to_string(at[2]); }

Index index_from(const std::string& key, const std::string& where) {
  Index at{};
  const char *next = key.data(), *end = next + key.size();
  bool ok = true;
  for (size_t i = 0; ok && i < at.size(); ++i) {
    const auto [stop, error] = std::from_chars(next, end, at[i]);
    ok = error == std::errc() && at[i] >= 0 && at[i] < kLargestIndex && (i == 2 ? stop == end : stop != end && *stop == '_');
    next = ok && i < 2 ? stop + 1 : stop;
  }
  // Only one spelling of a key, so that none can be given twice.
  require(ok && key == key_of(at), where, "key ", in_quotes(key), ", expected step_layer_head, each from 0 to ", kLargestIndex - 1);
  return at;
}

WindowTable from_published(const Json& json, const std::string& where) {
  std::vector<std::pair<Index, Window>> entries;
  entries.reserve(json.size());
  Index extents{};
  for (const auto& [key, value] : json.items()) {
    const Index at = index_from(key, where);
    entries.emplace_back(at, window_from(value, where, key));
    for (size_t i = 0; i < at.size(); ++i) extents[i] = std::max(extents[i], at[i] + 1);
  }
  const int64_t expected = extents[0] * extents[1] * extents[2];
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<Window> windows;
  windows.reserve(entries.size());
  for (int64_t i = 0; i < expected; ++i) {
    const Index at{i / (extents[1] * extents[2]), i / extents[2] % extents[1], i % extents[2]};
    const auto entry = static_cast<size_t>(i);
    require(entry < entries.size() && entries[entry].first == at, where, "it has no ", key_of(at), ", expected all of ", extents[0],
            " steps x ", extents[1], " layers x ", extents[2], " heads");
    windows.push_back(entries[entry].second);
  }
  return {static_cast<int32_t>(extents[0]), static_cast<int32_t>(extents[1]), static_cast<int32_t>(extents[2]), std::move(windows)};
}

WindowTable from_compact(const Json& json, const std::string& where) {
  const Json &named = json["windows"], &steps = json["steps"];
  require(named.is_object(), where, "windows is ", shown(named), ", expected an object of letters and windows");
  std::map<char, Window> window_of;
  for (const auto& [key, value] : named.items()) {
    require(key.size() == 1, where, "windows has ", in_quotes(key), ", expected one letter");
    window_of.emplace(key[0], window_from(value, where, key));
  }
  std::vector<Window> windows;
  size_t layer_count = 0, head_count = 0;
  require(steps.is_array() && !steps.empty(), where, "steps is ", shown(steps), ", expected an array of steps");
  for (size_t step = 0; step < steps.size(); ++step) {
    const Json& layers = steps[step];
    require(layers.is_array(), where, "step ", step, " is ", shown(layers), ", expected an array of layers");
    if (step == 0) layer_count = layers.size();
    require(layers.size() == layer_count, where, "step ", step, " has ", layers.size(), " layers, step 0 has ", layer_count);
    for (size_t layer = 0; layer < layer_count; ++layer) {
      require(layers[layer].is_string(), where, "step ", step, ", layer ", layer, " is ", shown(layers[layer]),
              ", expected a letter for each head");
      const auto& letters = layers[layer].get_ref<const std::string&>();
      if (windows.empty()) head_count = letters.size();
      require(!letters.empty() && letters.size() == head_count, where, "step ", step, ", layer ", layer, " has ", letters.size(),
              " heads, expected ", std::max(head_count, size_t{1}), " as in the first");
      for (const char letter : letters) {
        const auto found = window_of.find(letter);
        require(found != window_of.end(), where, "step ", step, ", layer ", layer, " has ", in_quotes({&letter, 1}),
                ", which windows does not name");
        windows.push_back(found->second);
      }
    }
  }
  return {static_cast<int32_t>(steps.size()), static_cast<int32_t>(layer_count), static_cast<int32_t>(head_count), std::move(windows)};
}

std::string published_text(const WindowTable& table) {
  std::string text = "{";
  for (int32_t step = 0; step < table.steps(); ++step) {
    for (int32_t layer = 0; layer < table.layers(); ++layer) {
      for (int32_t head = 0; head < table.heads(); ++head) {
        const Window& window = table.at(step, layer, head);
        text += (text.size() == 1 ? "\n\"" : ",\n\"") + key_of({step, layer, head}) + "\": [" + std::to_string(window.t) + ", " +
                std::to_string(window.h) + ", " + std::to_string(window.w) + ']';
      }
    }
  }
  return text + "\n}\n";
}

std::string compact_text(const WindowTable& table) {
  std::vector<Window> known;
  std::string rows;
  for (int32_t step = 0; step < table.steps(); ++step) {
    rows += step == 0 ? "[" : ",\n[";
    for (int32_t layer = 0; layer < table.layers(); ++layer) {
      rows += layer == 0 ? "\"" : ",\n\"";
      for (const Window& window : table.windows(step, layer)) {
        const auto found = std::find(known.begin(), known.end(), window);
        const auto letter = static_cast<size_t>(found - known.begin());
        if (found == known.end()) known.push_back(window);
        if (letter >= kLetters.size()) {
          fail(ErrorCode::kUnsupported, "window table: it has more than ", kLetters.size(),
               " different windows, the compact form has a letter each");
        }
        rows += kLetters[letter];
      }
      rows += '"';
    }
    rows += ']';
  }
  std::string text = "{\"windows\": {";
  for (size_t i = 0; i < known.size(); ++i) {
    const Window& window = known[i];
    text += std::string(i == 0 ? "\"" : ", \"") + kLetters[i] + "\": [" + std::to_string(window.t) + ", " + std::to_string(window.h) +
            ", " + std::to_string(window.w) + ']';
  }
  return text + "},\n\"steps\": [" + rows + "]}\n";
}

}  // namespace

WindowTable::WindowTable(int32_t steps, int32_t layers, int32_t heads, std::vector<Window> windows)
    : steps_(steps), layers_(layers), heads_(heads), windows_(std::move(windows)) {
  require(steps > 0 && layers > 0 && heads > 0, "window table: ", steps, " steps x ", layers, " layers x ", heads,
          " heads, expected 1 or more of each");
  require(std::max({steps, layers, heads}) <= kLargestIndex, "window table: ", steps, " steps x ", layers, " layers x ", heads,
          " heads, expected at most ", kLargestIndex, " of each");
  const int64_t expected = int64_t{steps} * layers * heads;
  require(static_cast<int64_t>(windows_.size()) == expected, "window table: ", windows_.size(), " windows given, expected ", expected,
          " for ", steps, " steps x ", layers, " layers x ", heads, " heads");
  for (const Window& window : windows_) {
    require(window.t > 0 && window.h > 0 && window.w > 0, "window table: window ", window, " must have positive extents");
  }
}

WindowTable WindowTable::from_json(std::string_view text, const std::string& name) {
  const std::string where = "window table " + in_quotes(name) + ": ";
  require(text.size() <= kLargestText, where, "it has ", text.size(), " bytes, expected at most ", kLargestText);
  const std::string inflated = is_gzip(text) ? inflate_gzip(text, where) : std::string();
  constexpr int kDeepest = 3;
  const Json json = parse_json<Json>(is_gzip(text) ? inflated : text, where, kDeepest);
  require(json.is_object() && !json.empty(), where, "it is ", shown(json), ", expected an object with windows");
  return json.contains("windows") && json.contains("steps") ? from_compact(json, where) : from_published(json, where);
}

WindowTable WindowTable::load(const std::string& path) {
  const MappedFile file(path);
  return from_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path);
}

std::string WindowTable::to_json(TableForm form) const { return form == TableForm::kCompact ? compact_text(*this) : published_text(*this); }

void WindowTable::save(const std::string& path, TableForm form) const {
  const std::string text = to_json(form);
  write_file(path, path.ends_with(".gz") ? deflate_gzip(text) : text);
}

const Window& WindowTable::at(int32_t step, int32_t layer, int32_t head) const {
  require(head >= 0 && head < heads_, "window table: head ", head, ", expected 0 to ", heads_ - 1);
  return windows(step, layer)[static_cast<size_t>(head)];
}

std::span<const Window> WindowTable::windows(int32_t step, int32_t layer) const {
  require(step >= 0 && step < steps_, "window table: step ", step, ", expected 0 to ", steps_ - 1);
  require(layer >= 0 && layer < layers_, "window table: layer ", layer, ", expected 0 to ", layers_ - 1);
  return std::span(windows_).subspan(static_cast<size_t>((int64_t{step} * layers_ + layer) * heads_), static_cast<size_t>(heads_));
}

double WindowTable::sparsity(const Grid& grid) const { return sparsity_of(grid, windows_); }

double WindowTable::sparsity(const Grid& grid, int32_t step) const {
  const std::span<const Window> first = windows(step, 0);
  return sparsity_of(grid, {first.data(), static_cast<size_t>(int64_t{layers_} * heads_)});
}

double WindowTable::sparsity_of(const Grid& grid, std::span<const Window> windows) const {
  std::vector<std::pair<Window, int64_t>> counts;
  for (const Window& window : windows) {
    const auto found = std::find_if(counts.begin(), counts.end(), [&](const auto& known) { return known.first == window; });
    if (found == counts.end()) {
      counts.emplace_back(window, 1);
    } else {
      ++found->second;
    }
  }
  double visible = 0;
  for (const auto& [window, count] : counts) visible += static_cast<double>(count) * density(sliding_tile_plan(grid, {&window, 1}));
  return 1 - visible / static_cast<double>(windows.size());
}

const WindowTable& hunyuan_strategy() {
  static const WindowTable table =
      WindowTable::from_json({reinterpret_cast<const char*>(kHunyuanStrategy), kHunyuanStrategyBytes}, "hunyuan");
  return table;
}

}  // namespace slidetile
