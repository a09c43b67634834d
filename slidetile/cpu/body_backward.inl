// The backward kernel body that every instruction set shares, included after body.inl. Further primitives:
//
//   store_pairs   rows of a register tile as words of kPair rows each: what a product over query rows reads
//   load_pair     the row of such words as floats
//
// With S = Q K^T, P = exp(scale S - lse), dP = dO V^T and dS = P (dP - delta), where delta_i = dO_i . O_i:
//   dQ = scale dS K    dK = scale dS^T Q    dV = P^T dO
//
// A run of query rows passes over its key tiles, a block of 64 keys at a time:
//   S, then P      rows x keys    Q from rows, K turned; P is made in registers and stored as pairs of rows
//   dP, then dS    rows x keys    dO from rows, V turned; dS is stored as pairs of rows, and as pairs of keys where words are pairs
//   dV, dK         keys x D       P and dS read down their columns, dO and Q as rows of vectors: the sum over the run's rows in registers
//   dQ             rows x D       dS from rows, K as rows of vectors
//
// Cost model, per query row and 16 keys of head_dim D (AVX-512; one "op" is one vector instruction on the multiply-add pipes):
//   products   5 D / kPair ops
//   P and dS   5 + degree ops, 3 stores
//   sums       dQ: D / 64 loads, additions and stores; dK and dV: 2 D / rows of them
// so at D = 128 the multiply-adds are 97 % of the ops in bf16 and 98 % in f32. The rows' own state (q, dO, dq, P, dS: D * (16 / kPair + 4)
// + 768 / kPair bytes each) and a block of keys with its sums (64 D (12 / kPair + 8) bytes) stay in the second level of cache; the block is
// read from the third or from memory once for all rows, and its sums are written back: at 192 rows a byte for every 1400 operations.

// A run of query rows while it passes over the keys.
struct GradientState {
  Word *q, *dout;              // [rows][q_stride]
  Word *q_pairs, *dout_pairs;  // as rows of vectors: see panel_of
  Word* p;                     // [rows / kPair][kBlock] weights of the current block
  Word* ds_pairs;              // [rows / kPair][kBlock]
  Word* ds;                    // [rows][kBlock / kPair]; the same memory where kPair is 1
  float* dq;                   // panels of kPanel columns (the last narrower), each [rows][columns]
  float *shift, *minus_delta;  // [rows] -lse log2(e), -delta
  uint64_t* visible;           // [rows] keys of the current block
  uint8_t* used;               // [rows] the row exists and is in use
  int64_t q_stride, columns, depth;
  int32_t rows;  // with the one that fills the last pair
  float scale;   // times log2(e)
  bool all_used, unsafe;
};

// Query rows as the right side of a product over them: panels of columns, each [rows / kPair][columns], where words are pairs of rows. A
// float is a word as it is, and the rows themselves serve.
struct Panel {
  const Word* at;
  int64_t stride;
};
[[gnu::always_inline]] inline Panel panel_of(const GradientState& s, const Word* pairs, int64_t column, int64_t width) {
  if constexpr (kPair == 1) {
    return {pairs + column, s.q_stride};
  } else {
    return {pairs + s.rows / kPair * column, width};
  }
}

// P of kR rows and kN vectors of keys. `first` is the first key's place in the block.
template <int kR, int kN, Visibility kVisibility>
[[gnu::noinline]] void weigh_again(const GradientState& s, const Word* k, int64_t k_stride, int row, int first) {
  Float acc[kR][kN];
  clear(acc);
  dot_tile<kR, kN>(acc, s.q + row * s.q_stride, s.q_stride, k, k_stride, s.depth);
  const Float scale = broadcast(s.scale);
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
    const Float shift = broadcast(s.shift[row + r]);
    const uint64_t bits = kVisibility == Visibility::kSome ? s.visible[row + r] >> first : 0;
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) {
      acc[r][n] = exp2(fma(acc[r][n], scale, shift));
      if constexpr (kVisibility == Visibility::kSome) acc[r][n] = select(static_cast<uint32_t>(bits >> (n * kLanes)), acc[r][n], zero());
    }
  }
  store_pairs<kR, kN>(s.p + row / kPair * kBlock + first, kBlock, acc);
}

