// Forward attention on Hopper: a consumer, the warpgroup that multiplies a unit of 64 query rows with the steps of keys that it sees.
#pragma once

#include "slidetile/cuda/forward_sm90_epilogue.cuh"
#include "slidetile/cuda/forward_sm90_layout.cuh"
#include "slidetile/cuda/forward_sm90_softmax.cuh"

namespace slidetile::cuda {

/// A value that is the same in all lanes, for the compiler to keep in a uniform register.
__device__ __forceinline__ uint32_t uniform(uint32_t value) { return __shfl_sync(~0u, value, 0); }

__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

/// A descriptor in two words, joined where it is used: in one, the compiler computes its masks again for each use.
struct Descriptor {
  uint32_t low, high;

  __device__ __forceinline__ Descriptor(uint32_t low_word, uint32_t high_word) : low(low_word), high(high_word) {}
  __device__ __forceinline__ explicit Descriptor(uint64_t whole)
      : low(uniform(static_cast<uint32_t>(whole))), high(static_cast<uint32_t>(whole >> 32)) {}
  __device__ __forceinline__ uint64_t advanced(uint32_t bytes) const {
    uint64_t whole;
    asm volatile("mov.b64 %0, {%1, %2};" : "=l"(whole) : "r"(low + (bytes >> 4)), "r"(high));
    return whole;
  }
};

template <typename T, int kDim, int kStepRows, int kCluster, template <int> typename SoftmaxOf>
struct ForwardConsumer {
  using Layout = ForwardLayout<kDim, kStepRows>;
  using Control = typename Layout::Control;
  static constexpr int kScores = kStepRows / 2, kSums = kDim / 2;
  using Softmax = SoftmaxOf<kSums>;
  static constexpr int kParts = 4;  // of a step's second product, each in the shadow of the next part's exponentials

  const HopperForwardParams& p;
  const Control& control;
  uint32_t base, unit, thread;  // of the warpgroup, in it; base and unit are in uniform registers

  // Addresses in the loop are sums of base and constants: pointers would be converted again at each use.
  static constexpr uint32_t kKFull = Layout::kControl + offsetof(Control, k_full), kKEmpty = Layout::kControl + offsetof(Control, k_empty),
                            kVFull = Layout::kControl + offsetof(Control, v_full), kVEmpty = Layout::kControl + offsetof(Control, v_empty),
                            kQFull = Layout::kControl + offsetof(Control, q_full), kQEmpty = Layout::kControl + offsetof(Control, q_empty),
                            kItemEmpty = Layout::kControl + offsetof(Control, item_empty),
                            kStep = Layout::kControl + offsetof(Control, step);

  /// Tells the producers of every CTA of the cluster that this warpgroup is done with a stage.
  __device__ __forceinline__ void release(uint32_t barrier) const {
    if constexpr (kCluster == 1) {
      if (thread == 0) barrier_arrive(barrier);
    } else {
      if (thread < 2) barrier_arrive_cluster(cluster_address(barrier, thread));
    }
  }

  __device__ __forceinline__ void hide(float (&s)[kScores], uint32_t visible) const {
    const uint32_t column = 2 * (thread % 4);
#pragma unroll
    for (int word = 0; word < kStepRows / 32; ++word) {
      const uint32_t bits = load_shared(visible + 4 * word) >> column;
#pragma unroll
      for (int i = 0; i < 16; ++i) {  // columns 8 (i / 4) + column + i % 2 of the word, for both rows
        if (!(bits >> (8 * (i / 4) + i % 2) & 1)) s[16 * word + i] = -INFINITY;
      }
    }
  }

  /// Exponentials of a part of the scores, packed as the second product takes them.
  template <int kPart>
  __device__ __forceinline__ void exponentials(float (&s)[kScores], uint32_t (&packed)[kScores / 2], Softmax& softmax) const {
    constexpr int kCount = kScores / kParts, kFirst = kPart * kCount, kLag = 8;
#pragma unroll
    for (int i = 0; i < kCount + kLag; i += 2) {
      if (i < kCount) {
        const int at = kFirst + i, row = i / 2 % 2;
        s[at] = exp2_fast(fmaf(s[at], p.scale_log2, softmax.minus_reference[row]));
        s[at + 1] = exp2_fast(fmaf(s[at + 1], p.scale_log2, softmax.minus_reference[row]));
      }
      if (i >= kLag) {
        const int at = kFirst + i - kLag, row = i / 2 % 2;  // kLag is a multiple of 4
        softmax.sum[row] += s[at];
        softmax.sum[row] += s[at + 1];
        packed[at / 2] = pack<T>(s[at], s[at + 1]);
      }
    }
    pin(softmax.sum);
  }

  /// The product of a part of the weights with its values, added to o.
  template <int kPart>
  __device__ __forceinline__ void add_values(float (&o)[kSums], const uint32_t (&packed)[kScores / 2], Descriptor v) const {
    constexpr int kSlices = kStepRows / 16 / kParts;
    wgmma_fence();
#pragma unroll
    for (int k = kPart * kSlices; k < (kPart + 1) * kSlices; ++k) {
      wgmma_registers<T, kDim, 1>(o, &packed[4 * k], v.advanced(row_slice(k)), 1);
    }
    wgmma_commit();
  }

