// `lapidary bench`: loads a server, checks every answer, and says how fast they came.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/api_client.h"
#include "cli/bench/grpc_client.h"
#include "cli/bench/http_client.h"
#include "cli/bench/load.h"
#include "cli/bench/openai_stream.h"
#include "cli/bench/report.h"
#include "cli/bench/workload.h"
#include "cli/commands.h"
#include "cli/local_serving.h"
#include "cli/signals.h"
#include "common/status_macros.h"
#include "model/tokenizer.h"

namespace lapidary {
namespace {

double ProcessCpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

AskOptions AskOptionsOf(const BenchFlags& flags) {
  return {.model = flags.model,
          .ignore_eos = flags.ignore_eos,
          .temperature = flags.temperature,
          .top_k = flags.top_k,
          .top_p = flags.top_p,
          .skip_text = flags.skip_text,
          .batch = flags.priority == "batch",
          .tenant = flags.tenant,
          .timeout_s = flags.timeout_s,
          .connections = flags.connections,
          .keep_alive = flags.keep_alive,
          .extra_body = flags.extra_body,
          .keep_answers = flags.verify > 0};
}

LoadOptions LoadOptionsOf(const BenchFlags& flags) {
  LoadOptions options;
  options.concurrency = flags.concurrency;
  options.rate = flags.rate;
  options.requests = flags.requests;
  options.duration_s = flags.duration_s;
  if (options.requests == 0 && options.duration_s <= 0) options.requests = 8 * flags.concurrency;
  options.check = {.ignore_eos = flags.ignore_eos, .loose_counts = flags.loose_counts};
  return options;
}

absl::StatusOr<WorkloadOptions> WorkloadOptionsOf(const BenchFlags& flags) {
  WorkloadOptions options;
  options.seed = flags.seed;
  ASSIGN_OR_RETURN(options.prompt_tokens, LengthMix::Parse(flags.prompt_tokens));
  ASSIGN_OR_RETURN(options.output_tokens, LengthMix::Parse(flags.output_tokens));
  options.shared_prefix_tokens = flags.shared_prefix_tokens;
  options.prefix_groups = flags.prefix_groups;
  options.vocabulary = flags.vocabulary;
  options.bos = flags.bos;
  options.rate = flags.rate;
  return options;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read the text ", path));
  std::string text(std::istreambuf_iterator<char>(file), {});
  if (text.empty()) return absl::InvalidArgumentError(absl::StrCat("the text ", path, " is empty"));
  return text;
}

// With the server's tokenizer, in pieces that fit its messages, cut behind line ends if there are.
absl::StatusOr<std::vector<uint32_t>> TokenizeText(ApiClient& client, std::string_view text) {
  constexpr size_t kPiece = size_t{1} << 16;
  std::vector<uint32_t> ids;
  while (!text.empty()) {
    size_t end = std::min(kPiece, text.size());
    if (end < text.size()) {
      if (const size_t line = text.rfind('\n', end - 1); line != std::string_view::npos) {
        end = line + 1;
      } else {
        while (end > 1 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // UTF-8
      }
    }
    v1::TokenizeRequest request;
    request.set_text(std::string(text.substr(0, end)));
    ASSIGN_OR_RETURN(const v1::TokenizeResponse response, client.Tokenize(request));
    ids.insert(ids.end(), response.token_ids().begin(), response.token_ids().end());
    text.remove_prefix(end);
  }
  return ids;
}

absl::Status Measure(BenchClient& client, const BenchFlags& flags, const Workload& workload,
                     BenchReport report) {
  report.workload = workload.options();
  report.load = LoadOptionsOf(flags);
  report.ask = AskOptionsOf(flags);
  RETURN_IF_ERROR(WarmUp(client, workload, flags.warmup, report.load, StopRequested));
  const bool bar = isatty(STDERR_FILENO) != 0;
  const auto progress = [&](const LoadProgress& now) {
    if (bar) std::fprintf(stderr, "\r\033[K%s", ProgressLine(now, report.load).c_str());
  };
  const double cpu = ProcessCpuSeconds();
  report.result = RunLoad(client, workload, report.load, StopRequested, progress);
  report.client_cpu_s = ProcessCpuSeconds() - cpu;
  if (flags.verify > 0 && report.result.status.ok()) {
    report.verified = true;
    report.verification = VerifyAnswers(client, workload, report.result.answers, flags.verify,
                                        report.load.check, StopRequested);
  }
  if (bar) std::fputs("\r\033[K", stderr);
  std::puts((flags.json ? ReportJson(report) : ReportTable(report)).c_str());
  std::fflush(stdout);
  const std::string problem = ReportProblem(report);
  if (problem.empty()) return absl::OkStatus();
  return absl::IsCancelled(report.result.status) ? report.result.status
                                                 : absl::AbortedError(problem);
}

absl::Status BenchGrpc(const std::string& address, const BenchFlags& flags) {
  ASSIGN_OR_RETURN(WorkloadOptions options, WorkloadOptionsOf(flags));
  ASSIGN_OR_RETURN(const std::unique_ptr<ApiClient> api,
                   ApiClient::Connect(address, absl::Seconds(10)));
  ASSIGN_OR_RETURN(const v1::Model model, api->GetModel(flags.model));
  if (options.vocabulary == 0) options.vocabulary = model.vocabulary_size();
  if (!flags.text_file.empty()) {
    ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text_file));
    ASSIGN_OR_RETURN(options.text, TokenizeText(*api, text));
  }
  ASSIGN_OR_RETURN(const Workload workload, Workload::Create(std::move(options)));
  if (workload.max_total_tokens() > model.max_context_tokens()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "a request may have %d tokens of prompt and %d of answer, and %s at %s holds %d: bound "
        "--prompt-tokens and --output-tokens",
        workload.max_prompt_tokens(), workload.options().output_tokens.max, model.name(), address,
        model.max_context_tokens()));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<BenchClient> client,
                   ConnectGrpcBenchClient(address, AskOptionsOf(flags)));
  return Measure(*client, flags, workload,
                 {.kind = "lapidary", .address = address, .model = model.name()});
}

