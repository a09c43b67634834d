# A build for fuzzing: everything with libFuzzer's coverage and the sanitizers. Needs clang and its runtime (Debian: clang, libclang-rt-14-dev).
include(CheckCXXSourceCompiles)
set(CMAKE_REQUIRED_FLAGS -fsanitize=fuzzer)
set(CMAKE_REQUIRED_LINK_OPTIONS -fsanitize=fuzzer)
check_cxx_source_compiles("#include <cstddef>
#include <cstdint>
extern \"C\" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }" SLIDETILE_HAS_LIBFUZZER)
unset(CMAKE_REQUIRED_FLAGS)
unset(CMAKE_REQUIRED_LINK_OPTIONS)
if(NOT SLIDETILE_HAS_LIBFUZZER)
  message(FATAL_ERROR "SLIDETILE_FUZZ needs clang with libFuzzer: -DCMAKE_CXX_COMPILER=clang++ and, on Debian, libclang-rt-14-dev")
endif()
add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -g)
add_link_options(-fsanitize=address,undefined)
