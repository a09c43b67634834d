#include "slidetile/cpu/forward.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <vector>

#include "slidetile/cpu/layout.h"
#include "slidetile/cpu/schedule.h"

namespace slidetile::cpu {
namespace {

constexpr int32_t kChunkRows = 192;     // rows of one work item: their state and a block of keys fit the second level of cache
constexpr int64_t kRunsPerWorker = 64;  // that a call is cut into, at least
constexpr int64_t kLongestRun = 8;

class ForwardRun {
 public:
  ForwardRun(const ForwardArgs& args, const Engine& engine)
      : args_(args),
        engine_(engine),
        plan_(args.plan),
        head_dim_(static_cast<int32_t>(args.q.head_dim())),
        layout_(make_key_layout(plan_.key, args.key_lengths, args.q.batch(), engine.lanes)),
        chunks_(make_chunks(plan_.query, kChunkRows)),
        units_(make_units(args.q, plan_)),
        schedule_(
            {.units = std::ssize(units_), .chunks = std::ssize(chunks_), .groups = layout_.groups(), .workers = args.executor->workers()}) {
    order_work();
    next_ = schedule_.prologue();
    const int64_t workers = args.executor->workers();
    run_ = std::clamp<int64_t>(std::ssize(units_) * std::ssize(chunks_) / (kRunsPerWorker * workers), 1, kLongestRun);
    single_from_ = last_busy_ - 2 * run_ * workers;
    const int64_t padded = layout_.padded_begin.back();
    depth_ = (head_dim_ + engine.pair - 1) / engine.pair;
    columns_ = round_up(head_dim_, engine.lanes);
    k_words_ = padded * depth_;
    v_words_ = padded / engine.pair * columns_;
    slot_bytes_ = round_up((k_words_ + v_words_) * 4 + kAlignment, kAlignment);
    int32_t most_rows = 1;
    for (const Chunk& chunk : chunks_) most_rows = std::max(most_rows, chunk.rows);
    results_bytes_ = round_up(int64_t{most_rows} * 2 * 4, kAlignment);
    scratch_bytes_ = round_up(
        results_bytes_ + std::max(engine.pack_scratch_bytes(head_dim_), engine.attend_scratch_bytes(most_rows, head_dim_)), kAlignment);
    packed_ = std::make_unique<Memory>(schedule_.slots() * slot_bytes_);
    scratch_ = std::make_unique<Memory>(workers * scratch_bytes_);
    unsafe_.resize(static_cast<size_t>(schedule_.slots() * plan_.key.tiles));
  }

  void run() {
    args_.executor->run(args_.executor->workers(), [this](int64_t, int worker) { work(worker); });
  }

 private:
  // Long chunks and heads with long chunks first, so that nothing long starts when others run out of work.
  void order_work() {
    std::vector<int64_t> row_keys(static_cast<size_t>(plan_.rows));
    for (int32_t row = 0; row < plan_.rows; ++row) {
      for (int64_t entry = plan_.row_begin[row]; entry < plan_.row_begin[row + 1]; ++entry) {
        const int32_t tile = plan_.key_tile[entry];
        row_keys[static_cast<size_t>(row)] += plan_.key.tile_begin[tile + 1] - plan_.key.tile_begin[tile];
      }
    }
    std::vector<int64_t> class_cost(static_cast<size_t>(plan_.classes));
    order_.resize(static_cast<size_t>(plan_.classes));
    for (int32_t c = 0; c < plan_.classes; ++c) {
      const auto cost = [&](int32_t index) {
        const Chunk& chunk = chunks_[static_cast<size_t>(index)];
        return chunk.rows * row_keys[static_cast<size_t>(plan_row(plan_, c, chunk.tile))];
      };
      std::vector<int32_t>& order = order_[static_cast<size_t>(c)];
      order.resize(chunks_.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return cost(a) > cost(b); });
      for (const int32_t index : order) class_cost[static_cast<size_t>(c)] += cost(index);
    }
    std::stable_sort(units_.begin(), units_.end(), [&](const Unit& a, const Unit& b) {
      return class_cost[static_cast<size_t>(a.head_class)] > class_cost[static_cast<size_t>(b.head_class)];
    });
    const int32_t last = units_.back().head_class;
    const auto reads = [&](int32_t index) {
      return row_keys[static_cast<size_t>(plan_row(plan_, last, chunks_[static_cast<size_t>(index)].tile))] > 0;
    };
    last_busy_ = schedule_.items() - std::ssize(chunks_) + std::ranges::count_if(order_[static_cast<size_t>(last)], reads);
  }

