#include <gtest/gtest.h>

namespace lapidary {
namespace {
TEST(X, Y) {}
}  // namespace
}  // namespace lapidary
