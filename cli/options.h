// Values of options, as several commands read and list them.
#pragma once

#include <string>
#include <vector>

#include "slidetile/grid.h"

/// "TxHxW", "HxW" or "W"; an error names the option, the value and what was expected.
slidetile::Dim3 extents(const char* option, const std::string& text);

/// "a, b, c".
std::string joined(const std::vector<std::string>& names);

/// joined() in lines of at most `width` characters.
std::string wrapped(const std::vector<std::string>& names, size_t width = 120);

/// For options of unsigned numbers, into which a negative one would wrap: what is wrong with the text, or nothing.
std::string not_negative(const std::string& text);
