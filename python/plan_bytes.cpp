// Plans as bytes and back, and the table that gives one object per content.
#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <span>
#include <unordered_map>

#include "convert.h"
#include "slidetile/error.h"

namespace slidetile::python {
namespace {

// [magic 8][digest 16][size of all 8] then the body, every piece a multiple of 8 bytes.
constexpr char kMagic[8] = {'s', 't', 'i', 'l', 'e', 'p', 'l', '1'};
constexpr size_t kHeader = 32;

struct Digest {
  uint64_t a = 0, b = 0;
  friend bool operator==(const Digest&, const Digest&) = default;
};
struct HashOfDigest {
  size_t operator()(const Digest& digest) const noexcept { return digest.a; }
};

Digest digest_of(std::span<const uint8_t> body) {
  Digest digest{0x9e3779b97f4a7c15u, 0xc2b2ae3d27d4eb4fu};
  for (size_t i = 0; i + 8 <= body.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, body.data() + i, 8);
    digest.a = (digest.a ^ word) * 0xff51afd7ed558ccdu;
    digest.a ^= digest.a >> 32;
    digest.b = (digest.b + word) * 0xd6e8feb86659fd93u;
    digest.b ^= digest.b >> 29;
  }
  return digest;
}

class Writer {
 public:
  void number(int64_t value) { append(&value, 8); }
  template <typename T>
  void array(const std::vector<T>& values) {
    number(static_cast<int64_t>(values.size()));
    append(values.data(), values.size() * sizeof(T));
    bytes_.resize((bytes_.size() + 7) / 8 * 8);
  }
  void tiling(const Tiling& tiling) {
    for (const int32_t extent : tiling.grid.canvas().axes()) number(extent);
    for (const int32_t extent : tiling.grid.tile().axes()) number(extent);
    number(tiling.extra.before);
    number(tiling.extra.after);
    // The usual tiling follows from its extents.
    const bool usual = tiling.grid.tokens() > 0 && tiling == make_tiling(tiling.grid, tiling.extra);
    number(usual ? 1 : 0);
    if (usual) return;
    array(tiling.tile_begin);
    array(tiling.token);
  }
  std::vector<uint8_t> finish() {
    const Digest digest = digest_of(std::span(bytes_).subspan(kHeader));
    const uint64_t size = bytes_.size();
    std::memcpy(bytes_.data(), kMagic, 8);
    std::memcpy(bytes_.data() + 8, &digest, 16);
    std::memcpy(bytes_.data() + 24, &size, 8);
    return std::move(bytes_);
  }

 private:
  void append(const void* data, size_t size) {
    if (size == 0) return;
    const auto* from = static_cast<const uint8_t*>(data);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  std::vector<uint8_t> bytes_ = std::vector<uint8_t>(kHeader);
};

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : rest_(bytes) {}
  int64_t number() {
    int64_t value = 0;
    take(&value, 8);
    return value;
  }
  int32_t extent() {
    const int64_t value = number();
    require(value >= 0 && value <= std::numeric_limits<int32_t>::max(), "plan bytes: extent ", value, " out of range");
    return static_cast<int32_t>(value);
  }
  template <typename T>
  std::vector<T> array() {
    const int64_t count = number();
    require(count >= 0 && static_cast<uint64_t>(count) <= rest_.size() / sizeof(T), "plan bytes: an array of ", count,
            " elements runs past the end");
    std::vector<T> values(static_cast<size_t>(count));
    const size_t size = values.size() * sizeof(T);
    take(values.data(), size);
    const size_t padding = (8 - size % 8) % 8;
    require(padding <= rest_.size(), "plan bytes: truncated");
    rest_ = rest_.subspan(padding);
    return values;
  }
  Tiling tiling() {
    Dim3 canvas, tile;
    for (int32_t* axis : {&canvas.t, &canvas.h, &canvas.w, &tile.t, &tile.h, &tile.w}) *axis = extent();
    const ExtraTokens extra{number(), number()};
    const Grid grid = canvas == Dim3{0, 0, 0} ? Grid() : Grid(canvas, tile);
    if (number() != 0) return make_tiling(grid, extra);
    return {.grid = grid, .extra = extra, .tile_begin = array<int32_t>(), .token = array<int32_t>()};
  }
  bool at_end() const noexcept { return rest_.empty(); }