  void work(int worker) {
    for (int64_t index; (index = next_of_prologue_.fetch_add(1, std::memory_order_relaxed)) < schedule_.prologue();) {
      perform(schedule_.item(index), worker);
    }
    for (;;) {
      int64_t first = next_.load(std::memory_order_relaxed), count;
      do {
        count = first < single_from_ ? run_ : 1;
      } while (!next_.compare_exchange_weak(first, first + count, std::memory_order_relaxed));
      if (first >= schedule_.items()) return;
      for (int64_t index = first; index < std::min(first + count, schedule_.items()); ++index) perform(schedule_.item(index), worker);
    }
  }

  void perform(const Schedule::Item& item, int worker) {
    if (item.kind == Schedule::Item::Kind::kPack) {
      pack(item.unit, item.place, worker);
    } else {
      attend(item.unit, item.place, worker);
    }
    schedule_.finish(item);
  }

  uint32_t* k_packed(int64_t unit) const { return reinterpret_cast<uint32_t*>(packed_->at(schedule_.slot_of(unit) * slot_bytes_)); }
  uint32_t* v_packed(int64_t unit) const { return k_packed(unit) + round_up(k_words_, kAlignment / 4); }
  uint8_t* unsafe(int64_t unit) { return unsafe_.data() + schedule_.slot_of(unit) * plan_.key.tiles; }

  void pack(int64_t unit, int64_t group, int worker) {
    schedule_.wait_for_slot(unit);
    const auto g = static_cast<size_t>(group);
    for (int32_t tile = layout_.group_begin[g]; tile < layout_.group_begin[g + 1]; ++tile) {
      const int64_t padded = layout_.padded_begin[static_cast<size_t>(tile)];
      PackArgs pack = pack_args(args_, units_[static_cast<size_t>(unit)], tile);
      pack.k_packed = k_packed(unit) + padded * depth_;
      pack.v_packed = v_packed(unit) + padded / engine_.pair * columns_;
      pack.scratch = scratch_->at(worker * scratch_bytes_);
      unsafe(unit)[tile] = engine_.pack(pack) ? 1 : 0;
    }
  }

  void attend(int64_t unit, int64_t place, int worker) {
    schedule_.wait_for_keys(unit);
    const Unit& u = units_[static_cast<size_t>(unit)];
    const Chunk& chunk = chunks_[static_cast<size_t>(order_[static_cast<size_t>(u.head_class)][static_cast<size_t>(place)])];
    const int32_t row = plan_row(plan_, u.head_class, chunk.tile);
    const int64_t first_entry = plan_.row_begin[row], bytes = size_of(args_.q.dtype);
    auto* results = reinterpret_cast<float*>(scratch_->at(worker * scratch_bytes_));
    const AttendArgs attend{.q = head_data(args_.q, u),
                            .out = head_data(args_.out, u),
                            .q_stride = args_.q.strides[2] * bytes,
                            .out_stride = args_.out.strides[2] * bytes,
                            .storage = storage_of(args_.q.dtype),
                            .head_dim = head_dim_,
                            .scale = args_.scale,
                            .token = plan_.query.token + plan_.query.tile_begin[chunk.tile] + chunk.first,
                            .rows = chunk.rows,
                            .query_length = query_length(args_, u),
                            .keys = {.k = k_packed(unit),
                                     .v = v_packed(unit),
                                     .padded_begin = layout_.padded_begin.data(),
                                     .tile_begin = plan_.key.tile_begin,
                                     .word_begin = layout_.word_begin.data(),
                                     .usable = layout_.usable_of(u.batch),
                                     .unsafe = unsafe(unit)},
                            .key_tile = plan_.key_tile + first_entry,
                            .mask_of = plan_.mask_of == nullptr ? nullptr : plan_.mask_of + first_entry,
                            .entries = plan_.row_begin[row + 1] - first_entry,
                            .mask_begin = plan_.mask_begin,
                            .mask_words = plan_.mask_words,
                            .mask_row = chunk.first,
                            .shift = results,
                            .sum = results + chunk.rows,
                            .scratch = scratch_->at(worker * scratch_bytes_ + results_bytes_)};
    engine_.attend(attend);
    finish(u, attend);
  }

