# Attention in double precision on a GPU: what the GPU tests and slidetile bench compare with.
add_library(cuda_reference STATIC tests/cuda_reference.cu)
target_include_directories(cuda_reference PUBLIC tests)
target_link_libraries(cuda_reference PUBLIC slidetile::slidetile CUDA::cudart_static PRIVATE slidetile_warnings)
target_compile_options(cuda_reference PRIVATE -std=c++20 ${SLIDETILE_SM80_CODE})
set_target_properties(cuda_reference PROPERTIES CUDA_ARCHITECTURES OFF)
