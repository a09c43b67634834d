# The CPU back end: one translation unit per instruction set, each with the flags of its set.
set(dir ${CMAKE_CURRENT_LIST_DIR})
target_sources(slidetile PRIVATE ${dir}/kernels.cpp ${dir}/layout.cpp ${dir}/schedule.cpp ${dir}/forward.cpp ${dir}/backward.cpp
  ${dir}/portable.cpp)
set_source_files_properties(${dir}/portable.cpp TARGET_DIRECTORY slidetile PROPERTIES COMPILE_OPTIONS "-ffp-contract=fast")

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2)
  # GCC 12 takes the undefined operand inside its own intrinsics for an uninitialized variable.
  set(avx512 ${avx2} -mavx512f -mavx512dq -mavx512bw -mavx512vl -Wno-uninitialized $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
  target_sources(slidetile PRIVATE ${dir}/sets_x86.cpp ${dir}/avx2.cpp ${dir}/avx512.cpp ${dir}/avx512bf16.cpp)
  set_source_files_properties(${dir}/avx2.cpp TARGET_DIRECTORY slidetile PROPERTIES COMPILE_OPTIONS "${avx2}")
  set_source_files_properties(${dir}/avx512.cpp TARGET_DIRECTORY slidetile PROPERTIES COMPILE_OPTIONS "${avx512}")
  set_source_files_properties(${dir}/avx512bf16.cpp TARGET_DIRECTORY slidetile PROPERTIES COMPILE_OPTIONS "${avx512};-mavx512bf16")
else()
  target_sources(slidetile PRIVATE ${dir}/sets_portable.cpp)
endif()