  /// Always 0, since sums are not negative. The compiler doesn't know and adds up before what needs this; left alone, it puts additions off
  /// and runs out of registers.
  static __device__ __forceinline__ uint32_t negative(const float (&sum)[2]) { return (sum[0] < 0) | (sum[1] < 0) ? 1 : 0; }

  /// A step as its warpgroup finds it: where its keys are and which of them it sees.
  struct Step {
    uint32_t stage, slot, flags;
  };

  /// Waits for the keys of the step at the ring's place.
  __device__ __forceinline__ Step wait_step(const Ring<Layout::kKeyStages>& ring, const float (&sum)[2]) const {
    const uint32_t place = uniform(ring.stage | ring.phase << 4), stage = place & 15, phase = place >> 4;
    barrier_wait(base + kKFull + 8 * stage, phase ^ negative(sum));
    const uint32_t slot = base + kStep + (stage + phase * Layout::kKeyStages) * sizeof(StepSlot);
    return {stage, slot, load_shared(slot + offsetof(StepSlot, flags)) >> unit};
  }

  __device__ __forceinline__ void multiply_keys(float (&s)[kScores], uint64_t q, uint32_t stage) const {
    const uint64_t k = operand_descriptor(base + Layout::kK + stage * Layout::kStageBytes, 16);
    wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < kDim / 16; ++slice) {
      wgmma_shared<T, kStepRows>(s, advanced(q, channel_slice(slice, kUnitRows)), advanced(k, channel_slice(slice, kStepRows)), slice != 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    release(base + kKEmpty + 8 * stage);
  }

  __device__ __forceinline__ void run() const {
    Ring<Layout::kKeyStages> k_ring;
    Ring<Layout::kValueStages> v_ring;
    const uint64_t q = operand_descriptor(base + Layout::kQ + unit * Layout::kUnitBytes, 16);
    const Descriptor values(operand_descriptor(base + Layout::kV, kStepRows * kSlabRowBytes));
    for (uint32_t turn = 0;; ++turn) {
      barrier_wait(base + kQFull, turn & 1);
      if (control.item[turn % kItemSlots].head < 0) break;
      float o[kSums];
#pragma unroll
      for (int i = 0; i < kSums; ++i) o[i] = 0;
      Softmax softmax;
      for (;;) {
        Step step = wait_step(k_ring, softmax.sum);
        if (!(step.flags & 1)) {  // nothing to see, or the end; the warps must not drift apart
          named_sync(1 + static_cast<int>(unit), 128);
          const bool ends = (step.flags & (kStepEnd >> unit)) != 0;
          if (ends && thread == 0) barrier_arrive(base + kQEmpty);
          release(base + kKEmpty + 8 * step.stage);
          k_ring.advance();
          if (ends) break;
          barrier_wait(base + kVFull + 8 * v_ring.stage, v_ring.phase);
          named_sync(1 + static_cast<int>(unit), 128);
          release(base + kVEmpty + 8 * v_ring.stage);
          v_ring.advance();
          continue;
        }
        float s[kScores];
        multiply_keys(s, q, step.stage);
        for (;;) {  // from scores to scores
          k_ring.advance();
          const uint32_t place = uniform(v_ring.stage | v_ring.phase << 4), v_stage = place & 15, v_phase = place >> 4;
          const uint32_t v_full = base + kVFull + 8 * v_stage;
          const bool v_here = barrier_test(v_full, v_phase);
          if (step.flags >> kStepPartial & 1) [[unlikely]]
            hide(s, step.slot + offsetof(StepSlot, visible) + unit * 16);
          softmax.prepare(s, o, p);

          uint32_t packed[kScores / 2];
          const Descriptor v{values.low + v_stage * (Layout::kStageBytes >> 4), values.high};
          exponentials<0>(s, packed, softmax);
          if (!v_here | (negative(softmax.sum) != 0)) barrier_wait(v_full, v_phase);
          add_values<0>(o, packed, v);
          exponentials<1>(s, packed, softmax);
          add_values<1>(o, packed, v);
          exponentials<2>(s, packed, softmax);
          add_values<2>(o, packed, v);
          exponentials<3>(s, packed, softmax);
          add_values<3>(o, packed, v);
          v_ring.advance();
          step = wait_step(k_ring, softmax.sum);  // while the products run
          wgmma_wait<0>();
          pin(o);
          release(base + kVEmpty + 8 * v_stage);
          if (!(step.flags & 1)) break;
          multiply_keys(s, q, step.stage);
        }
      }
      store_unit<T, kDim>(p, {control.item[turn % kItemSlots], unit, thread}, o, softmax);
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(base + kItemEmpty + 8 * (turn % kItemSlots));
    }
  }
};

}  // namespace slidetile::cuda
