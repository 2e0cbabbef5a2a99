// Closed-loop load on a running coordinator: so many streams, each asking anew when it has its
// answer. Counts what comes back, checks it, and says what processor time the servers took for it.
//
//   stream_load HOST:PORT [--streams 256] [--tokens 1000] [--rounds 4] [--channels 1]
//               [--prompt 16] [--skip-text] [--pids PID,PID,...]
//
// Every answer must have exactly the tokens asked for, by its deltas and by its usage; one that has
// not is a failure, and the exit code 1. Figures with the null device: docs/measurements.md.
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "lapidary/v1/lapidary.grpc.pb.h"

namespace lapidary {
namespace {

struct Options {
  std::string address;
  int streams = 256, tokens = 1000, rounds = 4, channels = 1, prompt = 16;
  bool skip_text = false;
  std::vector<int> pids;  // of the servers, to measure
};

struct Totals {
  int64_t tokens = 0, messages = 0, text_bytes = 0, failures = 0;
  std::vector<double> first_token_seconds, gap_seconds;
};

// One stream: asks `rounds` times in turn. Reactions of one call never run at the same time.
class Stream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Stream(const Options& options, int index, v1::LapidaryService::Stub& stub,
         absl::BlockingCounter& done)
      : options_(options), stub_(stub), done_(done), left_(options.rounds) {
    request_.mutable_token_ids()->add_ids(2);
    for (int i = 1; i < options.prompt; ++i) {
      request_.mutable_token_ids()->add_ids(static_cast<uint32_t>(5 + (index + i) % 100));
    }
    request_.mutable_stopping()->set_max_tokens(static_cast<uint32_t>(options.tokens));
    request_.mutable_stopping()->set_ignore_eos(true);
    request_.mutable_sampling()->set_seed(static_cast<uint64_t>(index));
    request_.mutable_output()->set_skip_text(options.skip_text);
  }

