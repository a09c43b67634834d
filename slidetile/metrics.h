// How far two results lie apart: relative error of tensors, PSNR and SSIM of pictures.
#pragma once

#include <cstdint>

#include "slidetile/tensor.h"

namespace slidetile {

/// ||a - b|| / ||b|| over all elements, in double. Host tensors of one shape; element types may differ. 0 where both norms are 0, infinite
/// where only ||b|| is, NaN where an element is.
double relative_error(const TensorView& a, const TensorView& b);

/// One plane of a picture that someone else owns: `stride` samples from a row to the next.
template <typename Sample>
struct Plane {
  const Sample* data = nullptr;
  int64_t height = 0, width = 0, stride = 0;
};

/// Peak signal-to-noise ratio in dB, 10 log10(peak^2 / mean squared error); infinite for equal planes.
double psnr(const Plane<uint8_t>& a, const Plane<uint8_t>& b);  // peak 255
double psnr(const Plane<float>& a, const Plane<float>& b, double peak = 1);

/// Mean structural similarity as its authors compute it (Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility
/// to structural similarity", IEEE TIP 13(4), 2004): 11 x 11 Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03, only where the window
/// lies inside the picture. At least 11 x 11 samples.
double ssim(const Plane<uint8_t>& a, const Plane<uint8_t>& b);  // peak 255
double ssim(const Plane<float>& a, const Plane<float>& b, double peak = 1);

}  // namespace slidetile
