#include <CLI/CLI.hpp>

#include "cli/flags_groups.h"

namespace lapidary {

void AddBench(CLI::App* app, BenchFlags& f) {
  AddServe(app, f.local, /*model_required=*/false);

  const std::string target = "Whom to load (instead of MODEL, which starts a server of its own)";
  app->add_option("--server", f.server, "A running Lapidary server, HOST:PORT (gRPC)")
      ->group(target);
  app->add_option("--openai", f.openai, "An OpenAI-compatible server, http://HOST:PORT")
      ->group(target);
  app->add_option("--model", f.model, "Served model name; default: the server's first")
      ->group(target);
  app->add_option("--connections", f.connections, "gRPC connections to spread streams over")
      ->check(CLI::Range(1, 64))
      ->group(target);
  app->add_flag("!--no-keep-alive", f.keep_alive, "One HTTP connection a request")->group(target);
  app->add_option("--extra-body", f.extra_body, "JSON object merged into each HTTP request")
      ->group(target);

  const std::string load = "Load";
  auto* concurrency = app->add_option("-c,--concurrency", f.concurrency,
                                      "Closed loop: so many requests are always in flight")
                          ->check(CLI::Range(1, 1 << 16))
                          ->group(load);
  app->add_option("-r,--rate", f.rate, "Poisson arrivals: so many requests a second in the mean")
      ->check(CLI::Range(1e-6, 1e6))
      ->excludes(concurrency)
      ->group(load);
  app->add_option("-n,--requests", f.requests,
                  "How many requests; default: 8 a stream, or what --duration holds")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->group(load);
  app->add_option("-d,--duration", f.duration_s, "Seconds in which requests are sent")
      ->check(CLI::Range(1e-3, 1e7))
      ->group(load);
  app->add_option("--warmup", f.warmup, "Requests sent and answered before measuring")
      ->check(CLI::Range(0, 1 << 20))
      ->group(load);
  app->add_option("--timeout", f.timeout_s, "Seconds after which a request has failed")
      ->check(CLI::Range(1e-3, 1e7))
      ->group(load);

  const std::string work = "Workload (the same seed makes the same requests)";
  app->add_option("--seed", f.seed, "Of prompts, lengths, arrivals and sampling")->group(work);
  app->add_option("--prompt-tokens", f.prompt_tokens,
                  "N, A-B (uniform) or lognormal:MEDIAN,SIGMA[,MIN,MAX]")
      ->group(work);
  app->add_option("--output-tokens", f.output_tokens, "The same for answers")->group(work);
  app->add_option("--shared-prefix-tokens", f.shared_prefix_tokens,
                  "Tokens put before each prompt, the same within a group")
      ->check(CLI::Range(0, 1 << 24))
      ->group(work);
  app->add_option("--prefix-groups", f.prefix_groups, "How many different shared prefixes")
      ->check(CLI::Range(1, 1 << 20))
      ->group(work);
  app->add_option("--text", f.text_file, "Prompts are slices of this text, not random token ids")
      ->group(work);
  app->add_option("--tokenizer", f.tokenizer, "MODEL whose tokenizer reads --text for --openai")
      ->group(work);
  app->add_option("--vocab", f.vocabulary, "Vocabulary size for random ids; default: the server's")
      ->check(CLI::Range(1, 1 << 30))
      ->group(work);
  app->add_option("--bos", f.bos, "First token of every prompt; -1: none")
      ->check(CLI::Range(-1, 1 << 30))
      ->group(work);
  app->add_flag("--ignore-eos,!--stop-at-eos", f.ignore_eos,
                "Answers have the length asked for (the default), or end where the model ends them")
      ->group(work);
  app->add_option("--temperature", f.temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->group(work);
  app->add_option("--top-k", f.top_k, "0 keeps all")->check(CLI::Range(0, 1 << 20))->group(work);
  app->add_option("--top-p", f.top_p, "1 keeps all")->check(CLI::Range(1e-6, 1.0))->group(work);
  app->add_flag("--skip-text", f.skip_text, "Ask a Lapidary server for token ids alone")
      ->group(work);

  app->add_option("--priority", f.priority, "Of a Lapidary server: interactive or batch")
      ->check(CLI::IsMember({"interactive", "batch"}))
      ->group(work);
  app->add_option("--tenant", f.tenant, "Of a Lapidary server: whose share is used")->group(work);

  const std::string report = "Checks and report";
  app->add_option("--verify", f.verify,
                  "Ask for so many answers again, alone, and compare every token (HTTP: the text)")
      ->check(CLI::Range(0, 1 << 20))
      ->group(report);
  app->add_flag("--loose-counts", f.loose_counts,
                "Accept messages of several tokens from a server that does not count them")
      ->group(report);
  app->add_flag("--json", f.json, "Print one JSON object and nothing else")->group(report);
  app->footer(
      "Examples:\n"
      "  lapidary bench gemma.gguf -c 16                      a server of its own, 16 streams\n"
      "  lapidary bench --server 127.0.0.1:50051 -c 256 -n 2048 --verify 16\n"
      "  lapidary bench --server 127.0.0.1:50051 --rate 4 --duration 60 --seed 7 --json\n"
      "  lapidary bench --server 127.0.0.1:50051 -c 8 --shared-prefix-tokens 2000 "
      "--prefix-groups 4 \\\n      --prompt-tokens 16-64 --output-tokens 32\n"
      "  lapidary bench --openai http://127.0.0.1:8000 --vocab 262144 -c 16 -n 128\n\n"
      "The default lengths are those of chats as ShareGPT collects them: log-normal, prompts with "
      "a "
      "median\nof 200 tokens (sigma 0.8), answers with one of 150 (sigma 0.7), both cut to 4 ... "
      "1024.\n"
      "Each answer is checked: as many tokens as asked for, the finish reason, and a usage that "
      "agrees.\nOne that fails is counted by kind, its times are left out, and the exit status is "
      "1.\n"
      "Tokens that arrive in one message share the gap before it.");
}

}  // namespace lapidary
