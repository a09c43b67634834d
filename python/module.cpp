// The extension module slidetile._core: errors as Python exceptions, then one file per topic.
#include <nanobind/nanobind.h>

#include "convert.h"
#include "slidetile/error.h"

namespace nb = nanobind;

namespace slidetile::python {
namespace {

PyObject* exception_for(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return PyExc_ValueError;
    case ErrorCode::kUnsupported: return PyExc_NotImplementedError;
    case ErrorCode::kIo: return PyExc_OSError;
    case ErrorCode::kOutOfMemory: return PyExc_MemoryError;
    case ErrorCode::kDevice: return PyExc_RuntimeError;
  }
  return PyExc_RuntimeError;
}

void translate(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    PyErr_SetString(exception_for(error.code()), error.what());
  }
}

}  // namespace
}  // namespace slidetile::python

NB_MODULE(_core, module) {
  module.doc() = "Sliding tile attention: the C++ library as slidetile's Python files use it.";
  nb::set_leak_warnings(false);  // plans in Python's caches live until the interpreter ends
  nb::register_exception_translator(slidetile::python::translate);
  slidetile::python::bind_arrays(module);
  slidetile::python::bind_plans(module);
  slidetile::python::bind_attention(module);
  slidetile::python::bind_tables(module);
}
