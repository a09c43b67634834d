// The kernel body that every instruction set shares, included inside an unnamed namespace after the set's primitives:
//
//   Float, kLanes         a vector of floats           zero load store broadcast fma add sub mul max select reduce_max reduce_add exp2
//   Flags                 lanes that compared true     no_flags above any
//   Operand, kPair        a vector of packed words (one float or two bf16), load_operand broadcast_operand dot
//   kFused                    weights are made in the registers of the scores, else in a pass of their own
//   kRows x kVectors      accumulators of the register tile; kMaskRows of it where rows have masks of their own
//   store_weights scale_weights weight_at   softmax weights as packed words
//   load_storage store_storage transpose stage_row pack_values value_at is_unsafe   between the caller's memory and packed words
//
// Cost model, per query row and 16 keys of head_dim D (AVX-512 numbers; one "op" is one vector instruction on the multiply-add pipes):
//   scores    D / kPair ops       kRows x kVectors accumulators, loads: (kRows + kVectors) per kRows * kVectors ops
//   softmax   2 + degree ops      and as many on other pipes; degree 3 for bf16, 5 for f32
//   values    D / kPair ops       accumulators start from and return to memory once every kBlock keys
// so at D = 128 the multiply-adds are 95 % of the ops (bf16: 128 of 135, f32: 256 of 264), at D = 64 90 % and 94 %. Packed keys and values
// of a block (D * kBlock * 8 / kPair bytes) stay in the first or second level of cache while all rows pass over them; the rows' own state
// (D * 8 + D * 4 / kPair + kBlock * 4 / kPair bytes each) streams from the second. Nothing here is bound by memory from 32 rows on.

using Word = uint32_t;

constexpr int kBlock = 64;                    // keys of one word of a mask
constexpr int kWeightWords = kBlock / kPair;  // of a row
constexpr int kPanel = kVectors * kLanes;     // keys or columns of a full register tile
constexpr int kLargestHeadDim = 256;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLazy = 8;  // the reference is raised when a score beats it by this factor's log2: weights stay below 2^8
constexpr float kMinusInfinity = -__builtin_inff();

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Whether every row of a register tile sees every key, or State::visible says which.
enum class Visibility { kAll, kSome };

// A run of query rows while it passes over the keys. A row's weights are exp2(scale * score + shift); shift is minus a score that was the
// row's largest at some time, times scale.
struct State {
  Word* q;            // [rows][q_stride]
  Word* p;            // [rows][kBlock / kPair] weights of the current block
  float* o;           // panels of kPanel columns (the last narrower), each [rows][columns]
  float* l;           // [rows][kLanes] sums of weights
  float* bar;         // [rows] score above which the reference is raised; -inf: none yet
  float* shift;       // [rows]
  uint64_t* visible;  // [rows] keys of the current block
  uint64_t* seen;     // [row groups] keys of the current block that some row of the group sees
  int64_t q_stride, columns, depth;
  int32_t rows;
  float scale, margin;
};

// Where a row's output of some column is summed; a whole vector of columns is contiguous.
[[gnu::always_inline]] inline float* outputs(const State& s, int64_t row, int64_t column) {
  const int64_t panel = column / kPanel * kPanel, width = s.columns - panel < kPanel ? s.columns - panel : kPanel;
  return s.o + panel * s.rows + row * width + (column - panel);
}

template <int kR, int kN>
[[gnu::always_inline]] inline void dot_tile(Float (&acc)[kR][kN], const Word* a, int64_t a_stride, const Word* b, int64_t b_stride,
                                            int64_t count) {
  for (int64_t i = 0; i < count; ++i, ++a, b += b_stride) {
    Operand right[kN];
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) right[n] = load_operand(b + n * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Operand left = broadcast_operand(a + r * a_stride);
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n) acc[r][n] = dot(acc[r][n], left, right[n]);
    }
  }
}

