// Random load on a real server for as long as one likes, checked token by token.
//
//   soak [--seconds 10] [--seed 1] [--clients 32] [--vocab 211] [--model DIR] [-- flags of
//   `lapidary serve`]
//
// Clients arrive, read, cancel, dawdle, set deadlines and err at random, over a KV pool that is too
// small for them. Whatever a request brings must be what it brings alone, or the beginning of that.
// At the end the server must be empty, end with status 0 when asked to, and no sanitizer may have
// written a report. Exit status 0 only then.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "tests/integration/serve_process.h"

namespace lapidary {
namespace {

// No request may take longer. Batch work waits for all interactive work, through a pool that holds
// one or two requests, and a sanitized server on a busy machine computes 60 steps a second.
constexpr absl::Duration kHang = absl::Minutes(10);
constexpr int kTemplates = 48;

struct Options {
  double seconds = 10;
  uint32_t seed = 1;
  int clients = 32;
  std::string model = "tests/golden/models/dense-awkward";
  int vocab = 211;
  std::vector<std::string> serve_flags = {
      "--threads",     "1",  "--compute",           "fp32",  "--kv-memory",           "1MiB",
      "--max-running", "24", "--slow-reader-bytes", "16KiB", "--slow-reader-timeout", "60"};
};

// A request and the tokens it brings when nothing else runs.
struct Template {
  v1::GenerateRequest request;
  std::vector<uint32_t> tokens;
};

// What the run has seen. Thread-safe.
class Tally {
 public:
  std::atomic<int64_t> requests{0}, whole{0}, cancelled{0}, dawdled{0}, late{0}, refused{0};
  std::atomic<int64_t> tokens{0};

  void Problem(const std::string& what) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (problems_++ < 20) std::cerr << "soak: " << what << std::endl;
  }
  int64_t problems() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return problems_;
  }

 private:
  mutable absl::Mutex mu_;
  int64_t problems_ ABSL_GUARDED_BY(mu_) = 0;
};

// Prompts of 3 to 200 tokens, a third of them on one of three common beginnings; 1 to 150 tokens
// out.
std::vector<Template> MakeTemplates(const Options& options) {
  std::mt19937 rng(options.seed);
  const auto token = [&] { return 5 + static_cast<uint32_t>(rng() % (options.vocab - 5)); };
  std::vector<std::vector<uint32_t>> beginnings(3);
  for (auto& beginning : beginnings) {
    for (int i = 0; i < 70; ++i) beginning.push_back(token());
  }
  std::vector<Template> templates(kTemplates);
  for (int i = 0; i < kTemplates; ++i) {
    v1::GenerateRequest& request = templates[i].request;
    request.mutable_token_ids()->add_ids(2);
    if (i % 3 == 0) {
      for (const uint32_t id : beginnings[rng() % 3]) request.mutable_token_ids()->add_ids(id);
    }
    for (int n = 2 + static_cast<int>(rng() % 130); n > 0; --n) {
      request.mutable_token_ids()->add_ids(token());
    }
    request.mutable_stopping()->set_max_tokens(1 + rng() % 150);
    request.mutable_stopping()->set_ignore_eos(i % 5 != 0);
    v1::SamplingOptions& sampling = *request.mutable_sampling();
    sampling.set_temperature(i % 2 == 0 ? 0.0f : 0.9f);
    sampling.set_seed(100 + i);
    if (i % 4 == 1) sampling.set_top_k(20);
    if (i % 8 == 3) sampling.set_top_p(0.9f);
    if (i % 8 == 5) sampling.set_frequency_penalty(0.5f);
    if (i % 8 == 7) sampling.set_repetition_penalty(1.2f);
    request.mutable_output()->set_logprobs(i % 4 == 2 ? 100 : 0);  // some answers are bulky
    request.set_priority(i % 3 == 1 ? v1::PRIORITY_BATCH : v1::PRIORITY_INTERACTIVE);
    request.set_tenant(i % 2 == 0 ? "a" : "b");
  }
  return templates;
}

// One client: one random request after the other until the time is up.
class Client {
 public:
  Client(const ServeProcess& serve, const std::vector<Template>& templates, uint32_t seed,
         Tally& tally)
      : templates_(templates), tally_(tally), rng_(seed) {
    // The connection itself holds little, so that who does not read is noticed.
    grpc::ChannelArguments small_window;
    small_window.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    small_window.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
    stub_ = serve.NewStub(small_window);
  }

