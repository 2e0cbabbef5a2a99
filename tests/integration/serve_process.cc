#include "tests/integration/serve_process.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/http_get.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

constexpr absl::Duration kStartDeadline = absl::Seconds(60);
constexpr absl::Duration kStopDeadline = absl::Seconds(20);

// Waits until the process has ended, at most so long.
bool AwaitEnd(pid_t pid, absl::Duration timeout) {
  const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
  if (fd < 0) return true;
  pollfd wait = {fd, POLLIN, 0};
  const bool ended = poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout))) > 0;
  close(fd);
  return ended;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServeProcess>> ServeProcess::Start(
    const std::string& model, const std::vector<std::string>& flags) {
  const char* binary = std::getenv("LAPIDARY_BINARY");
  if (binary == nullptr) return absl::FailedPreconditionError("LAPIDARY_BINARY is not set");
  std::string folder = std::filesystem::temp_directory_path() / "lapidary_test_XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return absl::InternalError("mkdtemp failed");
  std::unique_ptr<ServeProcess> serve(new ServeProcess);
  serve->folder_ = folder;
  const std::string address_file = folder + "/address";

  std::vector<std::string> words = {binary, "serve",          model,       "--port",
                                    "0",    "--log-level",    "warning",   "--metrics-port",
                                    "0",    "--address-file", address_file};
  words.insert(words.end(), flags.begin(), flags.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  if (posix_spawn(&serve->pid_, binary, nullptr, nullptr, argv.data(), environ) != 0) {
    return absl::InternalError(absl::StrCat("cannot start ", binary));
  }
  const absl::Time deadline = absl::Now() + kStartDeadline;
  while (absl::Now() < deadline) {
    std::ifstream file(address_file);
    std::string metrics;
    if (file >> serve->address_ >> metrics &&
        absl::SimpleAtoi(metrics.substr(metrics.rfind(':') + 1), &serve->metrics_port_)) {
      return serve;
    }
    if (AwaitEnd(serve->pid_, absl::Milliseconds(10))) {
      return absl::UnavailableError("serve ended while starting");
    }
  }
  return absl::DeadlineExceededError("serve is not ready");
}

ServeProcess::~ServeProcess() {
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    if (!AwaitEnd(pid_, kStopDeadline)) kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

absl::Status ServeProcess::Stop(absl::Duration timeout) {
  kill(pid_, SIGTERM);
  if (!AwaitEnd(pid_, timeout)) {
    return absl::DeadlineExceededError(
        absl::StrCat("serve has not ended ", absl::FormatDuration(timeout), " after SIGTERM"));
  }
  int status = 0;
  waitpid(std::exchange(pid_, -1), &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return absl::OkStatus();
  return absl::AbortedError(absl::StrCat("serve ended with wait status ", status));
}

std::unique_ptr<v1::LapidaryService::Stub> ServeProcess::NewStub(
    grpc::ChannelArguments arguments) const {
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::LapidaryService::NewStub(
      grpc::CreateCustomChannel(address_, grpc::InsecureChannelCredentials(), arguments));
}

absl::StatusOr<double> ServeProcess::Metric(const std::string& name) const {
  ASSIGN_OR_RETURN(const HttpPage page, HttpGet(metrics_port_, "/metrics", absl::Seconds(10)));
  std::istringstream lines(page.body);
  std::string line;
  double sum = 0;
  bool found = false;
  while (std::getline(lines, line)) {
    if (!absl::StartsWith(line, name + " ") && !absl::StartsWith(line, name + "{")) continue;
    double value = 0;
    if (!absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)) continue;
    sum += value;
    found = true;
  }
  if (!found) return absl::NotFoundError(absl::StrCat(name, " is missing from /metrics"));
  return sum;
}

absl::StatusOr<Answer> Ask(v1::LapidaryService::Stub& stub, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
  context.set_wait_for_ready(true);
  const auto reader = stub.Generate(&context, request);
  Answer answer;
  v1::GenerateResponse event;
  while (reader->Read(&event)) {
    if (event.has_delta()) {
      answer.token_ids.insert(answer.token_ids.end(), event.delta().token_ids().begin(),
                              event.delta().token_ids().end());
    } else if (event.has_choice_finished()) {
      answer.finish = event.choice_finished().reason();
    } else if (event.has_usage()) {
      answer.completion_tokens = event.usage().completion_tokens();
    }
  }
  const grpc::Status status = reader->Finish();
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }
  return answer;
}

}  // namespace lapidary