// Raises the references of the rows whose largest score passed the bar, and scales what they have summed, `words` words of this block's
// weights included.
[[gnu::noinline, gnu::cold]] void raise(const State& s, int row, int count, int words, const Float* largest) {
  for (int r = 0; r < count; ++r) {
    const float top = reduce_max(largest[r]);
    float& bar = s.bar[row + r];
    if (!(top > bar)) continue;
    const float shift = -top * s.scale;
    const float factor = bar == kMinusInfinity ? 0 : __builtin_exp2f(shift - s.shift[row + r]);
    bar = top + s.margin;
    s.shift[row + r] = shift;
    const Float by = broadcast(factor);
    float* l = s.l + (row + r) * kLanes;
    for (int64_t c = 0; c < s.columns; c += kLanes) {
      float* o = outputs(s, row + r, c);
      store(o, mul(load(o), by));
    }
    store(l, mul(load(l), by));
    scale_weights(s.p + (row + r) * kWeightWords, words, factor);
  }
}

template <int kR, int kN>
[[gnu::always_inline]] inline void clear(Float (&acc)[kR][kN]) {
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) acc[r][n] = zero();
  }
}

// Fused: scores of kR rows and kN vectors of keys, turned into weights in registers. `first` is the first key's place in the block.
template <int kR, int kN, Visibility kVisibility>
[[gnu::noinline]] void weigh(const State& s, const Word* k, int64_t k_stride, int row, int first) {
  Float acc[kR][kN];
  clear(acc);
  dot_tile<kR, kN>(acc, s.q + row * s.q_stride, s.q_stride, k, k_stride, s.depth);
  if constexpr (kVisibility == Visibility::kSome) {
    const Float hidden = broadcast(kMinusInfinity);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const uint64_t bits = s.visible[row + r] >> first;
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n) acc[r][n] = select(static_cast<uint32_t>(bits >> (n * kLanes)), acc[r][n], hidden);
    }
  }
  Float largest[kR];
  Flags flags = no_flags();
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
    largest[r] = acc[r][0];
#pragma GCC unroll 8
    for (int n = 1; n < kN; ++n) largest[r] = max(largest[r], acc[r][n]);
    flags = above(flags, largest[r], broadcast(s.bar[row + r]));
  }
  if (__builtin_expect(any(flags), 0)) {
    Float copy[kR];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) copy[r] = largest[r];
    raise(s, row, kR, first / kPair, copy);
  }
  const Float scale = broadcast(s.scale);
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
    const Float shift = broadcast(s.shift[row + r]);
    float* l = s.l + (row + r) * kLanes;
    Float sum = load(l);
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) {
      acc[r][n] = exp2(fma(acc[r][n], scale, shift));
      sum = add(sum, acc[r][n]);
    }
    store(l, sum);
    store_weights<kN>(s.p + (row + r) * kWeightWords + first / kPair, acc[r]);
  }
}

// Not fused: scores only, to where the weights will be. With few registers the exponentials of a register tile leave the multiply-adds of
// the next one waiting; in a pass of their own (soften) many rows are in flight.
template <int kR, int kN>
[[gnu::noinline]] void score(const State& s, const Word* k, int64_t k_stride, int row, int first) {
  Float acc[kR][kN];
  clear(acc);
  dot_tile<kR, kN>(acc, s.q + row * s.q_stride, s.q_stride, k, k_stride, s.depth);
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
    float* to = reinterpret_cast<float*>(s.p + (row + r) * kWeightWords + first);
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) store(to + n * kLanes, acc[r][n]);
  }
}

