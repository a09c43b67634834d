# The project's rules as tests (label `rule`): who includes whom, symbols, text, format, headers that compile alone, the README's
# example, and a consumer of the installed package. Each script exits 77 where its tool is absent: ctest reports a skip.
function(slidetile_rule name)
  add_test(NAME rule.${name} COMMAND ${ARGN} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(rule.${name} PROPERTIES LABELS rule SKIP_RETURN_CODE 77)
endfunction()

slidetile_rule(includes bash tools/check_includes.sh)
slidetile_rule(text bash tools/check_text.sh)
slidetile_rule(format bash tools/check_format.sh)
slidetile_rule(readme bash tools/check_readme.sh)
slidetile_rule(rules_catch bash tests/rules_test.sh)
slidetile_rule(headers_alone ${CMAKE_COMMAND} --build ${PROJECT_BINARY_DIR} --target all_verify_interface_header_sets)
if(SLIDETILE_HAS_CUDA)
  slidetile_rule(ptxas bash tools/check_ptxas.sh ${PROJECT_BINARY_DIR})
  slidetile_rule(device_code bash tools/check_device_code.sh ${PROJECT_BINARY_DIR})
endif()
# Without optimisation every inline function leaves a weak symbol.
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  slidetile_rule(symbols bash tools/check_symbols.sh ${PROJECT_BINARY_DIR})
endif()
if(NOT CMAKE_CROSSCOMPILING)
  slidetile_rule(install bash tests/install/run.sh ${PROJECT_BINARY_DIR} ${CMAKE_COMMAND} ${CMAKE_CXX_COMPILER})
endif()
