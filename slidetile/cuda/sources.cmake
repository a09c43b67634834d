# The CUDA back end where it is built, else no_cuda.cpp.
target_sources(slidetile PRIVATE ${CMAKE_CURRENT_LIST_DIR}/no_cuda.cpp)