// Scores of `vectors` vectors of keys of one row, in place, to weights.
template <Visibility kVisibility>
[[gnu::always_inline]] inline void soften_row(const State& s, int row, int first, int vectors) {
  float* p = reinterpret_cast<float*>(s.p + row * kWeightWords + first);
  if constexpr (kVisibility == Visibility::kSome) {
    const uint64_t bits = s.visible[row] >> first;
    for (int n = 0; n < vectors; ++n) {
      store(p + n * kLanes, select(static_cast<uint32_t>(bits >> (n * kLanes)), load(p + n * kLanes), broadcast(kMinusInfinity)));
    }
  }
  Float largest = load(p);
#pragma GCC unroll 8
  for (int n = 1; n < vectors; ++n) largest = max(largest, load(p + n * kLanes));
  if (__builtin_expect(any(above(no_flags(), largest, broadcast(s.bar[row]))), 0)) raise(s, row, 1, first, &largest);
  const Float scale = broadcast(s.scale), shift = broadcast(s.shift[row]);
  float* l = s.l + row * kLanes;
  Float sum = load(l);
#pragma GCC unroll 8
  for (int n = 0; n < vectors; ++n) {
    const Float weight = exp2(fma(load(p + n * kLanes), scale, shift));
    sum = add(sum, weight);
    store(p + n * kLanes, weight);
  }
  store(l, sum);
}

template <Visibility kVisibility>
[[gnu::noinline]] void soften(const State& s, int row, int count, int first, int vectors) {
  constexpr int kWhole = kBlock / kLanes;
  if (vectors == kWhole) {
    for (int r = 0; r < count; ++r) soften_row<kVisibility>(s, row + r, first, kWhole);
  } else {
    for (int r = 0; r < count; ++r) soften_row<kVisibility>(s, row + r, first, vectors);
  }
}

// o += weights x values for kR rows and a panel of kN vectors of columns. kAll: over the first `words` words of weights; kSome: over
// those of the keys in `seen`. The sums start from zero, so that nothing waits for the outputs, which come from the second level of cache.
template <int kR, int kN, Visibility kVisibility>
[[gnu::noinline]] void accumulate(float* o, const Word* p, const Word* v, uint64_t words_or_seen) {
  constexpr int64_t kWidth = kN * kLanes;
  Float acc[kR][kN];
  clear(acc);
  if constexpr (kVisibility == Visibility::kAll) {
    dot_tile<kR, kN>(acc, p, kWeightWords, v, kWidth, static_cast<int64_t>(words_or_seen));
  } else {
    constexpr uint64_t kWord = (uint64_t{1} << kPair) - 1;
    for (uint64_t seen = words_or_seen; seen != 0;) {
      const int word = __builtin_ctzll(seen) / kPair;
      seen &= ~(kWord << (word * kPair));
      dot_tile<kR, kN>(acc, p + word, kWeightWords, v + word * kWidth, kWidth, 1);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) {
      float* to = o + r * kWidth + n * kLanes;
      store(to, add(load(to), acc[r][n]));
    }
  }
}

// o += weights x values of the visible keys one by one: for tiles whose values hold infinities or NaN, which may reach only rows that see
// them.
[[gnu::noinline, gnu::cold]] void accumulate_visible(const State& s, const Word* v, int64_t v_stride, int row, int64_t column,
                                                     int64_t width) {
  for (uint64_t left = s.visible[row]; left != 0; left &= left - 1) {
    const int key = __builtin_ctzll(left);
    const float weight = weight_at(s.p + row * kWeightWords, key);
    float* o = outputs(s, row, column);
    for (int64_t c = 0; c < width; ++c) o[c] += weight * value_at(v + key / kPair * v_stride + c, key % kPair);
  }
}

// Calls with the number of rows or vectors as a constant.
template <int kMost, typename Call>
[[gnu::always_inline]] inline void with_constant(int value, const Call& call) {
  if constexpr (kMost > 1) {
    if (value < kMost) return with_constant<kMost - 1>(value, call);
  }
  call.template operator()<kMost>();
}

// At most kBlock keys of a tile, packed.
struct Block {
  const Word *k, *v;
  int padded;          // keys, with the zeros that fill the last vector
  int words;           // of weights of keys that exist
  Word const* next_k;  // of the block that follows, null: none

  const Word* values(int64_t column) const { return v + padded / kPair * column; }
};

