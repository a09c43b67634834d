#include "slidetile/cpu/backward.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "slidetile/cpu/layout.h"

namespace slidetile::cpu {
namespace {

constexpr int32_t kChunkRows = 192;     // rows of one work item: see the cost model in body_backward.inl
constexpr int64_t kItemsPerWorker = 4;  // items that heads in flight keep ready

const BackwardEngine& engine_of(const BackwardSet& set, DType dtype) {
  switch (dtype) {
    case DType::kF32: return *set.f32;
    case DType::kBf16: return *set.bf16;
    case DType::kF16: return *set.f16;
  }
  return *set.f32;
}

// All work is one sequence of items: pack some key tiles of a head, or carry some query rows of a head over their key tiles. Workers take
// the items in order from a counter.
//
// dq belongs to one item. dk and dv of a key tile are sums over the items that read it, and floats must be added in one order whatever the
// number of workers: with an item a worker draws a ticket for each of its key tiles, numbers in the order of the items. An item adds to a
// tile when all lower tickets are served, and whoever holds the last one writes the tile's gradients.
//
// An item waits only for earlier items: for tickets, for packed keys, and for the slot of an earlier head. The earliest unfinished item
// therefore never waits, on any number of threads, even on one that runs all workers' tasks one after the other. Neighbouring items read
// nearly the same key tiles in the same order, so a worker follows another a tile behind and rarely waits; that they share the tiles in the
// third level of cache is why the items of one head are neighbours.
class BackwardRun {
 public:
  BackwardRun(const BackwardArgs& args, const BackwardEngine& engine)
      : args_(args),
        engine_(engine),
        plan_(args.plan),
        head_dim_(static_cast<int32_t>(args.q.head_dim())),
        layout_(make_key_layout(plan_.key, args.key_lengths, args.q.batch(), engine.lanes)),
        chunks_(make_chunks(plan_.query, kChunkRows)),
        units_(make_units(args.q, plan_)),
        groups_(layout_.groups()) {
    count_readers();
    const int64_t workers = args.executor->workers(), units = static_cast<int64_t>(units_.size());
    const int64_t chunks = std::max<int64_t>(1, static_cast<int64_t>(chunks_.size()));
    ahead_ = std::clamp<int64_t>((kItemsPerWorker * workers + chunks - 1) / chunks, 1, std::max<int64_t>(1, units - 1));
    slots_ = std::min(units, ahead_ + 1);
    const int64_t padded = layout_.padded_begin.back(), depth = (head_dim_ + engine.pair - 1) / engine.pair;
    columns_ = round_up(head_dim_, engine.lanes);
    turned_bytes_ = round_up(padded * depth * 4, kAlignment);
    rows_bytes_ = round_up(padded / engine.pair * columns_ * 4, kAlignment);
    sums_bytes_ = round_up(padded * columns_ * 4, kAlignment);
    slot_bytes_ = 2 * turned_bytes_ + rows_bytes_ + 2 * sums_bytes_;
    int32_t most_rows = 1;
    for (const Chunk& chunk : chunks_) most_rows = std::max(most_rows, chunk.rows);
    scratch_bytes_ =
        round_up(std::max(engine.pack_scratch_bytes(head_dim_), engine.attend_scratch_bytes(most_rows, head_dim_)), kAlignment);
    packed_ = std::make_unique<Memory>(slots_ * slot_bytes_);
    scratch_ = std::make_unique<Memory>(workers * scratch_bytes_);
    const auto tiles = static_cast<size_t>(slots_ * plan_.key.tiles);
    unsafe_.resize(tiles);
    drawn_.resize(tiles);
    served_ = std::vector<std::atomic<int32_t>>(tiles);
    packed_count_ = std::vector<std::atomic<int64_t>>(static_cast<size_t>(units));
    attended_count_ = std::vector<std::atomic<int64_t>>(static_cast<size_t>(units));
  }

  void run() {
    args_.executor->run(args_.executor->workers(), [this](int64_t, int worker) { work(worker); });
  }

 private:
  // A unit's chunk, or a group of its key tiles.
  struct Item {
    enum class Kind { kNone, kPack, kAttend } kind = Kind::kNone;
    int64_t unit = 0, place = 0;
  };

