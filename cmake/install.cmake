# What `cmake --install` lays down: the library, its public headers, the program, and the package that find_package(slidetile) reads.
include(CMakePackageConfigHelpers)

set_target_properties(slidetile PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
install(TARGETS slidetile EXPORT slidetileTargets FILE_SET HEADERS)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
if(TARGET slidetile_program)
  install(TARGETS slidetile_program)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/data/sprites-model DESTINATION ${CMAKE_INSTALL_DATADIR}/slidetile)
endif()

# The packages whose imported targets the library links; a consumer has to find them again.
get_target_property(linked slidetile LINK_LIBRARIES)
set(SLIDETILE_DEPENDENCIES "")
foreach(package IN ITEMS Threads ZLIB CUDAToolkit)
  string(REPLACE CUDAToolkit CUDA namespace ${package})
  if(linked MATCHES "${namespace}::")
    string(APPEND SLIDETILE_DEPENDENCIES " ${package}")
  endif()
endforeach()
string(STRIP "${SLIDETILE_DEPENDENCIES}" SLIDETILE_DEPENDENCIES)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/slidetile)
install(EXPORT slidetileTargets NAMESPACE slidetile:: DESTINATION ${package_dir})
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/slidetileConfig.cmake.in ${PROJECT_BINARY_DIR}/slidetileConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/slidetileConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/slidetileConfig.cmake ${PROJECT_BINARY_DIR}/slidetileConfigVersion.cmake DESTINATION ${package_dir})
