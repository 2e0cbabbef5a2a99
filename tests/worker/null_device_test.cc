// The null device in whole workers: what it makes up is exact in number, the same in any company
// and for any number of ranks, and text.
#include "worker/null_device.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <thread>

#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"
#include "tests/worker/fake_coordinator.h"
#include "worker/worker_main.h"

namespace lapidary {
namespace {

namespace fs = std::filesystem;
namespace wire = cluster::v1;
using testing::HasSubstr;

constexpr char kModel[] = "tests/golden/models/dense-gpu";
constexpr char kWithoutTokenizer[] = "tests/golden/models/gemma3-awkward";

wire::Assignment AssignmentFor(const std::string& path) {
  static int group = 0;
  wire::Assignment a;
  a.set_model_path(path);
  a.set_compute("bf16");
  a.set_arith("auto");
  a.set_rendezvous(absl::StrFormat("null-test-%d-%d", getpid(), ++group));
  a.set_max_running(16);
  a.set_max_step_tokens(64);
  a.set_max_queued(1000);
  a.set_kv_bytes(uint64_t{1} << 40);  // more than there is: nothing may be allocated
  return a;
}

class NullGroup {
 public:
  NullGroup(int ranks, const std::string& path, absl::Duration step = absl::ZeroDuration())
      : coordinator_(ranks, AssignmentFor(path)), results_(static_cast<size_t>(ranks)) {
    for (int r = 0; r < ranks; ++r) {
      threads_.emplace_back([this, r, step] {
        WorkerConfig config;
        config.coordinator = coordinator_.address();
        config.rank_hint = r;
        config.metrics_listen = "";
        config.device = "null";
        config.null_step = step;
        results_[static_cast<size_t>(r)] = RunWorker(config, -1);
      });
    }
    EXPECT_TRUE(coordinator_.AwaitReady());
  }
  ~NullGroup() {
    wire::ConnectResponse drain;
    drain.mutable_drain();
    coordinator_.SendAll(drain);
    for (std::thread& t : threads_) t.join();
    for (const absl::Status& s : results_) EXPECT_TRUE(s.ok()) << s;
  }

  void Submit(uint64_t id, uint64_t seed, int max_tokens,
              const std::vector<uint32_t>& stop_ids = {}) {
    wire::ConnectResponse message;
    wire::Submit* submit = message.mutable_submit();
    submit->set_id(id);
    for (uint32_t i = 0; i < 2 + seed % 40; ++i) submit->add_prompt(5 + i);
    wire::Sampling* sampling = submit->mutable_sampling();
    sampling->set_seed(seed);
    sampling->set_top_p(1);
    sampling->set_repetition_penalty(1);
    sampling->set_max_tokens(max_tokens);
    sampling->set_logprobs(-1);
    sampling->set_prompt_logprobs(-1);
    for (const uint32_t stop : stop_ids) sampling->add_stop_ids(stop);
    coordinator_.Send(0, message);
    ++submitted_;
  }
  void AwaitAll() { ASSERT_TRUE(coordinator_.AwaitFinished(submitted_)); }
  FakeCoordinator& coordinator() { return coordinator_; }

 private:
  FakeCoordinator coordinator_;
  std::vector<absl::Status> results_;
  std::vector<std::thread> threads_;
  int submitted_ = 0;
};

class NullDeviceTest : public testing::TestWithParam<int> {};

TEST_P(NullDeviceTest, TheTokensAreTheSameInAnyCompanyAndForAnyRanks) {
  constexpr int kRequests = 40;  // more than run at once
  const auto length = [](int i) { return 1 + (i * 37) % 150; };
  NullGroup alone(1, kModel);
  NullGroup together(GetParam(), kModel);
  for (int i = 0; i < kRequests; ++i) together.Submit(i, i, length(i));
  for (int i = 0; i < kRequests; ++i) {
    alone.Submit(i, i, length(i));
    alone.AwaitAll();
  }
  together.AwaitAll();
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Load(kModel);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::set<TokenId> seen;
  for (int i = 0; i < kRequests; ++i) {
    const FakeCoordinator::Outcome got = together.coordinator().outcome(i);
    EXPECT_EQ(std::ssize(got.tokens), length(i));
    EXPECT_EQ(got.finish, wire::FINISH_LENGTH);
    EXPECT_EQ(got.finishes, 1);
    EXPECT_EQ(got.tokens, alone.coordinator().outcome(i).tokens) << "request " << i;
    for (const TokenId token : got.tokens) {
      EXPECT_EQ((*tokenizer)->kind(token), TokenKind::kNormal);
      const std::string text = (*tokenizer)->PieceText(token);
      EXPECT_TRUE(!text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
        return c >= ' ' && c <= '~';
      })) << token;
      seen.insert(token);
    }
  }
  EXPECT_GT(seen.size(), 50u) << "a stuck generator";
}
INSTANTIATE_TEST_SUITE_P(Ranks, NullDeviceTest, testing::Values(1, 2));

TEST(NullDevice, AStopIdThatWasAskedForEndsTheRequest) {
  NullGroup group(1, kModel);
  group.Submit(1, 7, 200);
  group.AwaitAll();
  const std::vector<int32_t> free = group.coordinator().outcome(1).tokens;
  const int32_t stop = free[30];
  const auto first = std::find(free.begin(), free.end(), stop) - free.begin();
  group.Submit(2, 7, 200, {static_cast<uint32_t>(stop)});
  group.AwaitAll();
  EXPECT_EQ(group.coordinator().outcome(2).finish, wire::FINISH_STOP);
  EXPECT_EQ(std::ssize(group.coordinator().outcome(2).tokens), first + 1);
}

TEST(NullDevice, AConfigurationAndATokenizerAreEnough) {
  const fs::path folder = fs::temp_directory_path() / absl::StrFormat("lapidary_null_%d", getpid());
  fs::create_directory(folder);
  for (const char* name : {"config.json", "tokenizer.json"}) {
    fs::copy_file(fs::path(kModel) / name, folder / name, fs::copy_options::overwrite_existing);
  }
  {
    NullGroup bare(1, folder.string()), whole(1, kModel);
    for (NullGroup* group : {&bare, &whole}) {
      group->Submit(1, 3, 50);
      group->AwaitAll();
    }
    EXPECT_EQ(bare.coordinator().outcome(1).tokens, whole.coordinator().outcome(1).tokens);
    EXPECT_GT(bare.coordinator().ready_of(0).global_pages(), 1000u);
    EXPECT_EQ(bare.coordinator().ready_of(0).weights_bytes(), 0u);
  }
  fs::remove_all(folder);
}

TEST(NullDevice, WithoutATokenizerIdsAreServed) {
  NullGroup group(1, kWithoutTokenizer);
  group.Submit(1, 3, 50);
  group.AwaitAll();
  EXPECT_EQ(group.coordinator().outcome(1).tokens.size(), 50u);
}

TEST(NullDevice, AStepTakesTheTimeThatWasAskedFor) {
  NullGroup group(1, kModel, absl::Milliseconds(2));
  const absl::Time began = absl::Now();
  group.Submit(1, 3, 20);
  group.AwaitAll();
  EXPECT_GE(absl::Now() - began, absl::Milliseconds(40));
}

TEST(NullDevice, ADeviceThatIsNoneIsRefused) {
  WorkerConfig config;
  config.coordinator = "127.0.0.1:1";
  config.device = "tpu";
  EXPECT_THAT(RunWorker(config, -1).message(), HasSubstr("'tpu' is no device"));
}

}  // namespace
}  // namespace lapidary
