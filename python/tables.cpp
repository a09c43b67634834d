// Window tables (strategy files) for Python.
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "convert.h"
#include "slidetile/error.h"
#include "slidetile/window_table.h"

namespace slidetile::python {
namespace {

WindowTable make_table(int32_t steps, int32_t layers, int32_t heads, const std::vector<Extents>& windows) {
  std::vector<Window> list;
  for (const Extents& window : windows) list.push_back(dim3_of(window));
  return {steps, layers, heads, std::move(list)};
}

std::vector<Extents> windows_at(const WindowTable& table, int32_t step, int32_t layer) {
  require(step >= 0 && step < table.steps(), "window table: step ", step, ", the table has ", table.steps());
  require(layer >= 0 && layer < table.layers(), "window table: layer ", layer, ", the table has ", table.layers());
  std::vector<Extents> list;
  for (const Window& window : table.windows(step, layer)) list.push_back(extents_of(window));
  return list;
}

TableForm form_of(const std::string& name) {
  require(name == "published" || name == "compact", "window table: form '", name, "', expected 'published' or 'compact'");
  return name == "published" ? TableForm::kPublished : TableForm::kCompact;
}

}  // namespace

void bind_tables(nb::module_& module) {
  nb::class_<WindowTable>(module, "WindowTable")
      .def_prop_ro("steps", &WindowTable::steps)
      .def_prop_ro("layers", &WindowTable::layers)
      .def_prop_ro("heads", &WindowTable::heads)
      .def("windows", windows_at, nb::arg("step"), nb::arg("layer"))
      .def("sparsity",
           [](const WindowTable& table, const Extents& canvas, const Extents& tile, int32_t step) {
             const Grid grid(dim3_of(canvas), dim3_of(tile));
             if (step < 0) return table.sparsity(grid);
             require(step < table.steps(), "window table: step ", step, ", the table has ", table.steps());
             return table.sparsity(grid, step);
           })
      .def("to_json", [](const WindowTable& table, const std::string& form) { return table.to_json(form_of(form)); })
      .def("save", [](const WindowTable& table, const std::string& path, const std::string& form) { table.save(path, form_of(form)); })
      .def("equals", [](const WindowTable& a, const WindowTable& b) { return a == b; });
  module.def("window_table", make_table, nb::arg("steps"), nb::arg("layers"), nb::arg("heads"), nb::arg("windows"));
  module.def(
      "window_table_from_json", [](const std::string& text) { return WindowTable::from_json(text); }, nb::arg("text"));
  module.def("window_table_load", &WindowTable::load, nb::arg("path"), nb::call_guard<nb::gil_scoped_release>());
  module.def("hunyuan_strategy", [] { return hunyuan_strategy(); });
}

}  // namespace slidetile::python