// dS of kR rows and kN vectors of keys.
template <int kR, int kN, Visibility kVisibility>
[[gnu::noinline]] void differentiate(const GradientState& s, const Word* v, int64_t v_stride, int row, int first) {
  Float acc[kR][kN];
  clear(acc);
  dot_tile<kR, kN>(acc, s.dout + row * s.q_stride, s.q_stride, v, v_stride, s.depth);
#pragma GCC unroll 8
  for (int r = 0; r < kR; ++r) {
    const Float minus_delta = broadcast(s.minus_delta[row + r]);
    const uint64_t bits = kVisibility == Visibility::kSome ? s.visible[row + r] >> first : 0;
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) {
      const Float p = load_pair(s.p + (row + r) / kPair * kBlock + first + n * kLanes, r % kPair);
      acc[r][n] = mul(p, add(acc[r][n], minus_delta));
      if constexpr (kVisibility == Visibility::kSome) acc[r][n] = select(static_cast<uint32_t>(bits >> (n * kLanes)), acc[r][n], zero());
    }
    if constexpr (kPair != 1) store_weights<kN>(s.ds + (row + r) * kWeightWords + first / kPair, acc[r]);
  }
  store_pairs<kR, kN>(s.ds_pairs + row / kPair * kBlock + first, kBlock, acc);
}

