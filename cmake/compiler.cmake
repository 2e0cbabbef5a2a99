# Language, warnings, sanitizers, ccache, linker: the same for every target.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

# x86-64-v3 (AVX2, FMA, F16C) is the baseline of the whole project, so that no inline function is
# compiled twice with different instructions. AVX-512 comes by function attribute and run-time
# dispatch. main() checks the baseline and says so.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-march=x86-64-v3;-Wall;-Wextra;-Wno-missing-field-initializers>")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # GCC 12 sees overlapping copies inside its own std::string (PR 105651): a false alarm.
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-Wno-psabi;-Wno-restrict>")
endif()
# The CUDA backend is a shared library made of the same parts; nobody replaces functions in it.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fno-semantic-interposition>")
endif()
include_directories(${CMAKE_SOURCE_DIR})

if(LAPIDARY_SANITIZE)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${LAPIDARY_SANITIZE};-fno-omit-frame-pointer>")
  add_link_options(-fsanitize=${LAPIDARY_SANITIZE})
endif()

find_program(LAPIDARY_CCACHE ccache)
if(LAPIDARY_CCACHE)
  # Base directory and no hashed directory: a second clone or build folder hits the cache too.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}
      CCACHE_NOHASHDIR=1 ${LAPIDARY_CCACHE})
endif()

find_program(LAPIDARY_LLD ld.lld)
if(LAPIDARY_LLD)
  add_link_options(-fuse-ld=lld)
endif()
