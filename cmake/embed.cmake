# slidetile_embed(INPUT NAME): the bytes of a small file as an array of the library, NAME and NAMEBytes. Written when the project is configured.
function(slidetile_embed input name)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${input})
  file(READ ${input} digits HEX)
  string(LENGTH "${digits}" bytes)
  math(EXPR bytes "${bytes} / 2")
  string(REGEX REPLACE "(................................)" "\\1\n" digits "${digits}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," digits "${digits}")
  set(source ${PROJECT_BINARY_DIR}/embedded/${name}.cpp)
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT "// ${bytes} bytes of a file, by cmake/embed.cmake.
#include <cstddef>
namespace slidetile {
extern const unsigned char ${name}[];
extern const std::size_t ${name}Bytes;
const unsigned char ${name}[] = {
${digits}
};
const std::size_t ${name}Bytes = ${bytes};
}  // namespace slidetile
")
  target_sources(slidetile PRIVATE ${source})
endfunction()
