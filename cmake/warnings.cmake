# The warnings of the project's own targets, as one interface target. SLIDETILE_WERROR makes them errors (CI).
option(SLIDETILE_WERROR "Treat warnings as errors" OFF)

add_library(slidetile_warnings INTERFACE)
target_compile_options(slidetile_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wno-missing-field-initializers>
  # g++ 12 sees overlaps in `"text" + string` that are not there (GCC bug 105651).
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CXX_COMPILER_ID:GNU>>:-Wno-restrict>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${SLIDETILE_WERROR}>>:-Werror>)
