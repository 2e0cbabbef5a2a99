# lapidary_library(NAME scheduler SRCS a.cc b.cc DEPS lapidary::common absl::status)
#   A static library lapidary_<name> with the alias lapidary::<name>.
# lapidary_test(NAME router_test SRCS router_test.cc DEPS lapidary::coordinator [LABELS threads] [TIMEOUT 60])
#   A GoogleTest binary registered with ctest, run from the source root.
#   SHARDS 4: as four tests, <name>.0 to <name>.3, of a quarter of the cases each. ENVIRONMENT A=b ...
# lapidary_bench(NAME matmul_bench SRCS ... DEPS ...)   A Google Benchmark binary, never a test.

# ThreadSanitizer does not look at what memcpy, new and the like touch: Debian's libraries call them,
# too, and synchronise unseen. (ignore_noninstrumented_modules would hide the order of mutexes as well.)
set(LAPIDARY_TSAN_ENVIRONMENT)
if(LAPIDARY_SANITIZE STREQUAL "thread")
  set(LAPIDARY_TSAN_ENVIRONMENT
    "TSAN_OPTIONS=ignore_interceptors_accesses=1 suppressions=${CMAKE_SOURCE_DIR}/tests/support/tsan.supp")
endif()

# Sanitizers make a test several times slower, and CI machines are shared.
set(LAPIDARY_TIMEOUT_FACTOR 1)
if(LAPIDARY_SANITIZE)
  set(LAPIDARY_TIMEOUT_FACTOR 10)
endif()

function(lapidary_library)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(lapidary_${ARG_NAME} STATIC ${ARG_SRCS})
    target_link_libraries(lapidary_${ARG_NAME} PUBLIC ${ARG_DEPS})
  else()
    add_library(lapidary_${ARG_NAME} INTERFACE)
    target_link_libraries(lapidary_${ARG_NAME} INTERFACE ${ARG_DEPS})
  endif()
  add_library(lapidary::${ARG_NAME} ALIAS lapidary_${ARG_NAME})
endfunction()

# Of lapidary_test, whose ARG_* it sees; the rest of its arguments is the environment.
function(lapidary_add_test test)
  add_test(NAME ${test} COMMAND ${ARG_NAME} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  # The longest first, so that none of them is left running alone.
  set_tests_properties(${test} PROPERTIES TIMEOUT ${ARG_TIMEOUT} COST ${ARG_TIMEOUT}
                                          LABELS "${ARG_LABELS}" ENVIRONMENT "${ARGN}")
endfunction()

function(lapidary_test)
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT;SHARDS" "SRCS;DEPS;LABELS;ENVIRONMENT" ${ARGN})
  if(NOT LAPIDARY_TESTS)
    return()
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  # A test's own code runs once or twice: a quarter of its compile time is worth more.
  target_compile_options(${ARG_NAME} PRIVATE $<$<CONFIG:Release>:-O1>)
  if(LAPIDARY_SANITIZE STREQUAL "thread")
    target_link_libraries(${ARG_NAME} PRIVATE lapidary_tsan_shims)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * ${LAPIDARY_TIMEOUT_FACTOR}")
  list(APPEND ARG_ENVIRONMENT ${LAPIDARY_TSAN_ENVIRONMENT})
  if(NOT ARG_SHARDS)
    lapidary_add_test(${ARG_NAME} ${ARG_ENVIRONMENT})
    return()
  endif()
  math(EXPR last "${ARG_SHARDS} - 1")
  foreach(shard RANGE ${last})
    lapidary_add_test(${ARG_NAME}.${shard} ${ARG_ENVIRONMENT}
                      GTEST_TOTAL_SHARDS=${ARG_SHARDS} GTEST_SHARD_INDEX=${shard})
  endforeach()
endfunction()

function(lapidary_bench)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  if(NOT LAPIDARY_BENCH)
    return()
  endif()
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE ${ARG_DEPS} benchmark::benchmark)
endfunction()
