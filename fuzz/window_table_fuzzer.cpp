// Any bytes are a table of windows or an Error; what is read is the same after it is written and read again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "slidetile/error.h"
#include "slidetile/window_table.h"

using namespace slidetile;

namespace {

std::optional<WindowTable> read(std::string_view text) {
  try {
    return WindowTable::from_json(text, "input");
  } catch (const Error&) {
    return std::nullopt;
  }
}

void check_same(const std::string& text, const WindowTable& table) {
  const std::optional<WindowTable> again = read(text);
  if (!again || !(*again == table)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::optional<WindowTable> table = read({reinterpret_cast<const char*>(data), size});
  if (!table) return 0;
  check_same(table->to_json(TableForm::kPublished), *table);
  std::string compact;
  try {
    compact = table->to_json(TableForm::kCompact);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kUnsupported) std::abort();  // more windows than letters
    return 0;
  }
  check_same(compact, *table);
  return 0;
}