// Memory that the next pass over the rows will read: a few lines are fetched into the second level of cache with every register tile, so
// that the pass does not begin with waiting for the third level or for memory.
struct Ahead {
  const char *at, *end;
  int64_t step;

  Ahead(const Word* from, int64_t words, int64_t tiles) {
    at = reinterpret_cast<const char*>(from);
    end = from == nullptr ? at : at + words * 4;
    step = round_up((words * 4 + tiles - 1) / tiles, 64);
  }
  [[gnu::always_inline]] inline void fetch() {
    const char* stop = end - at < step ? end : at + step;
    for (; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

template <int kGroup, Visibility kVisibility>
[[gnu::always_inline]] inline void weigh_rows(const State& s, const Word* k, int64_t k_stride, int vectors, int row, int count, int first,
                                              Ahead& ahead) {
  with_constant<kVectors>(vectors, [&]<int kN>() {
    const auto tile = [&]<int kR>(int at) {
      if constexpr (kFused) {
        weigh<kR, kN, kVisibility>(s, k, k_stride, at, first);
      } else {
        score<kR, kN>(s, k, k_stride, at, first);
      }
    };
    int at = row;
    for (; at + kGroup <= row + count; at += kGroup) {
      ahead.fetch();
      tile.template operator()<kGroup>(at);
    }
    if (at < row + count) with_constant<kGroup>(row + count - at, [&]<int kR>() { tile.template operator()<kR>(at); });
  });
}

// Keys that all rows see, or of which all rows see the same ones (State::visible, those in use).
template <Visibility kVisibility>
void weigh_alike(const State& s, const Block& block) {
  Ahead ahead(block.v, block.padded / kPair * s.columns, (s.rows / kRows + 1) * ((block.padded + kPanel - 1) / kPanel));
  for (int first = 0; first < block.padded; first += kPanel) {
    const int width = smaller(kPanel, block.padded - first);
    weigh_rows<kRows, kVisibility>(s, block.k + first * s.depth, width, width / kLanes, 0, s.rows, first, ahead);
  }
  if constexpr (!kFused) soften<kVisibility>(s, 0, s.rows, 0, block.padded / kLanes);
}

void values_alike(const State& s, const Block& block) {
  Ahead ahead(block.next_k, block.padded * s.depth, (s.rows / kRows + 1) * ((s.columns + kPanel - 1) / kPanel));
  for (int64_t column = 0; column < s.columns; column += kPanel) {
    const int width = static_cast<int>(s.columns - column < kPanel ? s.columns - column : kPanel);
    const Word* v = block.values(column);
    float* o = outputs(s, 0, column);
    const auto words = static_cast<uint64_t>(block.words);
    with_constant<kVectors>(width / kLanes, [&]<int kN>() {
      int row = 0;
      for (; row + kRows <= s.rows; row += kRows) {
        ahead.fetch();
        accumulate<kRows, kN, Visibility::kAll>(o + row * width, s.p + row * kWeightWords, v, words);
      }
      if (row < s.rows) {
        with_constant<kRows>(s.rows - row,
                             [&]<int kR>() { accumulate<kR, kN, Visibility::kAll>(o + row * width, s.p + row * kWeightWords, v, words); });
      }
    });
  }
}

// Rows with masks of their own: groups of kMaskRows rows pass over the vectors of keys that one of them sees.
void weigh_masked(const State& s, const Block& block) {
  Ahead ahead(block.v, block.padded / kPair * s.columns, s.rows / kMaskRows + 1);
  for (int row = 0, group = 0; row < s.rows; row += kMaskRows, ++group) {
    const int count = smaller(kMaskRows, s.rows - row);
    uint64_t seen = 0;
    for (int r = 0; r < count; ++r) seen |= s.visible[row + r];
    s.seen[group] = seen;
    if (seen == 0) continue;
    for (int first = 0; first < block.padded; first += kPanel) {
      const uint64_t bits = (seen >> first) & (~uint64_t{0} >> (64 - kPanel));
      if (bits == 0) continue;
      const int begin = __builtin_ctzll(bits) / kLanes, end = (63 - __builtin_clzll(bits)) / kLanes + 1, at = first + begin * kLanes;
      weigh_rows<kMaskRows, Visibility::kSome>(s, block.k + first * s.depth + begin * kLanes, smaller(kPanel, block.padded - first),
                                               end - begin, row, count, at, ahead);
      if constexpr (!kFused) soften<Visibility::kSome>(s, row, count, at, end - begin);
    }
  }
}

void values_masked(const State& s, const Block& block) {
  Ahead ahead(block.next_k, block.padded * s.depth, (s.rows / kMaskRows + 1) * ((s.columns + kPanel - 1) / kPanel));
  for (int64_t column = 0; column < s.columns; column += kPanel) {
    const int width = static_cast<int>(s.columns - column < kPanel ? s.columns - column : kPanel);
    const Word* v = block.values(column);
    float* o = outputs(s, 0, column);
    with_constant<kVectors>(width / kLanes, [&]<int kN>() {
      for (int row = 0, group = 0; row < s.rows; row += kMaskRows, ++group) {
        const uint64_t seen = s.seen[group];
        if (seen == 0) continue;
        ahead.fetch();
        with_constant<kMaskRows>(smaller(kMaskRows, s.rows - row), [&]<int kR>() {
          accumulate<kR, kN, Visibility::kSome>(o + row * width, s.p + row * kWeightWords, v, seen);
        });
      }
    });
  }
}

void values_unsafe(const State& s, const Block& block) {
  for (int64_t column = 0; column < s.columns; column += kPanel) {
    const int64_t width = s.columns - column < kPanel ? s.columns - column : kPanel;
    for (int row = 0; row < s.rows; ++row) accumulate_visible(s, block.values(column), width, row, column, width);
  }
}

int64_t columns_of(int32_t head_dim) { return round_up(head_dim, kLanes); }
int64_t staged_words(int32_t head_dim) { return round_up((head_dim + kPair - 1) / kPair, kLanes); }

int64_t attend_scratch_bytes(int32_t rows, int32_t head_dim) {
  const int64_t row_bytes = (staged_words(head_dim) + kBlock / kPair + columns_of(head_dim) + kLanes + 1) * 4 + 2 * 8;
  return round_up(round_up(rows, 16) * row_bytes, 64);
}

State make_state(const AttendArgs& a) {
  State s{};
  s.rows = a.rows;
  s.q_stride = staged_words(a.head_dim);
  s.columns = columns_of(a.head_dim);
  s.depth = (a.head_dim + kPair - 1) / kPair;
  const float scale = a.scale < 0 ? -a.scale : a.scale;  // a negative one is folded into q
  s.scale = scale * kLog2E;
  s.margin = kLazy / s.scale;
  char* at = static_cast<char*>(a.scratch);
  const int64_t rows = round_up(a.rows, 16);  // keeps every part aligned to 64 bytes
  const auto take = [&](int64_t bytes_per_row) {
    char* part = at;
    at += rows * bytes_per_row;
    return static_cast<void*>(part);
  };
  s.q = static_cast<Word*>(take(s.q_stride * 4));
  s.p = static_cast<Word*>(take(kBlock / kPair * 4));
  s.o = static_cast<float*>(take(s.columns * 4));
  s.l = static_cast<float*>(take(kLanes * 4));
  s.bar = static_cast<float*>(take(4));
  s.visible = static_cast<uint64_t*>(take(8));
  s.seen = static_cast<uint64_t*>(take(8));
  s.shift = a.shift;
  return s;
}

void begin_rows(const AttendArgs& a, const State& s) {
  constexpr int32_t kAhead = 12;
  for (int32_t r = 0; r < s.rows && r < kAhead; ++r) prefetch_row(a.q + a.token[r] * a.q_stride, a.storage, a.head_dim);
  for (int32_t r = 0; r < s.rows; ++r) {
    if (r + kAhead < s.rows) prefetch_row(a.q + a.token[r + kAhead] * a.q_stride, a.storage, a.head_dim);
    Word* q = s.q + r * s.q_stride;
    if (a.token[r] < a.query_length) {
      stage_row(q, a.q + a.token[r] * a.q_stride, a.storage, a.head_dim);
      if (a.scale < 0) {
        for (int64_t i = 0; i < s.q_stride; ++i) q[i] ^= kPair == 1 ? 0x80000000u : 0x80008000u;
      }
    } else {
      for (int64_t i = 0; i < s.q_stride; ++i) q[i] = 0;
    }
    for (int64_t c = 0; c < s.columns; c += kLanes) store(s.o + r * s.columns + c, zero());
    store(s.l + r * kLanes, zero());
    s.bar[r] = kMinusInfinity;
    s.shift[r] = 0;
  }
}

void finish_rows(const AttendArgs& a, const State& s) {
  alignas(64) float row[kLargestHeadDim];
  for (int32_t r = 0; r < s.rows; ++r) {
    const bool used = a.token[r] < a.query_length;
    const float sum = used ? reduce_add(load(s.l + r * kLanes)) : 0;
    const Float by = broadcast(sum == 0 ? 0 : 1 / sum);
    for (int64_t c = 0; c < s.columns; c += kLanes) store(row + c, used ? mul(load(outputs(s, r, c)), by) : zero());
    store_row(a.out + a.token[r] * a.out_stride, a.storage, row, a.head_dim);
    a.sum[r] = sum;
  }
}

void attend(const AttendArgs& a) {
  const State s = make_state(a);
  begin_rows(a, s);
  const PackedKeys& keys = a.keys;
  for (int64_t entry = 0; entry < a.entries; ++entry) {
    const int32_t tile = a.key_tile[entry], size = keys.tile_begin[tile + 1] - keys.tile_begin[tile];
    const int64_t padded = keys.padded_begin[tile + 1] - keys.padded_begin[tile];
    const Word* k = keys.k + keys.padded_begin[tile] * s.depth;
    const Word* v = keys.v + keys.padded_begin[tile] / kPair * s.columns;
    const Word* next_tile = entry + 1 < a.entries ? keys.k + keys.padded_begin[a.key_tile[entry + 1]] * s.depth : nullptr;
    const uint64_t* usable = keys.usable + keys.word_begin[tile];
    const int32_t mask = a.mask_of == nullptr ? -1 : a.mask_of[entry];
    const int64_t mask_stride = (size + 63) / 64;
    const uint64_t* mask_row = mask < 0 ? nullptr : a.mask_words + a.mask_begin[mask] + a.mask_row * mask_stride;
    for (int32_t first = 0; first < size; first += kBlock) {
      const uint64_t in_use = usable[first / kBlock];
      if (in_use == 0) continue;
      const Block block{.k = k + first * s.depth,
                        .v = v + first / kPair * s.columns,
                        .padded = static_cast<int>(padded - first < kBlock ? padded - first : kBlock),
                        .words = (smaller(kBlock, size - first) + kPair - 1) / kPair,
                        .next_k = first + kBlock < size ? k + (first + kBlock) * s.depth : next_tile};
      if (mask_row != nullptr) {
        for (int32_t r = 0; r < s.rows; ++r) s.visible[r] = in_use & mask_row[r * mask_stride + first / kBlock];
        weigh_masked(s, block);
        keys.unsafe[tile] == 0 ? values_masked(s, block) : values_unsafe(s, block);
        continue;
      }
      if (in_use == ~uint64_t{0} >> (64 - block.padded)) {
        weigh_alike<Visibility::kAll>(s, block);
      } else {
        for (int32_t r = 0; r < s.rows; ++r) s.visible[r] = in_use;
        weigh_alike<Visibility::kSome>(s, block);
      }
      values_alike(s, block);
    }
  }
  finish_rows(a, s);
}

int64_t pack_scratch_bytes(int32_t head_dim) { return kLanes * staged_words(head_dim) * 4; }

void stage_or_clear(Word* to, const PackArgs& a, const char* rows, int64_t stride, int32_t key) {
  if (key < a.tokens && a.token[key] < a.length) return stage_row(to, rows + a.token[key] * stride, a.storage, a.head_dim);
  const int64_t words = staged_words(a.head_dim);
  for (int64_t i = 0; i < words; ++i) to[i] = 0;
}

// Keys or values with each vector's keys side by side: panels of kPanel keys, each [depth][keys].
void pack_turned(const PackArgs& a, const char* rows, int64_t row_stride, Word* packed) {
  Word* staged = static_cast<Word*>(a.scratch);
  const int64_t stride = staged_words(a.head_dim), depth = (a.head_dim + kPair - 1) / kPair;
  const int32_t padded = static_cast<int32_t>(round_up(a.tokens, kLanes));
  for (int32_t key = 0; key < padded; key += kLanes) {
    for (int r = 0; r < kLanes; ++r) {
      stage_or_clear(staged + r * stride, a, rows, row_stride, key + r);
      // The next keys, in this tile or the next, and the values of these, which are read later.
      if (key + kLanes + r < a.listed) prefetch_row(rows + a.token[key + kLanes + r] * row_stride, a.storage, a.head_dim);
      if (rows == a.k && key + r < a.tokens) prefetch_row(a.v + a.token[key + r] * a.v_stride, a.storage, a.head_dim);
    }
    const int32_t panel = key / kPanel * kPanel, width = padded - panel < kPanel ? padded - panel : kPanel;
    Word* to = packed + panel * depth + (key - panel);
    for (int64_t d = 0; d < depth; d += kLanes) {
      Operand square[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) square[r] = load_operand(staged + r * stride + d);
      transpose(square);
      const int count = static_cast<int>(depth - d < kLanes ? depth - d : kLanes);
      for (int i = 0; i < count; ++i) store_operand(to + (d + i) * width, square[i]);
    }
  }
}

// Keys or values with each vector's columns side by side: blocks of kBlock keys, each of panels of kPanel columns, each
// [keys / pair][columns]. Returns whether one of them is an infinity or a NaN.
bool pack_rows(const PackArgs& a, const char* rows, int64_t row_stride, Word* packed) {
  Word* staged = static_cast<Word*>(a.scratch);
  const int64_t stride = staged_words(a.head_dim), columns = columns_of(a.head_dim);
  const int32_t padded = static_cast<int32_t>(round_up(a.tokens, kLanes));
  bool unsafe = false;
  for (int32_t key = 0; key < padded; key += kPair) {
    for (int r = 0; r < kPair; ++r) {
      stage_or_clear(staged + r * stride, a, rows, row_stride, key + r);
      unsafe |= is_unsafe(staged + r * stride, stride);
    }
    const int32_t block = key / kBlock * kBlock, block_padded = smaller(kBlock, padded - block);
    Word* to_block = packed + block / kPair * columns;
    for (int64_t column = 0; column < columns; column += kPanel) {
      const int64_t width = columns - column < kPanel ? columns - column : kPanel;
      Word* to = to_block + block_padded / kPair * column + (key - block) / kPair * width;
      for (int64_t c = 0; c < width; c += kLanes) pack_values(to + c, staged, stride, column + c);
    }
  }
  return unsafe;
}

// Reads each key once (head_dim elements of k and of v) and writes it once, packed; bound by the second level of cache. The plan reads
// what is packed here once for every query row that sees it.
bool pack(const PackArgs& a) {
  pack_turned(a, a.k, a.k_stride, a.k_packed);
  return pack_rows(a, a.v, a.v_stride, a.v_packed);
}
