// The CUDA driver's functions, found at run time through the runtime: libcuda is not linked.
#pragma once

namespace slidetile::cuda {

/// Entry point of a driver function as it was in `version` (12000 is CUDA 12.0), or null. Cast it to its PFN type (cudaTypedefs.h).
void* driver_function(const char* name, int version) noexcept;

}  // namespace slidetile::cuda
