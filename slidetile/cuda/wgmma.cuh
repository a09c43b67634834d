// Warpgroup matrix products of Hopper (wgmma) on bf16 and f16 with f32 sums: fences and the shapes in use.
//
// Layouts. An accumulator of 64 x N: thread t of the warpgroup holds in element i row 16 (t / 32) + (t % 32) / 4 + 8 ((i / 2) % 2),
// column 8 (i / 4) + 2 (t % 4) + i % 2. Neighbouring elements packed in pairs are what the first operand wants in registers: the slice s
// of 16 columns is elements 8s .. 8s + 7, four words.
// In shared memory a tile of R rows x C channels is C / 64 slabs of [R][64]: rows of 128 bytes, swizzled as wgmma_descriptor.h says and as
// the copy engine writes them; slabs start at multiples of 1024 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "slidetile/cuda/pack.cuh"
#include "slidetile/cuda/wgmma_descriptor.h"

namespace slidetile::cuda {

/// Before the first product of a chain and after any write to registers that one reads.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most kPending committed groups are in flight.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Keeps the compiler from moving accesses to registers across a fence or a wait.
template <typename T, int kCount>
__device__ __forceinline__ void pin(T (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      asm volatile("" : "+f"(registers[i])::"memory");
    } else {
      asm volatile("" : "+r"(registers[i])::"memory");
    }
  }
}

#define SLIDETILE_WGMMA_8(d, i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define SLIDETILE_WGMMA_D64                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SLIDETILE_WGMMA_OUT64(d) SLIDETILE_WGMMA_8(d, 0), SLIDETILE_WGMMA_8(d, 8), SLIDETILE_WGMMA_8(d, 16), SLIDETILE_WGMMA_8(d, 24)
#define SLIDETILE_WGMMA_SHARED_64(type)                                                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" SLIDETILE_WGMMA_D64 "}, %32, %33, p, 1, 1, %35, %36;\n}"                                         \
               : SLIDETILE_WGMMA_OUT64(d)                                                                            \
               : "l"(a), "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB))
#define SLIDETILE_WGMMA_REGISTERS_64(type)                                                                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type \
               " {" SLIDETILE_WGMMA_D64 "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"                             \
               : SLIDETILE_WGMMA_OUT64(d)                                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB))
#define SLIDETILE_WGMMA_D128                                                         \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SLIDETILE_WGMMA_OUT128(d)                                                                                                 \
  SLIDETILE_WGMMA_8(d, 0), SLIDETILE_WGMMA_8(d, 8), SLIDETILE_WGMMA_8(d, 16), SLIDETILE_WGMMA_8(d, 24), SLIDETILE_WGMMA_8(d, 32), \
      SLIDETILE_WGMMA_8(d, 40), SLIDETILE_WGMMA_8(d, 48), SLIDETILE_WGMMA_8(d, 56)
#define SLIDETILE_WGMMA_SHARED_128(type)                                                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
               " {" SLIDETILE_WGMMA_D128 "}, %64, %65, p, 1, 1, %67, %68;\n}"                                         \
               : SLIDETILE_WGMMA_OUT128(d)                                                                            \
               : "l"(a), "l"(b), "r"(accumulate), "n"(kTransA), "n"(kTransB))
#define SLIDETILE_WGMMA_REGISTERS_128(type)                                                                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type \
               " {" SLIDETILE_WGMMA_D128 "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"                             \
               : SLIDETILE_WGMMA_OUT128(d)                                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransB))

/// d (+)= A B for 64 x kN x 16, both operands in shared memory. kTransA, kTransB = 1: stored with the other axis contiguous.
template <typename T, int kN, int kTransA = 0, int kTransB = 0>
__device__ __forceinline__ void wgmma_shared(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
  static_assert(kN == 64 || kN == 128);
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if constexpr (kN == 64) SLIDETILE_WGMMA_SHARED_64("bf16");
    if constexpr (kN == 128) SLIDETILE_WGMMA_SHARED_128("bf16");
  } else {
    if constexpr (kN == 64) SLIDETILE_WGMMA_SHARED_64("f16");
    if constexpr (kN == 128) SLIDETILE_WGMMA_SHARED_128("f16");
  }
}

/// d (+)= A B for 64 x kN x 16, A in four registers.
template <typename T, int kN, int kTransB = 0>
__device__ __forceinline__ void wgmma_registers(float (&d)[kN / 2], const uint32_t* a, uint64_t b, int accumulate) {
  static_assert(kN == 64 || kN == 128);
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if constexpr (kN == 64) SLIDETILE_WGMMA_REGISTERS_64("bf16");
    if constexpr (kN == 128) SLIDETILE_WGMMA_REGISTERS_128("bf16");
  } else {
    if constexpr (kN == 64) SLIDETILE_WGMMA_REGISTERS_64("f16");
    if constexpr (kN == 128) SLIDETILE_WGMMA_REGISTERS_128("f16");
  }
}

#undef SLIDETILE_WGMMA_8
#undef SLIDETILE_WGMMA_D64
#undef SLIDETILE_WGMMA_OUT64
#undef SLIDETILE_WGMMA_SHARED_64
#undef SLIDETILE_WGMMA_REGISTERS_64
#undef SLIDETILE_WGMMA_D128
#undef SLIDETILE_WGMMA_OUT128
#undef SLIDETILE_WGMMA_SHARED_128
#undef SLIDETILE_WGMMA_REGISTERS_128

}  // namespace slidetile::cuda
