// Addresses of shared memory as PTX takes them.
#pragma once

#include <cstdint>

namespace slidetile::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

}  // namespace slidetile::cuda
