#include "slidetile/cpu/backward.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <vector>

#include "slidetile/cpu/layout.h"
#include "slidetile/cpu/schedule.h"

namespace slidetile::cpu {
namespace {

constexpr int32_t kChunkRows = 192;  // rows of one work item: see the cost model in body_backward.inl

// Workers take the items of a schedule in order: pack some key tiles of a head, or carry some query rows of a head over their key tiles.
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
        schedule_(
            {.units = std::ssize(units_), .chunks = std::ssize(chunks_), .groups = layout_.groups(), .workers = args.executor->workers()}) {
    count_readers();
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
    packed_ = std::make_unique<Memory>(schedule_.slots() * slot_bytes_);
    scratch_ = std::make_unique<Memory>(args.executor->workers() * scratch_bytes_);
    const auto tiles = static_cast<size_t>(schedule_.slots() * plan_.key.tiles);
    unsafe_.resize(tiles);
    drawn_.resize(tiles);
    served_ = std::vector<std::atomic<int32_t>>(tiles);
  }

  void run() {
    args_.executor->run(args_.executor->workers(), [this](int64_t, int worker) { work(worker); });
  }

 private:
  using Item = Schedule::Item;

  // What enter and leave need to know.
  struct Visit {
    BackwardRun* run;
    const GradientArgs* args;
    int64_t unit;
    const int32_t* tickets;
  };

  void count_readers() {
    readers_.resize(static_cast<size_t>(plan_.classes));
    for (int32_t c = 0; c < plan_.classes; ++c) {
      std::vector<int32_t>& readers = readers_[static_cast<size_t>(c)];
      readers.resize(static_cast<size_t>(plan_.key.tiles));
      for (const Chunk& chunk : chunks_) {
        const int32_t row = plan_row(plan_, c, chunk.tile);
        for (int64_t entry = plan_.row_begin[row]; entry < plan_.row_begin[row + 1]; ++entry)
          ++readers[static_cast<size_t>(plan_.key_tile[entry])];
      }
    }
  }

  // Takes the next item and draws its tickets.
  std::optional<Item> take(std::vector<int32_t>& tickets) {
    const std::lock_guard lock(mutex_);
    if (next_ == schedule_.items()) return std::nullopt;
    const Item item = schedule_.item(next_++);
    if (item.kind != Item::Kind::kAttend) return item;
    int32_t* drawn = drawn_.data() + schedule_.slot_of(item.unit) * plan_.key.tiles;
    if (item.place == 0) std::fill_n(drawn, plan_.key.tiles, 0);
    const Chunk& chunk = chunks_[static_cast<size_t>(item.place)];
    const int32_t row = plan_row(plan_, units_[static_cast<size_t>(item.unit)].head_class, chunk.tile);
    tickets.clear();
    for (int64_t entry = plan_.row_begin[row]; entry < plan_.row_begin[row + 1]; ++entry) tickets.push_back(drawn[plan_.key_tile[entry]]++);
    return item;
  }

  void work(int worker) {
    std::vector<int32_t> tickets;
    while (const std::optional<Item> item = take(tickets)) {
      if (item->kind == Item::Kind::kPack) {
        pack(*item, worker);
      } else {
        attend(*item, tickets.data(), worker);
      }
      schedule_.finish(*item);
    }
  }

  char* slot(int64_t unit) const { return packed_->at(schedule_.slot_of(unit) * slot_bytes_); }
  uint8_t* unsafe(int64_t unit) { return unsafe_.data() + schedule_.slot_of(unit) * plan_.key.tiles; }
  std::atomic<int32_t>& served(int64_t unit, int32_t tile) {
    return served_[static_cast<size_t>(schedule_.slot_of(unit) * plan_.key.tiles + tile)];
  }
  int32_t readers(int64_t unit, int32_t tile) const {
    return readers_[static_cast<size_t>(units_[static_cast<size_t>(unit)].head_class)][static_cast<size_t>(tile)];
  }

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
    schedule_.wait_for_slot(item.unit);
    const Unit& u = units_[static_cast<size_t>(item.unit)];
    const GradientKeys keys = keys_of(item.unit);
    const int64_t depth = (head_dim_ + engine_.pair - 1) / engine_.pair;
    const auto group = static_cast<size_t>(item.place);
    for (int32_t tile = layout_.group_begin[group]; tile < layout_.group_begin[group + 1]; ++tile) {
      const int64_t padded = layout_.padded_begin[static_cast<size_t>(tile)];
      PackGradientsArgs pack{.tile = pack_args(args_, u, tile),
                             .k_rows = const_cast<uint32_t*>(keys.k_rows) + padded / engine_.pair * columns_,
                             .dk = keys.dk + padded * columns_,
                             .dv = keys.dv + padded * columns_};
      pack.tile.k_packed = const_cast<uint32_t*>(keys.k) + padded * depth;
      pack.tile.v_packed = const_cast<uint32_t*>(keys.v) + padded * depth;
      pack.tile.scratch = scratch_->at(worker * scratch_bytes_);
      unsafe(item.unit)[tile] = engine_.pack(pack) ? 1 : 0;
      served(item.unit, tile).store(0, std::memory_order_relaxed);
      if (readers(item.unit, tile) == 0) write(item.unit, tile);
    }
  }

  void attend(const Item& item, const int32_t* tickets, int worker) {
    schedule_.wait_for_keys(item.unit);
    const Unit& u = units_[static_cast<size_t>(item.unit)];
    const Chunk& chunk = chunks_[static_cast<size_t>(item.place)];
    const int32_t row = plan_row(plan_, u.head_class, chunk.tile);
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
                                 .query_length = query_length(args_, u),
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
                   .length = key_length(args_, u)});
  }

  const BackwardArgs& args_;
  const BackwardEngine& engine_;
  const PlanView& plan_;
  int32_t head_dim_;
  KeyLayout layout_;
  std::vector<Chunk> chunks_;
  std::vector<Unit> units_;
  Schedule schedule_;
  std::vector<std::vector<int32_t>> readers_;  // [classes][key tiles] chunks that read it
  int64_t columns_ = 0, turned_bytes_ = 0, rows_bytes_ = 0, sums_bytes_ = 0, slot_bytes_ = 0, scratch_bytes_ = 0;
  std::unique_ptr<Memory> packed_, scratch_;
  std::vector<uint8_t> unsafe_;               // [slots][key tiles]
  std::vector<std::atomic<int32_t>> served_;  // [slots][key tiles] tickets whose sums are made
  std::mutex mutex_;                          // of next_ and drawn_
  int64_t next_ = 0;
  std::vector<int32_t> drawn_;  // [slots][key tiles]
};

}  // namespace

void run_backward(const BackwardArgs& args, const BackwardSet& set) { BackwardRun(args, engine_of(set, args.q.dtype)).run(); }

}  // namespace slidetile::cpu
