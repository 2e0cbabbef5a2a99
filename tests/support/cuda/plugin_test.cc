// Kernels and stand-ins inside a library that a process opens when it runs, as the worker opens its
// CUDA backend; used by several threads.
#include <dlfcn.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace {

TEST(Plugin, WorksWhenOpenedLateAndFromManyThreads) {
  void* library = dlopen(PLUGIN_PATH, RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  auto* sum_of_ones = reinterpret_cast<float (*)(int)>(dlsym(library, "SumOfOnes"));
  ASSERT_NE(sum_of_ones, nullptr);
  EXPECT_EQ(sum_of_ones(1000), 1000);
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([=] {
      for (int i = 1; i <= 10; ++i) EXPECT_EQ(sum_of_ones(100 * i + 4 * t), 100 * i + 4 * t);
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(dlclose(library), 0);
  library = dlopen(PLUGIN_PATH, RTLD_NOW | RTLD_LOCAL);
  ASSERT_NE(library, nullptr) << dlerror();
  sum_of_ones = reinterpret_cast<float (*)(int)>(dlsym(library, "SumOfOnes"));
  EXPECT_EQ(sum_of_ones(4), 4);
  EXPECT_EQ(dlclose(library), 0);
}

}  // namespace