  // What enter and leave need to know.
  struct Visit {
    BackwardRun* run;
    const GradientArgs* args;
    int64_t unit;
    const int32_t* tickets;
  };

  int32_t plan_row(int32_t head_class, int32_t tile) const { return plan_.row_of[int64_t{head_class} * plan_.query.tiles + tile]; }

  void count_readers() {
    readers_.resize(static_cast<size_t>(plan_.classes));
    for (int32_t c = 0; c < plan_.classes; ++c) {
      std::vector<int32_t>& readers = readers_[static_cast<size_t>(c)];
      readers.resize(static_cast<size_t>(plan_.key.tiles));
      for (const Chunk& chunk : chunks_) {
        const int32_t row = plan_row(c, chunk.tile);
        for (int64_t entry = plan_.row_begin[row]; entry < plan_.row_begin[row + 1]; ++entry)
          ++readers[static_cast<size_t>(plan_.key_tile[entry])];
      }
    }
  }

  // The keys of the first heads, then for every head its chunks, with the keys of the head `ahead_` places later packed in their middle,
  // into the slot of the head before.
  Item item_at(int64_t index) const {
    const int64_t units = static_cast<int64_t>(units_.size()), chunks = static_cast<int64_t>(chunks_.size());
    const int64_t prologue = std::min(ahead_, units) * groups_, with_packing = std::max<int64_t>(0, units - ahead_),
                  segment = chunks + groups_, half = chunks / 2;
    if (index < prologue) return {Item::Kind::kPack, index / groups_, index % groups_};
    index -= prologue;
    if (index >= with_packing * segment) {
      index -= with_packing * segment;
      if (chunks == 0 || with_packing + index / chunks >= units) return {};
      return {Item::Kind::kAttend, with_packing + index / chunks, index % chunks};
    }
    const int64_t unit = index / segment, within = index % segment;
    if (within >= half && within < half + groups_) return {Item::Kind::kPack, unit + ahead_, within - half};
    return {Item::Kind::kAttend, unit, within < half ? within : within - groups_};
  }

  // Takes the next item and draws its tickets.
  Item take(std::vector<int32_t>& tickets) {
    const std::lock_guard lock(mutex_);
    const Item item = item_at(next_);
    if (item.kind == Item::Kind::kNone) return item;
    ++next_;
    if (item.kind != Item::Kind::kAttend) return item;
    int32_t* drawn = drawn_.data() + item.unit % slots_ * plan_.key.tiles;
    if (item.place == 0) std::fill_n(drawn, plan_.key.tiles, 0);
    const Chunk& chunk = chunks_[static_cast<size_t>(item.place)];
    const int32_t row = plan_row(units_[static_cast<size_t>(item.unit)].head_class, chunk.tile);
    tickets.clear();
    for (int64_t entry = plan_.row_begin[row]; entry < plan_.row_begin[row + 1]; ++entry) tickets.push_back(drawn[plan_.key_tile[entry]]++);
    return item;
  }

  void work(int worker) {
    std::vector<int32_t> tickets;
    for (;;) {
      const Item item = take(tickets);
      switch (item.kind) {
        case Item::Kind::kNone: return;
        case Item::Kind::kPack: pack(item, worker); break;
        case Item::Kind::kAttend: attend(item, tickets.data(), worker); break;
      }
    }
  }

  template <typename Count>
  static void wait_for(const std::atomic<Count>& count, Count wanted) {
    while (count.load(std::memory_order_acquire) < wanted) std::this_thread::yield();
  }

  char* slot(int64_t unit) const { return packed_->at(unit % slots_ * slot_bytes_); }
  uint8_t* unsafe(int64_t unit) { return unsafe_.data() + unit % slots_ * plan_.key.tiles; }
  std::atomic<int32_t>& served(int64_t unit, int32_t tile) { return served_[static_cast<size_t>(unit % slots_ * plan_.key.tiles + tile)]; }
  int32_t readers(int64_t unit, int32_t tile) const {
    return readers_[static_cast<size_t>(units_[static_cast<size_t>(unit)].head_class)][static_cast<size_t>(tile)];
  }
  int64_t key_length(const Unit& u) const { return args_.key_lengths == nullptr ? plan_.key.tokens : args_.key_lengths[u.batch]; }

