#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "cli/flags_groups.h"
#include "cli/options.h"

namespace lapidary {
namespace {

constexpr char kIntro[] =
    "Lapidary serves Google's Gemma models: one coordinator (gRPC), any number of worker ranks.\n\n"
    "First steps:\n"
    "  lapidary inspect MODEL                          what a checkpoint is and needs\n"
    "  lapidary serve MODEL                            serve it on this machine\n"
    "  lapidary generate --server 127.0.0.1:50051 --prompt 'Once upon a time'\n"
    "  lapidary generate MODEL --prompt 'Once upon a time'    without a server\n\n"
    "MODEL is a Hugging Face directory (config.json, *.safetensors, tokenizer.json) or a GGUF "
    "file.\n"
    "`lapidary COMMAND --help` explains each command with examples.";

// "1GiB", "512MiB", "2e9", "1073741824".
CLI::Option* AddBytes(CLI::App* app, const std::string& name, int64_t& target,
                      const std::string& help) {
  return app
      ->add_option_function<std::string>(
          name,
          [&target](const std::string& text) {
            size_t used = 0;
            double value = 0;
            try {
              value = std::stod(text, &used);
            } catch (const std::exception&) {
              throw CLI::ValidationError("not a size: " + text + " (try 512MiB or 2GiB)");
            }
            const std::string unit = text.substr(used);
            const double factor = unit.empty() || unit == "B"    ? 1
                                  : unit == "KiB" || unit == "K" ? 0x1p10
                                  : unit == "MiB" || unit == "M" ? 0x1p20
                                  : unit == "GiB" || unit == "G" ? 0x1p30
                                  : unit == "TiB" || unit == "T" ? 0x1p40
                                  : unit == "GB"                 ? 1e9
                                  : unit == "MB"                 ? 1e6
                                                                 : -1;
            if (factor < 0 || value <= 0 || value * factor > 0x1p60) {
              throw CLI::ValidationError("not a size: " + text + " (try 512MiB or 2GiB)");
            }
            target = static_cast<int64_t>(value * factor);
          },
          help)
      ->type_name("BYTES");
}

// "NAME=WEIGHT", repeated; the name may be empty and hold '='.
void AddTenantWeights(CLI::App* app, std::map<std::string, double>& target) {
  app->add_option_function<std::vector<std::string>>(
         "--tenant-weight",
         [&target](const std::vector<std::string>& pairs) {
           for (const std::string& pair : pairs) {
             const size_t equals = pair.rfind('=');
             char* end = nullptr;
             const char* number = equals == std::string::npos ? "" : pair.c_str() + equals + 1;
             const double weight = std::strtod(number, &end);
             if (end == number || *end != '\0' || !(weight > 0)) {
               throw CLI::ValidationError("not NAME=WEIGHT with a weight above 0: " + pair);
             }
             target[pair.substr(0, equals)] = weight;
           }
         },
         "A tenant's share of a busy server, as NAME=WEIGHT (default 1); may be repeated")
      ->allow_extra_args(false);
}

void AddEngine(CLI::App* app, EngineFlags& f, bool model_required) {
  auto* model = app->add_option("MODEL", f.model_path, "Hugging Face directory or GGUF file");
  if (model_required) model->required();
  app->add_option("--served-model-name", f.served_model_name, "Name clients ask for");
  app->add_option("--tp,--tensor-parallel", f.tensor_parallel,
                  "Ranks that share the model; 0: every GPU of this machine, without any one")
      ->check(CLI::Range(0, 64));
  app->add_option("--compute", f.compute,
                  "Arithmetic of the products; auto: int8 for quantised files on a CPU, else bf16")
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "int8", "fp8"}));
  app->add_option("--arith", f.arith, "Instruction set of the products; auto is timed at start");
  app->add_option("--max-context", f.max_context,
                  "Most tokens of prompt and answer; 0: the model's, as far as memory allows")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  app->add_option("--max-running", f.max_running, "Sequences computed together")
      ->check(CLI::Range(1, 4096));
  app->add_option("--max-step-tokens", f.max_step_tokens, "Tokens computed in one step")
      ->check(CLI::Range(1, 65536));
  app->add_option("--max-queued", f.max_queued, "Waiting requests before new ones are refused")
      ->check(CLI::Range(1, 1 << 20));
  app->add_option("--max-queued-tokens", f.max_queued_tokens,
                  "Tokens of waiting requests before new ones are refused; 0: not limited")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  AddBytes(app, "--kv-memory", f.kv_bytes,
           "Memory of each rank for the KV cache (default: 1GiB, on a GPU what is left)");
  app->add_option("--kv-format", f.kv_format,
                  "Pages of global layers whose keys are their values; auto is the device's best")
      ->check(CLI::IsMember({"auto", "split", "folded", "single"}));
  app->add_option("--kv-type", f.kv_type,
                  "Numbers in the KV pages: int8 on a CPU, fp8 on a GPU; auto: fp32 for --compute "
                  "fp32, else bf16")
      ->check(CLI::IsMember({"auto", "bf16", "int8", "fp8"}));
  app->add_flag("--prefix-cache,!--no-prefix-cache", f.prefix_cache,
                "Keep computed prompt prefixes for later requests");
  app->add_option("--max-in-flight", f.max_in_flight,
                  "Steps planned before the first is done; 0: the worker's default")
      ->check(CLI::Range(0, 2));
  app->add_option("--step-time-target", f.step_time_target_ms,
                  "Milliseconds: prompts are cut so that steps stay below, or to a quarter of "
                  "each; 0: by tokens alone")
      ->check(CLI::Range(0.0, 1e6));
  AddTenantWeights(app, f.tenant_weights);
}

