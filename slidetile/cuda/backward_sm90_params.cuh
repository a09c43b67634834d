// Arguments of the Hopper backward kernels, how they lay out shared memory, and the item that a ticket stands for.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "slidetile/cuda/backward_lowering.h"
#include "slidetile/cuda/tensor_map.h"
#include "slidetile/cuda/wgmma_descriptor.h"

namespace slidetile::cuda {

constexpr int kBackwardThreads = 384, kConsumerThreads = 256, kGroupThreads = 128;
constexpr int kConsumers = 1, kSumsReady = 2, kScoresReady = 4;  // named barriers: one, a pair of stages, a pair for each warpgroup
constexpr float kLog2E = 1.4426950408889634f;

/// Where the tokens of a block lie in the sequence.
struct TokenGeometry {
  int32_t first = 0;             // token of the canvas's origin
  int32_t h = 0, w = 0;          // the canvas's
  int32_t box_h = 1, box_w = 1;  // of a block on the canvas

  __device__ __forceinline__ int32_t token(const Block& block, int32_t row) const {
    if ((block.flags & kBlockExtra) != 0) return block.w + row;
    const int32_t plane = box_h * box_w, in_plane = row % plane;
    return first + ((block.t + row / plane) * h + block.h + in_plane / box_w) * w + block.w + in_plane % box_w;
  }
  static __device__ __forceinline__ bool valid(const Block& block, int32_t row) { return (block.valid[row / 32] >> (row % 32) & 1) != 0; }
};

struct Strides {
  int64_t batch = 0, head = 0, token = 0;
};

struct TensorMaps {
  CUtensorMap canvas, extra;
  SheetSteps steps;
};

struct BackwardParams {
  TensorMaps q, dout, k, v;
  BackwardLowering tables;
  TokenGeometry query, key;
  const int32_t* head_class = nullptr;  // [plan_heads]
  const int32_t *query_lengths = nullptr, *key_lengths = nullptr;
  int32_t plan_heads = 0;                                                              // 1 serves any number
  int32_t heads = 0, sheets = 0;                                                       // sheets: batch x heads
  int32_t query_bytes = 0, key_bytes = 0, query_extra_bytes = 0, key_extra_bytes = 0;  // of a block, per 64 channels
  float scale = 0;
  // For the kernels before and after.
  const void *out = nullptr, *dout_data = nullptr;
  const float* lse = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  Strides out_strides, dout_strides, lse_strides, dq_strides, dk_strides, dv_strides;
  // Workspace.
  float* dq_sums = nullptr;    // [sheets][query blocks][2][head_dim / 16][128][4] as accumulators hold them
  float* lse_terms = nullptr;  // [sheets][query blocks][64] lse in base 2, +inf: a row that takes no part; deep: what S begins at
  float* delta = nullptr;      // [sheets][query blocks][64] sum of out * dout; deep: minus that
  float* partials = nullptr;   // [sheets][partials][dk, dv][2][head_dim / 8][128][4]
  int32_t* turn = nullptr;     // [sheets][query blocks] key blocks that have added to it
  int32_t* ticket = nullptr;   // next item
};

template <int kDim>
struct BackwardShared {
  static constexpr uint32_t kSlabs = kDim / 64;
  static constexpr uint32_t kQuerySlab = kBackwardQueryRows * kSlabRowBytes, kKeySlab = kBackwardKeyRows * kSlabRowBytes;
  static constexpr uint32_t kQueryTile = kSlabs * kQuerySlab, kKeyTile = kSlabs * kKeySlab;
  static constexpr uint32_t kScores = kKeySlab;  // dS^T: 128 keys x 64 queries
  static constexpr uint32_t kSums = kBackwardQueryRows * kDim * 4, kRowTerms = kBackwardQueryRows * 4;
  static constexpr uint32_t kK = 0, kV = kKeyTile, kQ = 2 * kKeyTile, kDout = kQ + 2 * kQueryTile, kDs = kDout + 2 * kQueryTile;
  static constexpr uint32_t kDq = kDs + 2 * kScores, kLse = kDq + 2 * kSums, kDelta = kLse + 2 * kRowTerms;
  static constexpr uint32_t kBarriers = kDelta + 2 * kRowTerms, kTicket = kBarriers + 128, kBytes = kTicket + 16;
  // Barriers. Pairs are two stages; what brings blocks to clear is the feeding warps' own.
  static constexpr uint32_t kKvFull = kBarriers, kKvEmpty = kKvFull + 8, kQFull = kKvEmpty + 8, kQEmpty = kQFull + 16,
                            kDoutFull = kQEmpty + 16;
  static constexpr uint32_t kDoutEmpty = kDoutFull + 16, kDqEmpty = kDoutEmpty + 16, kQBrought = kDqEmpty + 16,
                            kDoutBrought = kQBrought + 8;
};

/// An item and whose it is.
struct BackwardWork {
  int32_t sheet, batch, head;
  BackwardItem item;
};

/// Lists of query tiles by the order in which key blocks add to dq.
template <bool kInTurn>
__device__ __forceinline__ const BackwardVisit* visits_of(const BackwardParams& p) {
  return kInTurn ? p.tables.visit_in_turn : p.tables.visit;
}

__device__ __forceinline__ int32_t class_of(const BackwardParams& p, int32_t head) { return p.head_class[p.plan_heads == 1 ? 0 : head]; }

// Sheets one after the other: the items at work at a time share most of their queries.
__device__ __forceinline__ BackwardWork work_of(const BackwardParams& p, int32_t ticket) {
  BackwardWork work;
  work.sheet = ticket / p.tables.items;
  work.batch = work.sheet / p.heads;
  work.head = work.sheet - work.batch * p.heads;
  work.item = p.tables.item[class_of(p, work.head) * p.tables.items + ticket - work.sheet * p.tables.items];
  return work;
}

/// Two orders in which a step's products are issued. Deep: dq a step late, issued with dP and dV; the next step's S under dV, its
/// exponentials under dK; the warpgroups tell each other of dS instead of meeting. It needs the registers of the slices of K, and sums of S
/// and dP that begin at minus their row terms. In turn it is slower, and at head_dim 64 it was never measured.
template <int kDim, bool kInTurn>
constexpr bool kDeep = kDim == 128 && !kInTurn;

/// What S begins at where a row takes no part, whatever the keys: P is 0.
constexpr float kNoRow = 1e30f;

}  // namespace slidetile::cuda
