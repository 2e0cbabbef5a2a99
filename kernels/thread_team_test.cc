#include "kernels/thread_team.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>

namespace lapidary {
namespace {

TEST(ThreadTeam, EveryThreadRunsOnceAndItsWritesAreSeen) {
  for (int threads : {1, 2, 3, 8}) {
    const auto team = ThreadTeam::Create(threads, {});
    ASSERT_EQ(team->size(), threads);
    std::vector<int> counts(threads, 0);  // plain memory: the barrier orders it
    for (int round = 0; round < 500; ++round) {
      team->Run([&](int t) { ++counts[t]; });
      for (int t = 0; t < threads; ++t) ASSERT_EQ(counts[t], round + 1);
    }
  }
}

// Threads that fell asleep wake up: the caller stays away longer than anyone spins.
TEST(ThreadTeam, WakesSleepers) {
  const auto team = ThreadTeam::Create(4, {});
  std::atomic<int> done{0};
  for (int round = 0; round < 20; ++round) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    while (std::chrono::steady_clock::now() < until) sched_yield();
    team->Run([&](int) { done.fetch_add(1); });
  }
  EXPECT_EQ(done.load(), 80);
}

// And the caller sleeps and wakes while a slow thread works.
TEST(ThreadTeam, WaitsForASlowThread) {
  const auto team = ThreadTeam::Create(3, {});
  for (int round = 0; round < 20; ++round) {
    bool finished[3] = {};
    team->Run([&](int t) {
      const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(400 * t);
      while (std::chrono::steady_clock::now() < until) sched_yield();
      finished[t] = true;
    });
    EXPECT_TRUE(finished[0] && finished[1] && finished[2]);
  }
}

TEST(ThreadTeam, PinsToTheListAndGivesTheMaskBack) {
  cpu_set_t before, after;
  ASSERT_EQ(pthread_getaffinity_np(pthread_self(), sizeof before, &before), 0);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &before)) ++cpu;
  {
    const auto team = ThreadTeam::Create(5, {cpu, cpu});
    ASSERT_EQ(team->size(), 2);
    int where[2] = {-1, -1};
    team->Run([&](int t) { where[t] = sched_getcpu(); });
    EXPECT_EQ(where[0], cpu);
    EXPECT_EQ(where[1], cpu);
  }
  ASSERT_EQ(pthread_getaffinity_np(pthread_self(), sizeof after, &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
  EXPECT_EQ(ThreadTeam::Create(1, {100000})->size(), 1);  // no such CPU: unpinned
}

// More teams than cores, as ranks on a small machine: each still ends within seconds.
TEST(ThreadTeam, TeamsThatOutnumberTheCores) {
  std::vector<std::thread> ranks;
  std::atomic<int64_t> total{0};
  for (int rank = 0; rank < 6; ++rank) {
    ranks.emplace_back([&] {
      const auto team = ThreadTeam::Create(2, {});
      for (int i = 0; i < 300; ++i) team->Run([&](int) { total.fetch_add(1); });
    });
  }
  for (std::thread& t : ranks) t.join();
  EXPECT_EQ(total.load(), 6 * 300 * 2);
}

TEST(ThreadTeam, ScratchIsEachThreadsOwn) {
  const auto team = ThreadTeam::Create(3, {});
  uint8_t* at[3] = {};
  for (size_t bytes : {size_t{100}, size_t{1} << 20, size_t{100}}) {
    team->Run([&](int t) {
      at[t] = ThreadTeam::Scratch(bytes);
      at[t][0] = at[t][bytes - 1] = static_cast<uint8_t>(t);
    });
    for (int t = 0; t < 3; ++t) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(at[t]) % 64, 0u);
      EXPECT_EQ(at[t][bytes - 1], t);
    }
  }
}

TEST(ThreadTeam, SharesCoverEverythingOnce) {
  for (int64_t total : {0, 1, 7, 100}) {
    for (int threads : {1, 3, 8}) {
      EXPECT_EQ(ThreadTeam::Begin(total, 0, threads), 0);
      EXPECT_EQ(ThreadTeam::Begin(total, threads, threads), total);
      for (int t = 0; t < threads; ++t) {
        EXPECT_LE(ThreadTeam::Begin(total, t, threads), ThreadTeam::Begin(total, t + 1, threads));
      }
    }
  }
}

}  // namespace
}  // namespace lapidary
