# The CUDA back end where it is built, else no_cuda.cpp. Sets of machine code: SLIDETILE_SM80_CODE runs on everything since Ampere,
# as PTX too; SLIDETILE_SM90_CODE on Hopper alone.
if(NOT SLIDETILE_HAS_CUDA)
  target_sources(slidetile PRIVATE ${CMAKE_CURRENT_LIST_DIR}/no_cuda.cpp)
  return()
endif()

set(SLIDETILE_SM80_CODE -gencode=arch=compute_80,code=[sm_80,compute_80] -gencode=arch=compute_90,code=sm_90)
set(SLIDETILE_SM90_CODE -gencode=arch=compute_90a,code=sm_90a)
set(sm80_sources)
set(sm90_sources
  ${CMAKE_CURRENT_LIST_DIR}/forward_sm90.cu
  ${CMAKE_CURRENT_LIST_DIR}/forward_sm90_bf16.cu
  ${CMAKE_CURRENT_LIST_DIR}/forward_sm90_f16.cu
  ${CMAKE_CURRENT_LIST_DIR}/backward_sm90.cu
  ${CMAKE_CURRENT_LIST_DIR}/backward_sm90_bf16.cu
  ${CMAKE_CURRENT_LIST_DIR}/backward_sm90_f16.cu)

target_sources(slidetile PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/kernels.cpp
  ${CMAKE_CURRENT_LIST_DIR}/device.cpp
  ${CMAKE_CURRENT_LIST_DIR}/driver.cpp
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
set_target_properties(slidetile PROPERTIES CUDA_ARCHITECTURES OFF CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
  CUDA_RUNTIME_LIBRARY Static)
target_link_libraries(slidetile PRIVATE CUDA::cudart_static)