// o += a^T b over `count` words of query rows, for kR keys and kN vectors of columns.
template <int kR, int kN>
[[gnu::noinline]] void accumulate_down(float* o, const Word* a, Panel b, int64_t count) {
  constexpr int64_t kWidth = kN * kLanes;
  Float acc[kR][kN];
  clear(acc);
  const Word* right_at = b.at;
  for (int64_t i = 0; i < count; ++i, a += kBlock, right_at += b.stride) {
    Operand right[kN];
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) right[n] = load_operand(right_at + n * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      const Operand left = broadcast_operand(a + r);
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n) acc[r][n] = dot(acc[r][n], left, right[n]);
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

// At most kBlock keys of a tile, packed, and their sums.
struct GradientBlock {
  const Word *k, *v, *k_rows;
  float *dk, *dv;
  int keys, padded;    // those that exist, and with the zeros that fill the last vector
  Word const* next_k;  // of the block that follows, null: none
};

// Calls tile<kR>(row) for groups of kRows rows; the rest comes in whole pairs.
template <typename Tile>
[[gnu::always_inline]] inline void for_row_groups(int rows, const Tile& tile) {
  int row = 0;
  for (; row + kRows <= rows; row += kRows) tile.template operator()<kRows>(row);
  if (row < rows) {
    with_constant<kRows / kPair>((rows - row) / kPair, [&]<int kPairs>() { tile.template operator()<kPairs * kPair>(row); });
  }
}

void hide_rows(const GradientState& s, int row, int count, int first, int width) {
  for (int r = 0; r < count; r += kPair) {
    for (int k = 0; k < width; k += kLanes) {
      store_operand(s.p + (row + r) / kPair * kBlock + first + k, Operand{});
      store_operand(s.ds_pairs + (row + r) / kPair * kBlock + first + k, Operand{});
    }
  }
  if constexpr (kPair == 1) return;
  for (int r = 0; r < count; ++r) {
    for (int k = 0; k < width / kPair; ++k) s.ds[(row + r) * kWeightWords + first / kPair + k] = 0;
  }
}

[[gnu::always_inline]] inline bool any_visible(const GradientState& s, int row, int count) {
  uint64_t seen = 0;
  for (int r = 0; r < count; ++r) seen |= s.visible[row + r];
  return seen != 0;
}

template <Visibility kVisibility>
void scores(const GradientState& s, const GradientBlock& block) {
  const int64_t tiles = (s.rows / kRows + 1) * ((block.padded + kPanel - 1) / kPanel);
  Ahead values(block.v, block.padded * s.depth, tiles), sums(reinterpret_cast<const Word*>(block.dv), block.padded * s.columns, tiles);
  for (int first = 0; first < block.padded; first += kPanel) {
    const int width = smaller(kPanel, block.padded - first);
    const Word* k = block.k + first * s.depth;
    with_constant<kVectors>(width / kLanes, [&]<int kN>() {
      for_row_groups(s.rows, [&]<int kR>(int row) {
        values.fetch();
        sums.fetch();
        if constexpr (kVisibility == Visibility::kSome) {
          if (!any_visible(s, row, kR)) return hide_rows(s, row, kR, first, width);
        }
        weigh_again<kR, kN, kVisibility>(s, k, width, row, first);
      });
    });
  }
}

template <Visibility kVisibility>
void differences(const GradientState& s, const GradientBlock& block) {
  const int64_t tiles = (s.rows / kRows + 1) * ((block.padded + kPanel - 1) / kPanel);
  Ahead sums(reinterpret_cast<const Word*>(block.dk), block.padded * s.columns, tiles);
  for (int first = 0; first < block.padded; first += kPanel) {
    const int width = smaller(kPanel, block.padded - first);
    const Word* v = block.v + first * s.depth;
    with_constant<kVectors>(width / kLanes, [&]<int kN>() {
      for_row_groups(s.rows, [&]<int kR>(int row) {
        sums.fetch();
        if constexpr (kVisibility == Visibility::kSome) {
          if (!any_visible(s, row, kR)) return;
        }
        differentiate<kR, kN, kVisibility>(s, v, width, row, first);
      });
    });
  }
}

// sums += left^T right over the rows, for the keys of a block.
void sum_down(const GradientState& s, const GradientBlock& block, float* sums, const Word* left, const Word* right, Ahead& ahead) {
  for (int64_t column = 0; column < s.columns; column += kPanel) {
    const int64_t width = s.columns - column < kPanel ? s.columns - column : kPanel;
    const Panel panel = panel_of(s, right, column, width);
    float* o = sums + block.padded * column;
    with_constant<kVectors>(static_cast<int>(width / kLanes), [&]<int kN>() {
      int key = 0;
      for (; key + kRows <= block.keys; key += kRows) {
        ahead.fetch();
        accumulate_down<kRows, kN>(o + key * width, left + key, panel, s.rows / kPair);
      }
      if (key < block.keys) {
        with_constant<kRows>(block.keys - key,
                             [&]<int kR>() { accumulate_down<kR, kN>(o + key * width, left + key, panel, s.rows / kPair); });
      }
    });
  }
}

void sum_across(const GradientState& s, const GradientBlock& block) {
  State rows{};  // dQ += dS K is what the forward pass does with weights and values
  rows.p = s.ds;
  rows.o = s.dq;
  rows.rows = s.rows;
  rows.columns = s.columns;
  rows.depth = s.depth;
  values_alike(
      rows,
      Block{.k = nullptr, .v = block.k_rows, .padded = block.padded, .words = (block.keys + kPair - 1) / kPair, .next_k = block.next_k});
}

// The three sums pair by pair: for blocks with masks where q, dO or K hold infinities or NaN, which may reach only pairs that see them.
[[gnu::noinline, gnu::cold]] void sum_visible(const GradientState& s, const GradientBlock& block) {
  for (int row = 0; row < s.rows; ++row) {
    for (uint64_t left = s.visible[row]; left != 0; left &= left - 1) {
      const int key = __builtin_ctzll(left);
      const float p = value_at(s.p + row / kPair * kBlock + key, row % kPair);
      const float ds = value_at(s.ds_pairs + row / kPair * kBlock + key, row % kPair);
      for (int64_t column = 0; column < s.columns; ++column) {
        const int64_t panel = column / kPanel * kPanel, width = s.columns - panel < kPanel ? s.columns - panel : kPanel;
        const int64_t at = block.padded * panel + key * width + (column - panel);
        const int64_t word = row * s.q_stride + column / kPair;
        const int part = static_cast<int>(column % kPair);
        block.dv[at] += p * value_at(s.dout + word, part);
        block.dk[at] += ds * value_at(s.q + word, part);
        s.dq[panel * s.rows + row * width + (column - panel)] +=
            ds * value_at(block.k_rows + block.padded / kPair * panel + key / kPair * width + (column - panel), key % kPair);
      }
    }
  }
}

constexpr int64_t kStateRows = 16;  // rows are counted in so many, to keep every part aligned to 64 bytes

int64_t gradient_scratch_bytes(int32_t rows, int32_t head_dim) {
  const int64_t staged = staged_words(head_dim) * 4, columns = columns_of(head_dim) * 4;
  const int64_t row_bytes = 2 * staged + columns + 2 * kBlock * 4 / kPair + 2 * 4 + 8 + 1;
  const int64_t pairs_bytes = kPair == 1 ? 0 : 2 * columns / kPair + kBlock * 4 / kPair;
  return round_up(round_up(rows, kStateRows) * (row_bytes + pairs_bytes), 64);
}

GradientState make_gradient_state(const GradientArgs& a) {
  GradientState s{};
  s.rows = static_cast<int32_t>(round_up(a.rows, kPair));
  s.q_stride = staged_words(a.head_dim);
  s.columns = columns_of(a.head_dim);
  s.depth = (a.head_dim + kPair - 1) / kPair;
  s.scale = a.scale * kLog2E;
  char* at = static_cast<char*>(a.scratch);
  const int64_t rows = round_up(a.rows, kStateRows);
  const auto take = [&](int64_t bytes_per_row) {
    char* part = at;
    at += rows * bytes_per_row;
    return static_cast<void*>(part);
  };
  s.q = static_cast<Word*>(take(s.q_stride * 4));
  s.dout = static_cast<Word*>(take(s.q_stride * 4));
  s.dq = static_cast<float*>(take(s.columns * 4));
  s.p = static_cast<Word*>(take(kBlock * 4 / kPair));
  s.ds_pairs = static_cast<Word*>(take(kBlock * 4 / kPair));
  s.ds = kPair == 1 ? s.ds_pairs : static_cast<Word*>(take(kBlock * 4 / kPair));
  s.q_pairs = kPair == 1 ? s.q : static_cast<Word*>(take(s.columns * 4 / kPair));
  s.dout_pairs = kPair == 1 ? s.dout : static_cast<Word*>(take(s.columns * 4 / kPair));
  s.shift = static_cast<float*>(take(4));
  s.minus_delta = static_cast<float*>(take(4));
  s.visible = static_cast<uint64_t*>(take(8));
  s.used = static_cast<uint8_t*>(take(1));
  return s;
}

float dot_rows(const char* a, const char* b, Storage storage, int64_t head_dim) {
  const int64_t bytes = storage_bytes(storage);
  Float sum = zero();
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) sum = fma(load_storage(a + d * bytes, storage), load_storage(b + d * bytes, storage), sum);
  if (d < head_dim) sum = fma(load_tail(a + d * bytes, storage, head_dim - d), load_tail(b + d * bytes, storage, head_dim - d), sum);
  return reduce_add(sum);
}