  // lse, and the rows without a sum: those that saw no key, and those of whose keys every score is -inf, which is no number.
  void finish(const Unit& u, const AttendArgs& a) const {
    const auto lse_at = [&](int32_t token) -> float& {
      return reinterpret_cast<float*>(head_data(args_.lse, u))[token * args_.lse.strides[2]];
    };
    for (int32_t r = 0; r < a.rows; ++r) {
      const int32_t token = a.token[r];
      const bool lost = a.sum[r] == 0 && token < a.query_length && sees_a_key(a, r);
      if (lost) {
        void* out = a.out + token * a.out_stride;
        for (int32_t d = 0; d < head_dim_; ++d) store_element(out, args_.out.dtype, d, std::numeric_limits<float>::quiet_NaN());
      }
      if (!args_.lse) continue;
      if (lost) {
        lse_at(token) = std::numeric_limits<float>::quiet_NaN();
      } else if (a.sum[r] == 0) {
        lse_at(token) = -std::numeric_limits<float>::infinity();
      } else {
        constexpr double kLn2 = 0.6931471805599453;
        lse_at(token) = static_cast<float>(std::log(static_cast<double>(a.sum[r])) - double{a.shift[r]} * kLn2);
      }
    }
  }

  static bool sees_a_key(const AttendArgs& a, int32_t r) {
    for (int64_t entry = 0; entry < a.entries; ++entry) {
      const int32_t tile = a.key_tile[entry];
      const int64_t words = a.keys.word_begin[tile + 1] - a.keys.word_begin[tile];
      const int32_t mask = a.mask_of == nullptr ? -1 : a.mask_of[entry];
      for (int64_t word = 0; word < words; ++word) {
        const uint64_t seen = mask < 0 ? ~uint64_t{0} : a.mask_words[a.mask_begin[mask] + (a.mask_row + r) * words + word];
        if ((a.keys.usable[a.keys.word_begin[tile] + word] & seen) != 0) return true;
      }
    }
    return false;
  }

  const ForwardArgs& args_;
  const Engine& engine_;
  const PlanView& plan_;
  int32_t head_dim_;
  KeyLayout layout_;
  std::vector<Chunk> chunks_;
  std::vector<Unit> units_;
  Schedule schedule_;
  std::vector<std::vector<int32_t>> order_;  // [classes] chunks, long ones first
  int64_t depth_ = 0, columns_ = 0, k_words_ = 0, v_words_ = 0, slot_bytes_ = 0, results_bytes_ = 0, scratch_bytes_ = 0;
  std::unique_ptr<Memory> packed_, scratch_;
  std::vector<uint8_t> unsafe_;
  int64_t last_busy_ = 0;              // index after the last item that reads keys
  int64_t run_ = 1, single_from_ = 0;  // consecutive items that a worker takes at once: neighbours read many of the same keys. Towards the
                                       // end one by one, so that the workers end together
  std::atomic<int64_t> next_of_prologue_{0}, next_;
};

}  // namespace

void run_forward(const ForwardArgs& args, const EngineSet& set) { ForwardRun(args, engine_of(set, args.q.dtype)).run(); }

}  // namespace slidetile::cpu