 private:
  void take(void* to, size_t size) {
    require(size <= rest_.size(), "plan bytes: truncated");
    if (size > 0) std::memcpy(to, rest_.data(), size);
    rest_ = rest_.subspan(size);
  }
  std::span<const uint8_t> rest_;
};

// Plans by content: weakly all of them, strongly the last ones used, so that bytes alone (a tensor in a compiled graph) are not
// parsed again at each call.
class Table {
 public:
  PlanPtr find(const Digest& digest) {
    const std::lock_guard lock(mutex_);
    const auto known = plans_.find(digest);
    return known == plans_.end() ? nullptr : known->second.lock();
  }
  PlanPtr insert(const Digest& digest, PlanPtr plan) {
    const std::lock_guard lock(mutex_);
    std::weak_ptr<SharedPlan>& slot = plans_[digest];
    if (PlanPtr known = slot.lock()) return known;
    slot = plan;
    recent_.push_back(plan);
    if (recent_.size() > kRecent) recent_.pop_front();
    if (plans_.size() > 4 * kRecent) std::erase_if(plans_, [](const auto& entry) { return entry.second.expired(); });
    return plan;
  }

 private:
  static constexpr size_t kRecent = 256;
  std::mutex mutex_;
  std::unordered_map<Digest, std::weak_ptr<SharedPlan>, HashOfDigest> plans_;
  std::deque<PlanPtr> recent_;
};

// Never destroyed: Python objects may outlive static ones.
Table& table() {
  static auto* table = new Table;
  return *table;
}

Digest read_digest(const uint8_t* bytes) {
  Digest digest;
  std::memcpy(&digest, bytes + 8, 16);
  return digest;
}

}  // namespace

std::vector<uint8_t> to_bytes(const Plan& plan) {
  Writer writer;
  writer.tiling(plan.query);
  writer.number(plan.key == plan.query ? 1 : 0);
  if (!(plan.key == plan.query)) writer.tiling(plan.key);
  writer.array(plan.head_class);
  writer.array(plan.row_of);
  writer.array(plan.row_begin);
  writer.array(plan.key_tile);
  writer.array(plan.mask_of);
  writer.array(plan.mask_begin);
  writer.array(plan.mask_words);
  return writer.finish();
}

PlanPtr plan_from_bytes(std::span<const uint8_t> given, Check check) {
  const uint8_t* bytes = given.data();
  const size_t size = given.size();
  require(size >= kHeader && std::memcmp(bytes, kMagic, 8) == 0, "plan bytes: not a plan (", size, " bytes)");
  uint64_t expected = 0;
  std::memcpy(&expected, bytes + 24, 8);
  require(expected == size, "plan bytes: ", size, " bytes, expected ", expected);
  PlanPtr known = table().find(read_digest(bytes));
  if (known != nullptr && check == Check::kUnknown) return known;
  const std::span<const uint8_t> body(bytes + kHeader, size - kHeader);
  require(digest_of(body) == read_digest(bytes), "plan bytes: the content does not match its digest");
  if (known != nullptr) return known;
  Reader reader(body);
  Plan plan;
  plan.query = reader.tiling();
  plan.key = reader.number() != 0 ? plan.query : reader.tiling();
  plan.head_class = reader.array<int32_t>();
  plan.row_of = reader.array<int32_t>();
  plan.row_begin = reader.array<int64_t>();
  plan.key_tile = reader.array<int32_t>();
  plan.mask_of = reader.array<int32_t>();
  plan.mask_begin = reader.array<int64_t>();
  plan.mask_words = reader.array<uint64_t>();
  require(reader.at_end(), "plan bytes: more bytes than the plan has");
  validate(plan);
  return table().insert(read_digest(bytes), std::make_shared<SharedPlan>(std::move(plan)));
}

PlanPtr remember(Plan plan) {
  const std::vector<uint8_t> bytes = to_bytes(plan);
  const Digest digest = read_digest(bytes.data());
  if (PlanPtr known = table().find(digest)) return known;
  return table().insert(digest, std::make_shared<SharedPlan>(std::move(plan)));
}

}  // namespace slidetile::python