void pair_rows(const GradientState& s, Word* to, const Word* staged) {
  if constexpr (kPair == 1) return;
  for (int64_t column = 0; column < s.columns; column += kPanel) {
    const int64_t width = s.columns - column < kPanel ? s.columns - column : kPanel;
    Word* panel = to + s.rows / kPair * column;
    for (int32_t r = 0; r < s.rows; r += kPair) {
      for (int64_t c = 0; c < width; c += kLanes) {
        pack_values(panel + r / kPair * width + c, staged + r * s.q_stride, s.q_stride, column + c);
      }
    }
  }
}

void begin_gradients(const GradientArgs& a, GradientState& s) {
  s.all_used = s.rows == a.rows;
  for (int32_t r = 0; r < s.rows; ++r) {
    Word *q = s.q + r * s.q_stride, *dout = s.dout + r * s.q_stride;
    s.used[r] = r < a.rows && a.token[r] < a.query_length;
    s.shift[r] = s.minus_delta[r] = 0;
    if (s.used[r] != 0) {
      const int64_t token = a.token[r];
      const char* dout_row = a.dout + token * a.dout_stride;
      stage_row(q, a.q + token * a.q_stride, a.storage, a.head_dim);
      stage_row(dout, dout_row, a.storage, a.head_dim);
      s.unsafe |= is_unsafe(q, s.q_stride) || is_unsafe(dout, s.q_stride);
      s.minus_delta[r] = -dot_rows(dout_row, a.out + token * a.out_stride, a.storage, a.head_dim);
      s.shift[r] = -kLog2E * *reinterpret_cast<const float*>(reinterpret_cast<const char*>(a.lse) + token * a.lse_stride);
    } else {
      s.all_used = false;
      for (int64_t i = 0; i < s.q_stride; ++i) q[i] = dout[i] = 0;
    }
  }
  for (int64_t i = 0; i < s.rows * s.columns; i += kLanes) store(s.dq + i, zero());
  pair_rows(s, s.q_pairs, s.q);
  pair_rows(s, s.dout_pairs, s.dout);
}

void finish_gradients(const GradientArgs& a, const GradientState& s) {
  alignas(64) float row[kLargestHeadDim];
  State sums{};
  sums.o = s.dq;
  sums.rows = s.rows;
  sums.columns = s.columns;
  const Float scale = broadcast(a.scale);
  for (int32_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < s.columns; c += kLanes) store(row + c, s.used[r] != 0 ? mul(load(outputs(sums, r, c)), scale) : zero());
    store_row(a.dq + a.token[r] * a.dq_stride, a.storage, row, a.head_dim);
  }
}