  void Ask() {
    context_ = std::make_unique<grpc::ClientContext>();
    began_ = last_ = absl::Now();
    received_ = 0;
    usage_ = 0;
    stub_.async()->Generate(context_.get(), &request_, this);
    StartRead(&event_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (event_.has_delta()) {
      const absl::Time now = absl::Now();
      (received_ == 0 ? totals_.first_token_seconds : totals_.gap_seconds)
          .push_back(absl::ToDoubleSeconds(now - last_));
      last_ = now;
      received_ += event_.delta().token_ids_size();
      totals_.text_bytes += static_cast<int64_t>(event_.delta().text().size());
    } else if (event_.has_usage()) {
      usage_ = static_cast<int>(event_.usage().completion_tokens());
    }
    ++totals_.messages;
    StartRead(&event_);
  }

  void OnDone(const grpc::Status& status) override {
    totals_.tokens += received_;
    if (!status.ok() || received_ != options_.tokens || usage_ != options_.tokens) {
      ++totals_.failures;
      std::fprintf(stderr, "%d of %d tokens, usage %d: %s\n", received_, options_.tokens, usage_,
                   status.error_message().c_str());
    }
    if (--left_ > 0) {
      Ask();
    } else {
      done_.DecrementCount();
    }
  }

  const Totals& totals() const { return totals_; }

 private:
  const Options& options_;
  v1::LapidaryService::Stub& stub_;
  absl::BlockingCounter& done_;
  v1::GenerateRequest request_;
  std::unique_ptr<grpc::ClientContext> context_;
  v1::GenerateResponse event_;
  absl::Time began_, last_;
  int received_ = 0, usage_ = 0;
  int left_;
  Totals totals_;
};

// User and system seconds of a process so far.
double ProcessSeconds(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t after_name = text.rfind(')');
  if (after_name == std::string::npos) return 0;
  const std::vector<std::string> fields = absl::StrSplit(text.substr(after_name + 2), ' ');
  int64_t user = 0, system = 0;
  if (fields.size() < 13 || !absl::SimpleAtoi(fields[11], &user) ||
      !absl::SimpleAtoi(fields[12], &system)) {
    return 0;
  }
  return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double OwnSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Percentile(std::vector<double>& values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(at), values.end());
  return values[at];
}

int Run(const Options& options) {
  std::vector<std::unique_ptr<v1::LapidaryService::Stub>> stubs;
  for (int i = 0; i < options.channels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    auto channel =
        grpc::CreateCustomChannel(options.address, grpc::InsecureChannelCredentials(), arguments);
    if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + absl::Seconds(10)))) {
      std::fprintf(stderr, "nobody listens at %s\n", options.address.c_str());
      return 1;
    }
    stubs.push_back(v1::LapidaryService::NewStub(channel));
  }
  absl::BlockingCounter done(options.streams);
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < options.streams; ++i) {
    streams.push_back(std::make_unique<Stream>(
        options, i, *stubs[static_cast<size_t>(i % options.channels)], done));
  }
  std::vector<double> server_before;
  for (const int pid : options.pids) server_before.push_back(ProcessSeconds(pid));
  const double own_before = OwnSeconds();
  const absl::Time began = absl::Now();
  for (const auto& stream : streams) stream->Ask();
  done.Wait();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - began);

  Totals all;
  for (const auto& stream : streams) {
    const Totals& t = stream->totals();
    all.tokens += t.tokens;
    all.messages += t.messages;
    all.text_bytes += t.text_bytes;
    all.failures += t.failures;
    all.first_token_seconds.insert(all.first_token_seconds.end(), t.first_token_seconds.begin(),
                                   t.first_token_seconds.end());
    all.gap_seconds.insert(all.gap_seconds.end(), t.gap_seconds.begin(), t.gap_seconds.end());
  }
  double load[1] = {0};
  getloadavg(load, 1);
  const auto tokens = static_cast<double>(all.tokens);
  std::printf("%d streams, %d channels: %.0f tokens in %.2f s = %.0f tokens/s; load average %.1f\n",
              options.streams, options.channels, tokens, seconds, tokens / seconds, load[0]);
  std::printf("%.2f tokens per message, %.1f bytes of text per token, %ld failures\n",
              tokens / static_cast<double>(all.messages),
              static_cast<double>(all.text_bytes) / tokens, static_cast<long>(all.failures));
  std::printf("first token p50 %.1f ms p99 %.1f ms; between messages p50 %.2f ms p99 %.2f ms\n",
              1e3 * Percentile(all.first_token_seconds, 0.5),
              1e3 * Percentile(all.first_token_seconds, 0.99),
              1e3 * Percentile(all.gap_seconds, 0.5), 1e3 * Percentile(all.gap_seconds, 0.99));
  std::printf("client: %.2f us of processor time per token\n",
              1e6 * (OwnSeconds() - own_before) / tokens);
  double server = 0;
  for (size_t i = 0; i < options.pids.size(); ++i) {
    const double used = ProcessSeconds(options.pids[i]) - server_before[i];
    server += used;
    std::printf("process %d: %.2f us per token\n", options.pids[i], 1e6 * used / tokens);
  }
  if (!options.pids.empty()) {
    std::printf("servers: %.2f us per token: one processor is enough for %.0f tokens/s\n",
                1e6 * server / tokens, tokens / server);
  }
  return all.failures == 0 ? 0 : 1;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--skip-text") {
      options.skip_text = true;
      continue;
    }
    if (name.substr(0, 2) != "--") {
      options.address = name;
      continue;
    }
    int* const target = name == "--streams"    ? &options.streams
                        : name == "--tokens"   ? &options.tokens
                        : name == "--rounds"   ? &options.rounds
                        : name == "--channels" ? &options.channels
                        : name == "--prompt"   ? &options.prompt
                                               : nullptr;
    const std::string value = i + 1 < argc ? argv[++i] : "";
    if (name == "--pids") {
      for (const auto& text : absl::StrSplit(value, ',')) {
        int pid = 0;
        if (absl::SimpleAtoi(text, &pid)) options.pids.push_back(pid);
      }
    } else if (target == nullptr || !absl::SimpleAtoi(value, target) || *target < 1) {
      std::fprintf(stderr, "not understood: %s %s (see the head of bench/stream_load_client.cc)\n",
                   name.c_str(), value.c_str());
      return 2;
    }
  }
  if (options.address.empty()) {
    std::fprintf(stderr,
                 "stream_load HOST:PORT ...: see the head of bench/stream_load_client.cc\n");
    return 2;
  }
  return Run(options);
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) { return lapidary::Main(argc, argv); }
