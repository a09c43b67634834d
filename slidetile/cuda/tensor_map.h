// Tensor maps: boxes of tokens that Hopper's copy engine reads straight from raster order. Host side.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "slidetile/grid.h"
#include "slidetile/tensor.h"

namespace slidetile::cuda {

/// Coordinates of a map are {channel, w, h, t, sheet}; its boxes are 64 channels of box.t x box.h x box.w tokens of one sheet, with
/// 128-byte swizzle. Batch and head make up the sheets: (batch, head) is sheet batch * batch_step + head * head_step, which serves any
/// strides that are multiples of 16 bytes. Tokens off the extent arrive as zeros.
struct SheetSteps {
  int32_t batch_step = 0, head_step = 0;
};
SheetSteps sheet_steps(const TensorView& tensor) noexcept;

/// Why no map can be made of the tensor; null: one can.
const char* tensor_map_why_not(const TensorView& tensor) noexcept;

struct MapExtent {
  int64_t first_token = 0;  // of the sequence: the extent's origin
  Dim3 extent{1, 1, 1};     // tokens in raster order from there on
  Dim3 box{1, 1, 1};        // at most 256 along an axis
};

/// Throws Error(device) if the driver refuses. A map of no tokens is of zeros and must not be used.
CUtensorMap make_tensor_map(const TensorView& tensor, const MapExtent& extent);

}  // namespace slidetile::cuda
