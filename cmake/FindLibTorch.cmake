# LibTorch as it lies in PyTorch's pip package, as the target slidetile::torch. The package's own find_package(Torch) wants a CUDA toolkit
# even where only the CPU is used; this links what is needed: libtorch_cpu and libc10, with libtorch_cuda and libc10_cuda where CUDA's
# headers are. libtorch.so is left out: it needs libtorch_cuda, and that every library of CUDA.
#   SLIDETILE_TORCH_PYTHON   a Python that has torch; else build/venv/bin/python (tools/setup.sh makes it), else python3
# Sets LibTorch_FOUND, LibTorch_VERSION, LibTorch_LIBRARY_DIR, and LibTorch_MISSING: one line that says what is missing.
set(SLIDETILE_TORCH_PYTHON "" CACHE FILEPATH "A Python interpreter that has PyTorch, for text to video")

set(LibTorch_MISSING "")
set(LibTorch_FOUND FALSE)
set(pythons ${SLIDETILE_TORCH_PYTHON})
if(NOT pythons)
  set(pythons ${PROJECT_SOURCE_DIR}/build/venv/bin/python python3)
endif()
foreach(python IN LISTS pythons)
  # Nothing of torch is imported: the folder and the version are all that is wanted.
  execute_process(COMMAND ${python} -c "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
                  OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  if(NOT failed AND folder AND EXISTS ${folder}/lib/libtorch_cpu.so)
    file(STRINGS ${folder}/version.py version REGEX "^__version__ = ")
    string(REGEX MATCH "[0-9]+\\.[0-9]+\\.[0-9]+" LibTorch_VERSION "${version}")
    if(LibTorch_VERSION VERSION_GREATER_EQUAL LibTorch_FIND_VERSION)
      set(LibTorch_FOUND TRUE)
      set(torch_python ${python})
      break()
    endif()
    set(LibTorch_MISSING "${python} has PyTorch ${LibTorch_VERSION}, expected ${LibTorch_FIND_VERSION} or later")
  endif()
endforeach()
if(NOT LibTorch_FOUND)
  if(NOT LibTorch_MISSING)
    list(JOIN pythons " and " tried)
    set(LibTorch_MISSING "no PyTorch in ${tried}; set SLIDETILE_TORCH_PYTHON to a Python that has torch ${LibTorch_FIND_VERSION}")
  endif()
  if(LibTorch_FIND_REQUIRED)
    message(FATAL_ERROR "Text to video: ${LibTorch_MISSING}")
  endif()
  return()
endif()

set(LibTorch_LIBRARY_DIR ${folder}/lib)
if(NOT TARGET slidetile::torch)
  add_library(slidetile_torch INTERFACE)
  add_library(slidetile::torch ALIAS slidetile_torch)
  target_include_directories(slidetile_torch SYSTEM INTERFACE ${folder}/include ${folder}/include/torch/csrc/api/include)
  # Back ends register themselves when they are loaded, so that each is linked whether a symbol of it is used or not.
  set(libraries ${LibTorch_LIBRARY_DIR}/libtorch_cpu.so ${LibTorch_LIBRARY_DIR}/libc10.so)
  if(SLIDETILE_HAS_CUDA)
    # It loads where the rest of CUDA's libraries are there too; tools/setup.sh leaves them out where no toolkit is.
    execute_process(COMMAND ${torch_python} -c "import ctypes; ctypes.CDLL('${LibTorch_LIBRARY_DIR}/libtorch_cuda.so')"
                    RESULT_VARIABLE cuda_missing OUTPUT_QUIET ERROR_QUIET)
    if(cuda_missing)
      message(STATUS "Text to video: on the CPU alone, ${LibTorch_LIBRARY_DIR}/libtorch_cuda.so does not load")
    endif()
  endif()
  if(SLIDETILE_HAS_CUDA AND NOT cuda_missing)
    list(APPEND libraries ${LibTorch_LIBRARY_DIR}/libtorch_cuda.so ${LibTorch_LIBRARY_DIR}/libc10_cuda.so)
    target_include_directories(slidetile_torch SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
    target_compile_definitions(slidetile_torch INTERFACE SLIDETILE_TORCH_CUDA)
  endif()
  target_link_libraries(slidetile_torch INTERFACE -Wl,--push-state,--no-as-needed ${libraries} -Wl,--pop-state)
  # Found at run time without LD_LIBRARY_PATH, which may still name another place: that is what RUNPATH is, unlike RPATH.
  # Libraries that these need are found by their own RPATH.
  target_link_options(slidetile_torch INTERFACE -Wl,--enable-new-dtags -Wl,--allow-shlib-undefined)
endif()