  void Run(absl::Time until) {
    while (absl::Now() < until) {
      absl::SleepFor(absl::Milliseconds(Draw(40)));  // arrivals at random
      const Template& drawn = templates_[Draw(kTemplates)];
      ++tally_.requests;
      switch (Draw(10)) {
        case 0:
        case 1:
          Cancels(drawn);
          break;
        case 2:
          Dawdles(drawn);
          break;
        case 3:
          IsLate(drawn);
          break;
        case 4:
          Errs(drawn);
          break;
        default:
          Reads(drawn);
      }
    }
  }

 private:
  int Draw(int below) { return static_cast<int>(rng_() % static_cast<uint32_t>(below)); }

  void Reads(const Template& drawn) {
    Finish(drawn, /*stop_after=*/-1, absl::ZeroDuration(), kHang);
  }
  void Cancels(const Template& drawn) {
    Finish(drawn, Draw(static_cast<int>(drawn.tokens.size()) + 1), absl::ZeroDuration(), kHang);
  }
  void Dawdles(const Template& drawn) {
    ++tally_.dawdled;
    Finish(drawn, -1, absl::Milliseconds(1 + Draw(20)), kHang);
  }
  void IsLate(const Template& drawn) {
    Finish(drawn, -1, absl::ZeroDuration(), absl::Milliseconds(1 + Draw(300)));
  }
  void Errs(const Template& drawn) {
    v1::GenerateRequest request = drawn.request;
    request.mutable_sampling()->set_top_p(-1);
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse event;
    while (reader->Read(&event)) tally_.Problem("a request with top_p = -1 brought an event");
    const grpc::Status status = reader->Finish();
    if (status.error_code() != grpc::INVALID_ARGUMENT) {
      tally_.Problem(absl::StrCat("top_p = -1 brought ", status.error_message()));
    }
    ++tally_.refused;
  }

  // Reads with a pause after each message; cancels after `stop_after` tokens (-1: never).
  void Finish(const Template& drawn, int stop_after, absl::Duration pause, absl::Duration limit) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + limit));
    const auto reader = stub_->Generate(&context, drawn.request);
    v1::GenerateResponse event;
    std::vector<uint32_t> got;
    bool cancelled = false;
    const auto maybe_cancel = [&] {
      if (stop_after < 0 || cancelled || static_cast<int>(got.size()) < stop_after) return;
      context.TryCancel();
      cancelled = true;
    };
    maybe_cancel();
    while (reader->Read(&event)) {
      got.insert(got.end(), event.delta().token_ids().begin(), event.delta().token_ids().end());
      maybe_cancel();
      if (pause > absl::ZeroDuration()) absl::SleepFor(pause);
    }
    const grpc::Status status = reader->Finish();
    tally_.tokens += static_cast<int64_t>(got.size());
    const bool is_beginning = got.size() <= drawn.tokens.size() &&
                              std::equal(got.begin(), got.end(), drawn.tokens.begin());
    if (!is_beginning) tally_.Problem(Describe(drawn, got, "other tokens than alone"));
    if (status.ok()) {
      ++tally_.whole;
      if (got.size() != drawn.tokens.size()) tally_.Problem(Describe(drawn, got, "tokens lost"));
    } else if (cancelled && status.error_code() == grpc::CANCELLED) {
      ++tally_.cancelled;
    } else if (limit < kHang && status.error_code() == grpc::DEADLINE_EXCEEDED) {
      ++tally_.late;
    } else {
      tally_.Problem(Describe(drawn, got,
                              absl::StrCat("code ", static_cast<int>(status.error_code()), ": ",
                                           status.error_message())));
    }
  }

  static std::string Describe(const Template& drawn, const std::vector<uint32_t>& got,
                              const std::string& what) {
    size_t same = 0;
    while (same < got.size() && same < drawn.tokens.size() && got[same] == drawn.tokens[same]) {
      ++same;
    }
    return absl::StrFormat("seed %d, prompt of %d: %d of %d tokens, %d alike: %s",
                           drawn.request.sampling().seed(), drawn.request.token_ids().ids_size(),
                           got.size(), drawn.tokens.size(), same, what);
  }

  const std::vector<Template>& templates_;
  Tally& tally_;
  std::mt19937 rng_;
  std::unique_ptr<v1::LapidaryService::Stub> stub_;
};

