# find_package(xinit): the target xinit::xinit, for C++ programs that have torch's, which find_package(Torch) finds.
if(NOT Torch_FOUND)
  include(CMakeFindDependencyMacro)
  find_dependency(Torch)
endif()

get_filename_component(_xinit "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
file(STRINGS "${_xinit}/libxinit.so" _xinit_built REGEX "^libxinit .* built with torch " LIMIT_COUNT 1)
string(REGEX MATCH "torch ([0-9]+\\.[0-9]+)" _xinit_built "${_xinit_built}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _xinit_torch "${Torch_VERSION}")
if(_xinit_torch AND NOT _xinit_built STREQUAL "torch ${_xinit_torch}")
  set(xinit_NOT_FOUND_MESSAGE "it was built with ${_xinit_built}, whose ABI is not that of torch ${Torch_VERSION}")
  set(xinit_FOUND FALSE)
  return()
endif()

# A program's path leads to the libraries that it links itself, not to those that libxinit.so needs.
set(_xinit_needs torch)
if(TARGET c10_cuda)
  list(APPEND _xinit_needs "-Wl,--no-as-needed,$<TARGET_FILE:c10_cuda>,$<TARGET_FILE:CUDA::cudart>,--as-needed")
endif()

if(NOT TARGET xinit::xinit)
  add_library(xinit::xinit SHARED IMPORTED)
  set_target_properties(
    xinit::xinit
    PROPERTIES IMPORTED_LOCATION "${_xinit}/libxinit.so"
               INTERFACE_INCLUDE_DIRECTORIES "${_xinit}/include"
               INTERFACE_LINK_LIBRARIES "${_xinit_needs}")
endif()