void AddListen(CLI::App* app, ListenFlags& f) {
  app->add_option("--host", f.host, "Address to listen on; not loopback needs --insecure");
  app->add_option("--port", f.port, "gRPC port; 0: any free one")->check(CLI::Range(0, 65535));
  app->add_option("--metrics-port", f.metrics_port, "Port of /metrics, /livez, /readyz; 0: any")
      ->check(CLI::Range(0, 65535));
  app->add_flag("--insecure", f.insecure, "Serve beyond loopback without TLS");
  app->add_flag("!--no-reflection", f.reflection, "Turn gRPC reflection off");
  app->add_flag("!--no-vllm-metrics", f.vllm_metrics, "Leave out the vllm:* metric aliases");
  AddBytes(app, "--slow-reader-bytes", f.slow_reader_bytes,
           "Output a client may leave unread before its request is paused (default 1MiB)");
  app->add_option("--slow-reader-timeout", f.slow_reader_timeout_s,
                  "Seconds a paused client may read nothing before its request is cancelled");
}

void AddDevice(CLI::App* app, DeviceFlags& f) {
  app->add_option(
         "--device", f.device,
         "auto (cuda where there is a GPU, else cpu), cpu, cuda, or null: computes nothing "
         "and makes tokens up, to measure the rest")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "null"}));
  app->add_option("--null-step-us", f.null_step_us, "Microseconds the null device takes for a step")
      ->check(CLI::Range(int64_t{0}, int64_t{60'000'000}));
  app->add_flag("--cuda-graphs,!--no-cuda-graphs", f.cuda_graphs,
                "Record decode steps once and replay them (GPU)");
  app->add_option("--all-reduce", f.all_reduce,
                  "How GPU ranks sum: nccl, or one-shot: messages up to 512 KiB over peer memory "
                  "(unproven on hardware)")
      ->check(CLI::IsMember({"nccl", "one-shot"}));
  app->add_option("--cuda-library", f.cuda_library,
                  "The GPU part, liblapidary_cuda.so; default: beside this program");
}

}  // namespace

void AddServe(CLI::App* app, ServeFlags& f, bool model_required) {
  AddEngine(app, f.engine, model_required);
  AddDevice(app, f.device);
  app->add_option("--threads", f.threads, "Threads of each rank; 0: this machine's CPUs shared out")
      ->check(CLI::Range(0, 1024));
}