// Nothing may be left: no request, no page in anybody's hands.
void AwaitEmpty(const ServeProcess& serve, Tally& tally) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  double left = -1;
  while (left != 0 && absl::Now() < deadline) {
    left = 0;
    for (const char* name : {"lapidary_requests_running", "lapidary_requests_waiting",
                             "lapidary_requests_paused", "lapidary_streams_open"}) {
      left += serve.Metric(name).value_or(1);
    }
    left += serve.Metric("lapidary_kv_usage_ratio").value_or(1) > 0 ? 1 : 0;
  }
  if (left != 0) tally.Problem("requests, streams or KV pages are left after everybody has gone");
}

// Sanitizers of all child processes write their reports to files here.
std::string CollectReports() {
  std::string folder = std::filesystem::temp_directory_path() / "lapidary_soak_XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return "";
  for (const char* name : {"ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS"}) {
    const char* before = std::getenv(name);
    setenv(name,
           absl::StrCat(before == nullptr ? "" : absl::StrCat(before, ":"), "log_path=", folder,
                        "/report")
               .c_str(),
           1);
  }
  return folder;
}

void ShowReports(const std::string& folder, Tally& tally) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path());
    std::cerr << file.rdbuf();
    tally.Problem("a sanitizer has written a report");
  }
  std::filesystem::remove_all(folder);
}

absl::Status Soak(const Options& options) {
  const std::string reports = CollectReports();
  Tally tally;
  {
    absl::StatusOr<std::unique_ptr<ServeProcess>> serve =
        ServeProcess::Start(options.model, options.serve_flags);
    if (!serve.ok()) return serve.status();
    std::vector<Template> templates = MakeTemplates(options);
    const auto stub = (*serve)->NewStub();
    for (Template& each : templates) {
      const absl::StatusOr<Answer> alone = Ask(*stub, each.request);
      if (!alone.ok()) return alone.status();
      each.tokens = alone->token_ids;
    }
    const absl::Time until = absl::Now() + absl::Seconds(options.seconds);
    std::vector<std::thread> threads;
    for (int i = 0; i < options.clients; ++i) {
      threads.emplace_back([&, i] {
        Client(**serve, templates, options.seed * 7919 + static_cast<uint32_t>(i), tally)
            .Run(until);
      });
    }
    for (std::thread& thread : threads) thread.join();
    AwaitEmpty(**serve, tally);
    absl::FPrintF(
        stdout,
        "seed %d: %d requests: %d whole, %d cancelled, %d past their deadline, %d refused; "
        "%d dawdled; %d tokens; %.0f preemptions; %.0f prompt tokens from the prefix cache\n",
        options.seed, tally.requests.load(), tally.whole.load(), tally.cancelled.load(),
        tally.late.load(), tally.refused.load(), tally.dawdled.load(), tally.tokens.load(),
        (*serve)->Metric("lapidary_preemptions_total").value_or(0),
        (*serve)->Metric("lapidary_prefix_cache_hits_total").value_or(0));
    if (const absl::Status stopped = (*serve)->Stop(absl::Minutes(2)); !stopped.ok()) {
      tally.Problem(std::string(stopped.message()));
    }
  }
  if (!reports.empty()) ShowReports(reports, tally);
  if (tally.problems() == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(tally.problems(), " problems"));
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--") {
      options.serve_flags.assign(argv + i + 1, argv + argc);
      break;
    }
    if (i + 1 == argc) {
      std::cerr << "soak: " << flag << " needs a value" << std::endl;
      return 2;
    }
    const std::string value = argv[++i];
    if (flag == "--seconds") {
      options.seconds = std::atof(value.c_str());
    } else if (flag == "--seed") {
      options.seed = static_cast<uint32_t>(std::atoi(value.c_str()));
    } else if (flag == "--clients") {
      options.clients = std::atoi(value.c_str());
    } else if (flag == "--model") {
      options.model = value;
    } else if (flag == "--vocab") {
      options.vocab = std::atoi(value.c_str());
    } else {
      std::cerr << "soak: unknown flag " << flag << std::endl;
      return 2;
    }
  }
  const absl::Status status = Soak(options);
  if (status.ok()) return 0;
  std::cerr << "soak: " << status.message() << std::endl;
  return 1;
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) { return lapidary::Main(argc, argv); }