  GradientKeys keys_of(int64_t unit) {
    char* at = slot(unit);
    return {.k = reinterpret_cast<const uint32_t*>(at),
            .v = reinterpret_cast<const uint32_t*>(at + turned_bytes_),
            .k_rows = reinterpret_cast<const uint32_t*>(at + 2 * turned_bytes_),
            .dk = reinterpret_cast<float*>(at + 2 * turned_bytes_ + rows_bytes_),
            .dv = reinterpret_cast<float*>(at + 2 * turned_bytes_ + rows_bytes_ + sums_bytes_),
            .padded_begin = layout_.padded_begin.data(),
            .tile_begin = plan_.key.tile_begin,
            .word_begin = layout_.word_begin.data(),
            .usable = layout_.usable_of(units_[static_cast<size_t>(unit)].batch),
            .unsafe = unsafe(unit)};
  }

  void pack(const Item& item, int worker) {
    if (item.unit >= slots_) wait_for(attended_count_[static_cast<size_t>(item.unit - slots_)], static_cast<int64_t>(chunks_.size()));
    const Unit& u = units_[static_cast<size_t>(item.unit)];
    const GradientKeys keys = keys_of(item.unit);
    const int64_t bytes = size_of(args_.k.dtype), depth = (head_dim_ + engine_.pair - 1) / engine_.pair;
    const auto group = static_cast<size_t>(item.place);
    for (int32_t tile = layout_.group_begin[group]; tile < layout_.group_begin[group + 1]; ++tile) {
      const int64_t padded = layout_.padded_begin[static_cast<size_t>(tile)];
      const PackGradientsArgs pack{.tile = {.k = head_data(args_.k, u),
                                            .v = head_data(args_.v, u),
                                            .k_stride = args_.k.strides[2] * bytes,
                                            .v_stride = args_.v.strides[2] * bytes,
                                            .storage = storage_of(args_.k.dtype),
                                            .head_dim = head_dim_,
                                            .token = plan_.key.token + plan_.key.tile_begin[tile],
                                            .tokens = plan_.key.tile_begin[tile + 1] - plan_.key.tile_begin[tile],
                                            .listed = static_cast<int32_t>(plan_.key.tokens) - plan_.key.tile_begin[tile],
                                            .length = key_length(u),
                                            .k_packed = const_cast<uint32_t*>(keys.k) + padded * depth,
                                            .v_packed = const_cast<uint32_t*>(keys.v) + padded * depth,
                                            .scratch = scratch_->at(worker * scratch_bytes_)},
                                   .k_rows = const_cast<uint32_t*>(keys.k_rows) + padded / engine_.pair * columns_,
                                   .dk = keys.dk + padded * columns_,
                                   .dv = keys.dv + padded * columns_};
      unsafe(item.unit)[tile] = engine_.pack(pack) ? 1 : 0;
      served(item.unit, tile).store(0, std::memory_order_relaxed);
      if (readers(item.unit, tile) == 0) write(item.unit, tile);
    }
    packed_count_[static_cast<size_t>(item.unit)].fetch_add(1, std::memory_order_release);
  }