absl::Status BenchOpenAi(const BenchFlags& flags) {
  ASSIGN_OR_RETURN(WorkloadOptions options, WorkloadOptionsOf(flags));
  if (!flags.extra_body.empty() && !IsJsonObject(flags.extra_body)) {
    return absl::InvalidArgumentError("--extra-body is not a JSON object: " + flags.extra_body);
  }
  if (!flags.text_file.empty()) {
    if (flags.tokenizer.empty()) {
      return absl::InvalidArgumentError(
          "--text with --openai needs --tokenizer MODEL: the prompts are sent as token ids");
    }
    ASSIGN_OR_RETURN(const std::string text, ReadText(flags.text_file));
    ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(flags.tokenizer));
    std::vector<TokenId> ids;
    tokenizer->Encode(text, SpecialTokens::kAsText, &ids);
    options.text.assign(ids.begin(), ids.end());
  }
  ASSIGN_OR_RETURN(const Workload workload, Workload::Create(std::move(options)));
  AskOptions ask = AskOptionsOf(flags);
  ASSIGN_OR_RETURN(const std::unique_ptr<BenchClient> client,
                   ConnectHttpBenchClient(flags.openai, &ask));
  return Measure(*client, flags, workload,
                 {.kind = "openai", .address = flags.openai, .model = ask.model});
}

}  // namespace

int RunBench(const BenchFlags& flags) {
  const bool own = !flags.local.engine.model_path.empty();
  if (own + !flags.server.empty() + !flags.openai.empty() != 1) {
    return Fail(absl::InvalidArgumentError(
        "say what to load: a MODEL path, --server HOST:PORT or --openai http://HOST:PORT"));
  }
  if (!flags.openai.empty()) {
    const absl::Status status = BenchOpenAi(flags);
    return status.ok() ? 0 : absl::IsCancelled(status) ? 130 : Fail(status);
  }
  GenerateFlags target;
  target.local = flags.local;
  target.server = flags.server;
  return AskServerOrOwn(target,
                        [&flags](const std::string& address) { return BenchGrpc(address, flags); });
}

}  // namespace lapidary
