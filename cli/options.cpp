#include "options.h"

#include "slidetile/error.h"

slidetile::Dim3 extents(const char* option, const std::string& text) {
  try {
    return slidetile::dim3_from_string(text);
  } catch (const slidetile::Error& error) {
    slidetile::fail(error.code(), option, ": ", error.what());
  }
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

std::string wrapped(const std::vector<std::string>& names, size_t width) {
  std::string text, line;
  for (const std::string& name : names) {
    if (!line.empty() && line.size() + name.size() + 2 > width) {
      text += line + ",\n";
      line.clear();
    }
    line += (line.empty() ? "" : ", ") + name;
  }
  return text + line;
}

std::string not_negative(const std::string& text) { return text.starts_with('-') ? "got " + text + ", expected 0 or more" : ""; }
