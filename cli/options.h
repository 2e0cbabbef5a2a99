// What the command line asked for: one struct per subcommand, filled by flags.cc alone.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace lapidary {

struct LogFlags {
  std::string level = "info";   // debug, info, warning, error, off
  std::string format = "text";  // text, json
};

// Of the engine: told to the coordinator, which tells the workers.
struct EngineFlags {
  std::string model_path;
  std::string served_model_name;  // empty: the checkpoint's folder or file name
  int tensor_parallel = 0;        // ranks of a group, 1 to 64; 0: every GPU, else 1
  std::string compute = "auto";   // auto, fp32, bf16, int8
  std::string arith = "auto";     // auto, or an arithmetic's name
  int64_t max_context = 0;        // tokens; 0: the model's, as far as the KV pool holds it
  int max_running = 64;           // sequences in a step, 1 to 4096
  int max_step_tokens = 512;      // token budget of a step, at least max_running
  int max_queued = 4096;
  int64_t max_queued_tokens = 0;   // of those that wait; 0: not limited
  int64_t kv_bytes = 0;            // per rank; 0: 1 GiB, on a GPU what is left
  std::string kv_format = "auto";  // auto, split, folded, single
  std::string kv_type = "auto";    // auto, int8
  bool prefix_cache = true;
  int max_in_flight = 0;             // steps submitted and not completed, 1 or 2; 0: the worker's
  double step_time_target_ms = 100;  // prompt chunks are cut for it; 0: by max_step_tokens alone
  std::map<std::string, double> tenant_weights;  // 1 for those not named
};

struct ListenFlags {
  std::string host = "127.0.0.1";
  int port = 50051;         // 0: any free one
  int metrics_port = 9464;  // 0: any free one
  bool insecure = false;    // allow a host other than loopback without TLS
  bool reflection = true;
  bool vllm_metrics = true;
  int64_t slow_reader_bytes = int64_t{1} << 20;  // unread by a client: its request is paused
  double slow_reader_timeout_s = 30;             // it reads nothing for so long: cancelled
};

struct CoordinatorFlags {
  EngineFlags engine;
  ListenFlags listen;
  std::string worker_host = "127.0.0.1";
  int worker_port = 0;
  double worker_connect_timeout_s = 60;
  double drain_timeout_s = 60;
  int announce_fd = -1;
};

// Of a worker, or of all workers of `serve`.
struct DeviceFlags {
  std::string device = "auto";  // auto, cpu, cuda, null
  int64_t null_step_us = 0;     // what the null device takes for a step
  bool cuda_graphs = true;
  std::string all_reduce = "nccl";  // nccl, one-shot
  std::string cuda_library;         // empty: beside this program
};

struct WorkerFlags {
  std::string coordinator;  // host:port
  int rank = -1;            // -1: whichever is free
  DeviceFlags device;
  int gpu = -1;  // -1: the rank
  int threads = 1;
  std::vector<int> cpus;
  std::string metrics_host = "127.0.0.1";
  int metrics_port = 0;
  double connect_timeout_s = 60;
};

struct ServeFlags {
  EngineFlags engine;
  ListenFlags listen;
  DeviceFlags device;
  int threads = 0;  // per rank; 0: the CPUs of this process shared out
  double drain_timeout_s = 60;
  std::string address_file;  // written once ready: gRPC HOST:PORT, then metrics HOST:PORT
};

struct GenerateFlags {
  ServeFlags local;    // used when `server` is empty
  std::string server;  // host:port of a running one
  std::string model;   // served name to ask for
  std::optional<std::string> prompt;
  std::string prompt_file;
  std::vector<uint32_t> prompt_ids;
  bool has_prompt_ids = false;
  std::string chat;    // a single user message, rendered in the chat format
  std::string system;  // with chat
  bool thinking = false;

  uint32_t max_tokens = 256;
  uint32_t min_tokens = 0;
  uint32_t n = 1;
  std::optional<float> temperature, top_p, min_p, repetition_penalty, presence_penalty,
      frequency_penalty;
  std::optional<uint32_t> top_k;
  std::optional<uint64_t> seed;
  std::map<uint32_t, float> logit_bias;
  std::vector<std::string> stop;
  std::vector<uint32_t> stop_token_ids;
  bool ignore_eos = false;
  std::string priority = "interactive";  // interactive, batch
  std::string tenant, cache_salt;
  std::optional<uint32_t> logprobs, prompt_logprobs;
  bool keep_special = false;
  bool json = false;
  bool echo = false;
  bool stats = false;
};

struct ChatFlags {
  GenerateFlags generate;  // sampling, server or path
};

struct TokenizeFlags {
  std::string model_path;  // or server
  std::string server;
  std::string text;
  bool from_stdin = false;
  bool bos = false;
  bool special = false;
  bool json = false;
  std::vector<uint32_t> decode;
  bool has_decode = false;
};

struct InspectFlags {
  std::string model_path;
};

struct TopFlags {
  std::string metrics_server = "127.0.0.1:9464";  // of a coordinator's /metrics
  double interval_s = 2;  // between two readings; 0: since the start, with `once`
  bool once = false;
};

struct DebugFlags {
  std::string action;  // record, compare
  std::string model_path;
  std::string file;
  std::vector<int32_t> prompt_ids;
  std::string compute = "fp32";
  int threads = 1;
};

struct BenchFlags {
  ServeFlags local;    // used when neither `server` nor `openai` is given
  std::string server;  // host:port of a running Lapidary server
  std::string openai;  // http://host:port of an OpenAI-compatible one
  std::string model;   // served name to ask for
  int connections = 1;
  bool keep_alive = true;
  std::string extra_body;

  int64_t concurrency = 16;  // closed loop, unless there is a rate
  double rate = 0;           // arrivals a second
  int64_t requests = 0;      // 0: 8 a stream, or as many as the duration holds
  double duration_s = 0;
  int64_t warmup = 0;
  double timeout_s = 600;

  uint64_t seed = 0;
  std::string prompt_tokens = "lognormal:200,0.8,4,1024";
  std::string output_tokens = "lognormal:150,0.7,4,1024";
  int64_t shared_prefix_tokens = 0;
  int64_t prefix_groups = 1;
  std::string text_file, tokenizer;
  uint32_t vocabulary = 0;  // 0: the server's
  int64_t bos = 2;
  bool ignore_eos = true;
  double temperature = 0;
  int64_t top_k = 0;
  double top_p = 1;
  bool skip_text = false;

  std::string priority = "interactive", tenant;  // of a Lapidary server

  int64_t verify = 0;
  bool loose_counts = false;
  bool json = false;
};

struct DoctorFlags {
  bool gpu = false;  // run every kernel on the GPU
  bool json = false;
  std::string cuda_library;  // empty: beside this program
};

struct CommandLine {
  enum class Command {
    kExit,  // help or a mistake: `exit_code` says which
    kServe,
    kCoordinator,
    kWorker,
    kGenerate,
    kChat,
    kTokenize,
    kInspect,
    kDebug,
    kBench,
    kTop,
    kDoctor,
  };
  Command command = Command::kExit;
  int exit_code = 0;
  LogFlags log;
  ServeFlags serve;
  CoordinatorFlags coordinator;
  WorkerFlags worker;
  GenerateFlags generate;
  ChatFlags chat;
  TokenizeFlags tokenize;
  InspectFlags inspect;
  DebugFlags debug;
  BenchFlags bench;
  TopFlags top;
  DoctorFlags doctor;
};

// Prints help and mistakes itself.
CommandLine ParseCommandLine(int argc, char** argv);

}  // namespace lapidary
