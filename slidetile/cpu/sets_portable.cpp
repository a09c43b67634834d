// The sets of a processor that has no instruction set of its own here.
#include "slidetile/cpu/forward.h"
#include "slidetile/cpu/sets.h"

namespace slidetile::cpu {
namespace {

constexpr ForwardKernel kSets[] = {{"cpu.portable", []() noexcept -> const char* { return nullptr; },
                                    [](const ForwardArgs&) noexcept -> const char* { return nullptr; },
                                    [](const ForwardArgs& args) { run_forward(args, kPortableSet); }, nullptr}};

}  // namespace

std::span<const ForwardKernel> forward_sets() noexcept { return kSets; }

}  // namespace slidetile::cpu