void attend_gradients(const GradientArgs& a) {
  GradientState s = make_gradient_state(a);
  begin_gradients(a, s);
  const GradientKeys& keys = a.keys;
  for (int64_t entry = 0; entry < a.entries; ++entry) {
    const int32_t tile = a.key_tile[entry], size = keys.tile_begin[tile + 1] - keys.tile_begin[tile];
    const int64_t begin = keys.padded_begin[tile], padded = keys.padded_begin[tile + 1] - begin;
    const Word *k = keys.k + begin * s.depth, *v = keys.v + begin * s.depth, *k_rows = keys.k_rows + begin / kPair * s.columns;
    const Word* next_tile = entry + 1 < a.entries ? keys.k + keys.padded_begin[a.key_tile[entry + 1]] * s.depth : nullptr;
    const uint64_t* usable = keys.usable + keys.word_begin[tile];
    const int32_t mask = a.mask_of == nullptr ? -1 : a.mask_of[entry];
    const int64_t mask_stride = (size + 63) / 64;
    const uint64_t* mask_row = mask < 0 ? nullptr : a.mask_words + a.mask_begin[mask] + a.mask_row * mask_stride;
    bool entered = false;
    for (int32_t first = 0; first < size; first += kBlock) {
      const uint64_t in_use = usable[first / kBlock];
      const GradientBlock block{.k = k + first * s.depth,
                                .v = v + first * s.depth,
                                .k_rows = k_rows + first / kPair * s.columns,
                                .dk = keys.dk + (begin + first) * s.columns,
                                .dv = keys.dv + (begin + first) * s.columns,
                                .keys = smaller(kBlock, size - first),
                                .padded = static_cast<int>(padded - first < kBlock ? padded - first : kBlock),
                                .next_k = first + kBlock < size ? k + (first + kBlock) * s.depth : next_tile};
      const bool all = mask_row == nullptr && s.all_used && in_use == ~uint64_t{0} >> (64 - block.padded);
      if (all) {
        scores<Visibility::kAll>(s, block);
        differences<Visibility::kAll>(s, block);
      } else {
        for (int32_t r = 0; r < s.rows; ++r) {
          s.visible[r] = s.used[r] == 0 ? 0 : mask_row == nullptr ? in_use : in_use & mask_row[r * mask_stride + first / kBlock];
        }
        if (!any_visible(s, 0, s.rows)) continue;
        scores<Visibility::kSome>(s, block);
        differences<Visibility::kSome>(s, block);
      }
      if (!entered) a.enter(a.driver, entry);
      entered = true;
      if (!all && (s.unsafe || keys.unsafe[tile] != 0)) {
        sum_visible(s, block);
        continue;
      }
      const int64_t tiles = (block.keys / kRows + 1) * ((s.columns + kPanel - 1) / kPanel);
      Ahead rows(block.k_rows, block.padded / kPair * s.columns, tiles), none(nullptr, 0, 1);
      sum_down(s, block, block.dv, s.p, s.dout_pairs, rows);
      sum_down(s, block, block.dk, s.ds_pairs, s.q_pairs, none);
      sum_across(s, block);
    }
    if (!entered) a.enter(a.driver, entry);
    a.leave(a.driver, entry);
  }
  finish_gradients(a, s);
}

// Reads each key once and writes it three times, packed, and clears its sums.
bool pack_gradients(const PackGradientsArgs& a) {
  const PackArgs& tile = a.tile;
  pack_turned(tile, tile.k, tile.k_stride, tile.k_packed);
  pack_turned(tile, tile.v, tile.v_stride, tile.v_packed);
  const bool unsafe = pack_rows(tile, tile.k, tile.k_stride, a.k_rows);
  const int64_t floats = round_up(tile.tokens, kLanes) * columns_of(tile.head_dim);
  for (int64_t i = 0; i < floats; i += kLanes) {
    store(a.dk + i, zero());
    store(a.dv + i, zero());
  }
  return unsafe;
}

void write_gradients(const WriteGradientsArgs& a) {
  alignas(64) float row[2][kLargestHeadDim];
  const int64_t columns = columns_of(a.head_dim), padded = round_up(a.tokens, kLanes);
  const Float scale = broadcast(a.scale);
  for (int32_t key = 0; key < a.tokens; ++key) {
    const int64_t block = key / kBlock * kBlock, block_padded = padded - block < kBlock ? padded - block : kBlock;
    const bool used = a.token[key] < a.length;
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t panel = c / kPanel * kPanel, width = columns - panel < kPanel ? columns - panel : kPanel;
      const int64_t at = block * columns + block_padded * panel + (key - block) * width + (c - panel);
      store(row[0] + c, used ? mul(load(a.sums_k + at), scale) : zero());
      store(row[1] + c, used ? load(a.sums_v + at) : zero());
    }
    store_row(a.dk + a.token[key] * a.dk_stride, a.storage, row[0], a.head_dim);
    store_row(a.dv + a.token[key] * a.dv_stride, a.storage, row[1], a.head_dim);
  }
}

constexpr BackwardEngine kBackwardEngine = {kLanes,           kPair,          pack_scratch_bytes, gradient_scratch_bytes, pack_gradients,
                                            attend_gradients, write_gradients};
