// For tests that plant a mistake in a kernel and expect it to be found.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "kernels/simt/report.h"
#include "kernels/simt/tests/run_kernel.h"

namespace lapidary::simt {

// The mistake is found as `message` in every order.
template <class... P, class... A>
void Finds(const char* message, const Shape& shape, void (*kernel)(P...), A... arguments) {
  InEveryOrder([&](const std::string& order) {
    EXPECT_THAT(Failures(shape, kernel, arguments...),
                testing::Contains(testing::HasSubstr(message)))
        << order;
  });
}
#define ONLY_CHECKED() \
  if (!Checked()) GTEST_SKIP() << "only the checker can see it"

}  // namespace lapidary::simt
