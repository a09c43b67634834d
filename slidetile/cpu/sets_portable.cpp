// The sets of a processor that has no instruction set of its own here.
#include "slidetile/cpu/backward.h"
#include "slidetile/cpu/forward.h"
#include "slidetile/cpu/sets.h"

namespace slidetile::cpu {
namespace {

constexpr ForwardKernel kSets[] = {{"cpu.portable", []() noexcept -> const char* { return nullptr; },
                                    [](const ForwardArgs&) noexcept -> const char* { return nullptr; },
                                    [](const ForwardArgs& args) { run_forward(args, kPortableSet); }, nullptr}};

constexpr BackwardKernel kBackwardSets[] = {{"cpu.portable", []() noexcept -> const char* { return nullptr; },
                                             [](const BackwardArgs&) noexcept -> const char* { return nullptr; },
                                             [](const BackwardArgs& args) { run_backward(args, kPortableBackward); }, nullptr}};

}  // namespace

std::span<const ForwardKernel> forward_sets() noexcept { return kSets; }
std::span<const BackwardKernel> backward_sets() noexcept { return kBackwardSets; }

}  // namespace slidetile::cpu
