# The CPU back end: one translation unit per instruction set, each with the flags of its set.
target_sources(slidetile PRIVATE ${CMAKE_CURRENT_LIST_DIR}/kernels.cpp)
