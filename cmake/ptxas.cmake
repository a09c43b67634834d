# Has nvcc report registers and spills of each kernel, and keeps the report beside the object for tools/check_ptxas.sh.
if(SLIDETILE_HAS_CUDA AND PROJECT_IS_TOP_LEVEL)
  target_compile_options(slidetile PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xptxas=-v>)
  set_target_properties(slidetile PROPERTIES CUDA_COMPILER_LAUNCHER "bash;${PROJECT_SOURCE_DIR}/tools/check_ptxas.sh;--launch")
endif()