  void attend(const Item& item, const int32_t* tickets, int worker) {
    wait_for(packed_count_[static_cast<size_t>(item.unit)], groups_);
    const Unit& u = units_[static_cast<size_t>(item.unit)];
    const Chunk& chunk = chunks_[static_cast<size_t>(item.place)];
    const int32_t row = plan_row(u.head_class, chunk.tile);
    const int64_t first_entry = plan_.row_begin[row], bytes = size_of(args_.q.dtype);
    Visit visit{.run = this, .args = nullptr, .unit = item.unit, .tickets = tickets};
    const GradientArgs gradients{.q = head_data(args_.q, u),
                                 .dout = head_data(args_.dout, u),
                                 .out = head_data(args_.out, u),
                                 .dq = head_data(args_.dq, u),
                                 .lse = reinterpret_cast<const float*>(head_data(args_.lse, u)),
                                 .q_stride = args_.q.strides[2] * bytes,
                                 .dout_stride = args_.dout.strides[2] * bytes,
                                 .out_stride = args_.out.strides[2] * bytes,
                                 .dq_stride = args_.dq.strides[2] * bytes,
                                 .lse_stride = args_.lse.strides[2] * size_of(DType::kF32),
                                 .storage = storage_of(args_.q.dtype),
                                 .head_dim = head_dim_,
                                 .scale = args_.scale,
                                 .token = plan_.query.token + plan_.query.tile_begin[chunk.tile] + chunk.first,
                                 .rows = chunk.rows,
                                 .query_length = args_.query_lengths == nullptr ? plan_.query.tokens : args_.query_lengths[u.batch],
                                 .keys = keys_of(item.unit),
                                 .key_tile = plan_.key_tile + first_entry,
                                 .mask_of = plan_.mask_of == nullptr ? nullptr : plan_.mask_of + first_entry,
                                 .entries = plan_.row_begin[row + 1] - first_entry,
                                 .mask_begin = plan_.mask_begin,
                                 .mask_words = plan_.mask_words,
                                 .mask_row = chunk.first,
                                 .driver = &visit,
                                 .enter = enter,
                                 .leave = leave,
                                 .scratch = scratch_->at(worker * scratch_bytes_)};
    visit.args = &gradients;
    engine_.attend(gradients);
    attended_count_[static_cast<size_t>(item.unit)].fetch_add(1, std::memory_order_release);
  }

  static void enter(void* driver, int64_t entry) {
    const Visit& visit = *static_cast<const Visit*>(driver);
    wait_for(visit.run->served(visit.unit, visit.args->key_tile[entry]), visit.tickets[entry]);
  }

  static void leave(void* driver, int64_t entry) {
    const Visit& visit = *static_cast<const Visit*>(driver);
    const int32_t tile = visit.args->key_tile[entry], next = visit.tickets[entry] + 1;
    if (next == visit.run->readers(visit.unit, tile)) visit.run->write(visit.unit, tile);
    visit.run->served(visit.unit, tile).store(next, std::memory_order_release);
  }

  void write(int64_t unit, int32_t tile) {
    const Unit& u = units_[static_cast<size_t>(unit)];
    const GradientKeys keys = keys_of(unit);
    const int64_t sums = layout_.padded_begin[static_cast<size_t>(tile)] * columns_, bytes = size_of(args_.dk.dtype);
    engine_.write({.sums_k = keys.dk + sums,
                   .sums_v = keys.dv + sums,
                   .dk = head_data(args_.dk, u),
                   .dv = head_data(args_.dv, u),
                   .dk_stride = args_.dk.strides[2] * bytes,
                   .dv_stride = args_.dv.strides[2] * bytes,
                   .storage = storage_of(args_.dk.dtype),
                   .head_dim = head_dim_,
                   .scale = args_.scale,
                   .token = plan_.key.token + plan_.key.tile_begin[tile],
                   .tokens = plan_.key.tile_begin[tile + 1] - plan_.key.tile_begin[tile],
                   .length = key_length(u)});
  }

  const BackwardArgs& args_;
  const BackwardEngine& engine_;
  const PlanView& plan_;
  int32_t head_dim_;
  KeyLayout layout_;
  std::vector<Chunk> chunks_;
  std::vector<Unit> units_;
  int64_t groups_;
  std::vector<std::vector<int32_t>> readers_;  // [classes][key tiles] chunks that read it
  int64_t ahead_ = 1, slots_ = 1;              // heads packed ahead; heads in memory
  int64_t columns_ = 0, turned_bytes_ = 0, rows_bytes_ = 0, sums_bytes_ = 0, slot_bytes_ = 0, scratch_bytes_ = 0;
  std::unique_ptr<Memory> packed_, scratch_;
  std::vector<uint8_t> unsafe_;               // [slots][key tiles]
  std::vector<std::atomic<int32_t>> served_;  // [slots][key tiles] tickets whose sums are made
  std::vector<std::atomic<int64_t>> packed_count_, attended_count_;
  std::mutex mutex_;  // of next_ and drawn_
  int64_t next_ = 0;
  std::vector<int32_t> drawn_;  // [slots][key tiles]
};

}  // namespace

void run_backward(const BackwardArgs& args, const BackwardSet& set) { BackwardRun(args, engine_of(set, args.q.dtype)).run(); }

}  // namespace slidetile::cpu
