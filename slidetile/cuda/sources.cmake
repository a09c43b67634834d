# The CUDA back end where it is built, else no_cuda.cpp. Sources whose code is for one architecture are listed by it (cmake/cuda.cmake).
if(NOT SLIDETILE_HAS_CUDA)
  target_sources(slidetile PRIVATE ${CMAKE_CURRENT_LIST_DIR}/no_cuda.cpp)
  return()
endif()

set(sm80_sources)
foreach(name forward_sm80 forward_sm80_bf16 forward_sm80_f16 backward_sm80 backward_sm80_bf16 backward_sm80_f16
        backward_sm80_atomic_bf16 backward_sm80_atomic_f16 forward_f32 backward_f32)
  list(APPEND sm80_sources ${CMAKE_CURRENT_LIST_DIR}/${name}.cu)
endforeach()
set(sm90_sources)
foreach(name forward_sm90 forward_sm90_bf16 forward_sm90_f16 backward_sm90 backward_sm90_bf16 backward_sm90_f16)
  list(APPEND sm90_sources ${CMAKE_CURRENT_LIST_DIR}/${name}.cu)
endforeach()

target_sources(slidetile PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/kernels.cpp
  ${CMAKE_CURRENT_LIST_DIR}/device.cpp
  ${CMAKE_CURRENT_LIST_DIR}/driver.cpp
  ${CMAKE_CURRENT_LIST_DIR}/device_blocks.cpp
  ${CMAKE_CURRENT_LIST_DIR}/device_buffer.cpp
  ${CMAKE_CURRENT_LIST_DIR}/device_plan.cpp
  ${CMAKE_CURRENT_LIST_DIR}/lowering.cpp
  ${CMAKE_CURRENT_LIST_DIR}/backward_lowering.cpp
  ${CMAKE_CURRENT_LIST_DIR}/tensor_map.cpp
  ${sm80_sources} ${sm90_sources})
foreach(set sm80 sm90)
  string(TOUPPER ${set} upper)
  if(${set}_sources)
    set_source_files_properties(${${set}_sources} TARGET_DIRECTORY slidetile PROPERTIES COMPILE_OPTIONS "${SLIDETILE_${upper}_CODE}")
  endif()
endforeach()
# Architectures are chosen per source above. The runtime is linked statically; the driver is found at run time, never linked.
set_target_properties(slidetile PROPERTIES CUDA_ARCHITECTURES OFF CUDA_RUNTIME_LIBRARY Static)
# Not CUDA_STANDARD: CMake 3.25 does not know that nvcc has C++20.
target_compile_options(slidetile PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>)
# Waits of kernels end in a trap after a while.
target_compile_definitions(slidetile PRIVATE $<$<CONFIG:Debug>:SLIDETILE_BOUNDED_WAITS>)
target_link_libraries(slidetile PRIVATE CUDA::cudart_static)