namespace {

template <class T>
void AddOptional(CLI::App* app, const std::string& name, std::optional<T>& target,
                 const std::string& help) {
  app->add_option_function<T>(
      name, [&target](const T& value) { target = value; }, help);
}

void AddSampling(CLI::App* app, GenerateFlags& f) {
  const std::string group = "Sampling";
  app->add_option("--max-tokens", f.max_tokens,
                  "Most tokens to generate; 0: what the context holds");
  app->add_option("--min-tokens", f.min_tokens, "No end of sequence before this many");
  AddOptional(app, "--temperature", f.temperature, "0 is greedy (default: the model's, else 1)");
  AddOptional(app, "--top-k", f.top_k, "Keep the k best; 0 keeps all");
  AddOptional(app, "--top-p", f.top_p, "Keep the best up to this probability mass");
  AddOptional(app, "--min-p", f.min_p, "Drop what is less likely than this times the best");
  AddOptional(app, "--repetition-penalty", f.repetition_penalty, "Above 1 discourages repeats");
  AddOptional(app, "--presence-penalty", f.presence_penalty, "Off the logits of used tokens");
  AddOptional(app, "--frequency-penalty", f.frequency_penalty, "The same, per occurrence");
  AddOptional(app, "--seed", f.seed, "Same seed, same tokens");
  app->add_option_function<std::vector<std::string>>(
         "--logit-bias",
         [&f](const std::vector<std::string>& pairs) {
           for (const std::string& pair : pairs) {
             unsigned id = 0;
             float bias = 0;
             if (sscanf(pair.c_str(), "%u:%f", &id, &bias) != 2) {
               throw CLI::ValidationError("not ID:BIAS: " + pair);
             }
             f.logit_bias[id] = bias;
           }
         },
         "Added to a token's logit, as ID:BIAS; may be repeated")
      ->delimiter(',');
  app->add_option("--stop", f.stop, "Text that ends the answer; may be repeated")
      ->allow_extra_args(false);
  app->add_option("--stop-token-ids", f.stop_token_ids, "Token ids that end the answer")
      ->delimiter(',');
  app->add_flag("--ignore-eos", f.ignore_eos, "Go on past the model's end tokens");
  app->add_flag("--keep-special", f.keep_special, "Show control tokens in the text");
}

void AddService(CLI::App* app, GenerateFlags& f) {
  app->add_option("--priority", f.priority, "Interactive requests are computed before batch ones")
      ->check(CLI::IsMember({"interactive", "batch"}));
  app->add_option("--tenant", f.tenant, "Whose share of a busy server is used");
  app->add_option("--cache-salt", f.cache_salt,
                  "Share computed prefixes only with requests of the same tenant and salt");
}

void AddGenerate(CLI::App* app, GenerateFlags& f) {
  AddServe(app, f.local, /*model_required=*/false);
  app->add_option("--server", f.server, "Ask a running server, HOST:PORT");
  app->add_option("--model", f.model, "Served model name to ask for");
  app->add_option_function<std::string>(
      "-p,--prompt", [&f](const std::string& text) { f.prompt = text; }, "Text to continue");
  app->add_option("--prompt-file", f.prompt_file, "File with the text to continue; - is stdin");
  app->add_option_function<std::vector<uint32_t>>(
         "--prompt-ids",
         [&f](const std::vector<uint32_t>& ids) {
           f.prompt_ids = ids;
           f.has_prompt_ids = true;
         },
         "Token ids to continue, taken as they are (no BOS)")
      ->delimiter(',');
  app->add_option("--chat", f.chat, "One user message, in the model's chat format");
  app->add_option("--system", f.system, "System message, with --chat");
  app->add_flag("--thinking", f.thinking, "Let the model think first (Gemma 4), with --chat");
  app->add_option("--n", f.n, "Independent answers")->check(CLI::Range(1, 64));
  AddSampling(app, f);
  AddService(app, f);
  AddOptional(app, "--logprobs", f.logprobs, "Log-probabilities; k also lists the k best tokens");
  AddOptional(app, "--prompt-logprobs", f.prompt_logprobs, "The same for the prompt");
  app->add_flag("--json", f.json, "Print one JSON object and nothing else");
  app->add_flag("--echo", f.echo, "Print the prompt before the answer");
  app->add_flag("--stats", f.stats, "Print tokens per second to stderr");
  app->footer(
      "Examples:\n"
      "  lapidary generate gemma.gguf --prompt 'Once upon a time' --temperature 0.8 --seed 7\n"
      "  lapidary generate --server 127.0.0.1:50051 --chat 'Why is the sky blue?'\n"
      "  lapidary generate MODEL --prompt-ids 2,5,7 --max-tokens 64 --temperature 0 --logprobs 5 "
      "\\\n"
      "      --prompt-logprobs 0 --ignore-eos --compute fp32 --tp 2 --json");
}

void AddCommands(CLI::App& app, CommandLine& line) {
  using Command = CommandLine::Command;
  const auto add = [&app, &line](const char* name, const char* help, Command command) {
    CLI::App* sub = app.add_subcommand(name, help);
    sub->callback([&line, command] { line.command = command; });
    return sub;
  };

  CLI::App* serve = add("serve", "Serve a model on this machine", Command::kServe);
  AddServe(serve, line.serve, true);
  AddListen(serve, line.serve.listen);
  serve->add_option("--drain-timeout", line.serve.drain_timeout_s,
                    "Seconds that streams may finish");
  serve->add_option("--address-file", line.serve.address_file,
                    "Written once ready: gRPC HOST:PORT, metrics HOST:PORT, a line each");
  serve->footer(
      "Examples:\n"
      "  lapidary serve gemma-3-270m.gguf                    one rank with all CPUs\n"
      "  lapidary serve ./gemma-4-E2B-it --tp 2 --kv-memory 4GiB --max-context 32768\n"
      "Ctrl-C drains: no new requests, streams in progress finish. A second Ctrl-C stops at once.");

  CLI::App* coordinator =
      add("coordinator", "Run the coordinator alone; workers dial it", Command::kCoordinator);
  AddEngine(coordinator, line.coordinator.engine, true);
  AddListen(coordinator, line.coordinator.listen);
  coordinator->add_option("--worker-host", line.coordinator.worker_host, "Where workers dial");
  coordinator->add_option("--worker-port", line.coordinator.worker_port,
                          "Port workers dial; 0: any");
  coordinator->add_option("--worker-connect-timeout", line.coordinator.worker_connect_timeout_s,
                          "Seconds until a rank that never came ends the start");
  coordinator->add_option("--drain-timeout", line.coordinator.drain_timeout_s,
                          "Seconds that streams may finish");
  coordinator->add_option("--announce-fd", line.coordinator.announce_fd,
                          "Descriptor to write the ports to, once listening");
  coordinator->footer("Example:\n  lapidary coordinator MODEL --tp 2 --worker-port 50052");

  CLI::App* worker = add("worker", "Run one rank", Command::kWorker);
  worker->add_option("--coordinator", line.worker.coordinator, "HOST:PORT of its worker port")
      ->required();
  worker->add_option("--rank", line.worker.rank, "Wanted rank; -1: whichever is free")
      ->check(CLI::Range(-1, 63));
  AddDevice(worker, line.worker.device);
  worker->add_option("--gpu", line.worker.gpu, "Index of the GPU; -1: the rank")
      ->check(CLI::Range(-1, 63));
  worker->add_option("--threads", line.worker.threads, "Threads")->check(CLI::Range(1, 1024));
  worker->add_option("--cpus", line.worker.cpus, "CPUs to pin the threads to")->delimiter(',');
  worker->add_option("--metrics-host", line.worker.metrics_host, "Address of its metrics");
  worker->add_option("--metrics-port", line.worker.metrics_port, "Port of its metrics; 0: any");
  worker->add_option("--connect-timeout", line.worker.connect_timeout_s,
                     "Seconds to look for the coordinator and the other ranks");
  worker->footer("Example:\n  lapidary worker --coordinator 127.0.0.1:50052 --threads 4");

  AddGenerate(add("generate", "Continue a prompt", Command::kGenerate), line.generate);

  CLI::App* chat = add("chat", "Talk with an instruction-tuned model", Command::kChat);
  GenerateFlags& c = line.chat.generate;
  AddServe(chat, c.local, false);
  chat->add_option("--server", c.server, "Ask a running server, HOST:PORT");
  chat->add_option("--model", c.model, "Served model name to ask for");
  chat->add_option("--system", c.system, "System message");
  chat->add_flag("--thinking", c.thinking, "Let the model think first (Gemma 4)");
  AddSampling(chat, c);
  AddService(chat, c);
  chat->footer(
      "Examples:\n  lapidary chat ./gemma-3-1b-it\n"
      "  lapidary chat --server 127.0.0.1:50051 --system 'Be brief.'\n"
      "An empty line or Ctrl-D ends it.");

  CLI::App* tokenize = add("tokenize", "Turn text into token ids, or back", Command::kTokenize);
  tokenize->add_option("MODEL", line.tokenize.model_path, "Hugging Face directory or GGUF file")
      ->required();
  tokenize->add_option("TEXT", line.tokenize.text, "Text; absent: standard input");
  tokenize->add_flag("--bos", line.tokenize.bos, "Prepend BOS");
  tokenize->add_flag("--special", line.tokenize.special, "Read control-token markers as such");
  tokenize->add_flag("--json", line.tokenize.json, "Print one JSON object");
  tokenize
      ->add_option_function<std::vector<uint32_t>>(
          "--decode",
          [&line](const std::vector<uint32_t>& ids) {
            line.tokenize.decode = ids;
            line.tokenize.has_decode = true;
          },
          "Token ids to turn into text instead")
      ->delimiter(',');
  tokenize->footer(
      "Examples:\n  lapidary tokenize MODEL 'Hello, world'\n"
      "  lapidary tokenize MODEL --decode 2,9259,236764");

  CLI::App* inspect = add("inspect", "What a checkpoint is and needs", Command::kInspect);
  inspect
      ->add_option("MODEL", line.inspect.model_path, "Directory, GGUF file, or config.json alone")
      ->required();
  inspect->footer("Example:\n  lapidary inspect ./gemma-4-31B-it");

  CLI::App* debug = add("debug", "Find where two runs differ", Command::kDebug);
  debug->add_option("ACTION", line.debug.action, "record or compare")
      ->required()
      ->check(CLI::IsMember({"record", "compare"}));
  debug->add_option("MODEL", line.debug.model_path, "Hugging Face directory or GGUF file")
      ->required();
  debug->add_option("FILE", line.debug.file, "The recording to write or to compare with")
      ->required();
  debug->add_option("--prompt-ids", line.debug.prompt_ids, "Token ids to run (record)")
      ->delimiter(',');
  debug->add_option("--compute", line.debug.compute, "Arithmetic")
      ->check(CLI::IsMember({"fp32", "bf16", "int8"}));
  debug->add_option("--threads", line.debug.threads, "Threads")->check(CLI::Range(1, 1024));
  debug->footer(
      "Example: the first layer where int8 leaves fp32\n"
      "  lapidary debug record MODEL run.bin --prompt-ids 2,5,7\n"
      "  lapidary debug compare MODEL run.bin --compute int8");

  CLI::App* top = add("top", "Watch a running server", Command::kTop);
  top->add_option("--metrics-server", line.top.metrics_server,
                  "HOST:PORT of the coordinator's /metrics");
  top->add_option("--interval", line.top.interval_s,
                  "Seconds between two readings; 0: since the start, with --once")
      ->check(CLI::Range(0.0, 3600.0));
  top->add_flag("--once", line.top.once,
                "Print one table of one interval and exit (also when this is no terminal)");
  top->footer(
      "Examples:\n  lapidary top                                      a server on this machine\n"
      "  lapidary top --metrics-server 10.0.0.5:9464 --interval 5\n"
      "  lapidary top --once --interval 0                  averages since the server started");

  CLI::App* doctor = add("doctor", "Look at this machine's GPUs", Command::kDoctor);
  doctor->add_flag("--gpu", line.doctor.gpu,
                   "Run every kernel on the GPU and compare it with its reference");
  doctor->add_flag("--json", line.doctor.json, "Print one JSON object");
  doctor->add_option("--cuda-library", line.doctor.cuda_library,
                     "The GPU part, liblapidary_cuda.so; default: beside this program");
  doctor->footer(
      "Exit code 0: there is a GPU to use.\n"
      "Examples:\n  lapidary doctor            GPUs, driver, libraries, who reaches whose memory\n"
      "  lapidary doctor --gpu      minutes: every wrapper and kernel against its reference");

  AddBench(add("bench", "Load a server and measure it", Command::kBench), line.bench);
}

}  // namespace

CommandLine ParseCommandLine(int argc, char** argv) {
  CommandLine line;
  CLI::App app(kIntro, "lapidary");
  app.require_subcommand(1);
  app.fallthrough();
  app.option_defaults()->always_capture_default();
  app.set_version_flag("--version", std::string("lapidary ") + LAPIDARY_VERSION);
  app.add_option("--log-level", line.log.level, "debug, info, warning, error or off")
      ->check(CLI::IsMember({"debug", "info", "warning", "error", "off"}));
  app.add_option("--log-format", line.log.format, "text or json")
      ->check(CLI::IsMember({"text", "json"}));
  app.set_config("--config", "",
                 "Read options from a file: a [serve] section holds those of serve");
  AddCommands(app, line);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    line.command = CommandLine::Command::kExit;
    line.exit_code = app.exit(error) == 0 ? 0 : 2;
  }
  return line;
}

}  // namespace lapidary
