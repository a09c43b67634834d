// Stands in for generate.cpp where LibTorch is absent.
#include "slidetile/error.h"
#include "video/generate.h"

namespace slidetile::video {

const char* why_no_generation() noexcept { return "this build has no LibTorch; docs/video.md says how to get it"; }

double Generated::seconds() const noexcept { return 0; }

struct Generator::State {};

Generator::Generator(const GeneratorOptions&) { fail(ErrorCode::kUnsupported, "generate: ", why_no_generation()); }

Generator::~Generator() = default;

Generated Generator::generate(const GenerateRequest&) { fail(ErrorCode::kUnsupported, "generate: ", why_no_generation()); }

}  // namespace slidetile::video
