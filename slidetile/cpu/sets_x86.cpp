// The sets of x86-64, and what the processor and the operating system must have for each: CPUID bits, and the register state that XCR0 says
// the system saves.
#include <cpuid.h>

#include <array>

#include "slidetile/cpu/backward.h"
#include "slidetile/cpu/forward.h"
#include "slidetile/cpu/sets.h"

namespace slidetile::cpu {
namespace {

struct Features {
  bool avx2 = false, avx512 = false, avx512bf16 = false;  // the processor has it
  bool saves_avx = false, saves_avx512 = false;           // and the system saves its registers
  bool intel = false;
};

constexpr bool has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

Features detect() noexcept {
  Features f;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(0, &a, &b, &c, &d) == 0) return f;
  f.intel = b == signature_INTEL_ebx && d == signature_INTEL_edx && c == signature_INTEL_ecx;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0) return f;
  const bool base = has(c, bit_AVX | bit_FMA | bit_F16C | bit_OSXSAVE);
  if (has(c, bit_OSXSAVE)) {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    f.saves_avx = has(low, 0x06);     // xmm, ymm
    f.saves_avx512 = has(low, 0xe6);  // and opmask, both halves of zmm
  }
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return f;
  f.avx2 = base && has(b, bit_AVX2 | bit_BMI | bit_BMI2);
  f.avx512 = f.avx2 && has(b, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL);
  const bool has_subleaf = a >= 1;
  if (has_subleaf && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) f.avx512bf16 = f.avx512 && has(a, 1u << 5);
  return f;
}

const Features& features() noexcept {
  static const Features found = detect();
  return found;
}

const char* missing_avx2() noexcept {
  if (!features().avx2) return "the processor lacks AVX2, FMA, F16C or BMI2";
  return features().saves_avx ? nullptr : "the operating system does not save AVX registers";
}

const char* missing_avx512() noexcept {
  if (!features().avx512) return "the processor lacks AVX-512 F, DQ, BW or VL";
  return features().saves_avx512 ? nullptr : "the operating system does not save AVX-512 registers";
}

const char* missing_avx512bf16() noexcept {
  if (!features().avx512bf16) return "the processor lacks AVX-512 BF16";
  return missing_avx512();
}

template <auto kUnavailable, typename Args>
const char* why_not(const Args&) noexcept {
  return kUnavailable();
}

const char* nothing_missing() noexcept { return nullptr; }

template <auto kUnavailable, const EngineSet& kSet>
constexpr ForwardKernel forward(const char* name) {
  return {name, kUnavailable, why_not<kUnavailable, ForwardArgs>, [](const ForwardArgs& args) { run_forward(args, kSet); }, nullptr};
}

template <auto kUnavailable, const BackwardSet& kSet>
constexpr BackwardKernel backward(const char* name) {
  return {name, kUnavailable, why_not<kUnavailable, BackwardArgs>, [](const BackwardArgs& args) { run_backward(args, kSet); }, nullptr};
}

constexpr ForwardKernel kAvx512Bf16 = forward<missing_avx512bf16, kAvx512Bf16Set>("cpu.avx512bf16");
constexpr ForwardKernel kAvx512 = forward<missing_avx512, kAvx512Set>("cpu.avx512");
constexpr ForwardKernel kAvx2 = forward<missing_avx2, kAvx2Set>("cpu.avx2");
constexpr ForwardKernel kPortable = forward<nothing_missing, kPortableSet>("cpu.portable");
constexpr BackwardKernel kBackwardAvx512Bf16 = backward<missing_avx512bf16, kAvx512Bf16Backward>("cpu.avx512bf16");
constexpr BackwardKernel kBackwardAvx512 = backward<missing_avx512, kAvx512Backward>("cpu.avx512");
constexpr BackwardKernel kBackwardAvx2 = backward<missing_avx2, kAvx2Backward>("cpu.avx2");
constexpr BackwardKernel kBackwardPortable = backward<nothing_missing, kPortableBackward>("cpu.portable");

// Intel's VDPBF16PS starts half as often as its multiply-add, so f32 arithmetic is as fast there and more accurate; AMD's starts as often.
constexpr std::array kSets{kAvx512Bf16, kAvx512, kAvx2, kPortable};
constexpr std::array kSetsOfIntel{kAvx512, kAvx512Bf16, kAvx2, kPortable};
constexpr std::array kBackwardSets{kBackwardAvx512Bf16, kBackwardAvx512, kBackwardAvx2, kBackwardPortable};
constexpr std::array kBackwardSetsOfIntel{kBackwardAvx512, kBackwardAvx512Bf16, kBackwardAvx2, kBackwardPortable};

}  // namespace

std::span<const ForwardKernel> forward_sets() noexcept {
  if (features().intel) return kSetsOfIntel;
  return kSets;
}

std::span<const BackwardKernel> backward_sets() noexcept {
  if (features().intel) return kBackwardSetsOfIntel;
  return kBackwardSets;
}

}  // namespace slidetile::cpu
