#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "cli/options.h"

namespace lapidary {
namespace {

using Command = CommandLine::Command;

CommandLine Parse(std::vector<std::string> args) {
  args.insert(args.begin(), "lapidary");
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  return ParseCommandLine(static_cast<int>(argv.size()), argv.data());
}

TEST(Flags, ThePromisedCommand) {
  const CommandLine line = Parse({"generate", "dir", "--prompt-ids", "2,5,7", "--max-tokens", "64",
                                  "--temperature", "0", "--logprobs", "5", "--prompt-logprobs", "0",
                                  "--ignore-eos", "--compute", "fp32", "--tp", "2", "--json"});
  ASSERT_EQ(line.command, Command::kGenerate);
  const GenerateFlags& f = line.generate;
  EXPECT_EQ(f.local.engine.model_path, "dir");
  EXPECT_EQ(f.prompt_ids, (std::vector<uint32_t>{2, 5, 7}));
  EXPECT_EQ(f.max_tokens, 64u);
  EXPECT_EQ(f.temperature, 0.0f);
  EXPECT_EQ(f.logprobs, 5u);
  EXPECT_EQ(f.prompt_logprobs, 0u);
  EXPECT_TRUE(f.ignore_eos && f.json);
  EXPECT_EQ(f.local.engine.compute, "fp32");
  EXPECT_EQ(f.local.engine.tensor_parallel, 2);
}

TEST(Flags, BenchTakesALoadAndAWorkload) {
  const CommandLine line = Parse({"bench", "--server", "h:1", "-c", "256", "-n", "2048",
                                  "--prompt-tokens", "64-256", "--stop-at-eos", "--no-keep-alive",
                                  "--seed", "18446744073709551615", "--priority", "batch"});
  ASSERT_EQ(line.command, Command::kBench);
  EXPECT_EQ(line.bench.server, "h:1");
  EXPECT_EQ(line.bench.concurrency, 256);
  EXPECT_EQ(line.bench.requests, 2048);
  EXPECT_EQ(line.bench.prompt_tokens, "64-256");
  EXPECT_EQ(line.bench.seed, 18446744073709551615u);
  EXPECT_FALSE(line.bench.ignore_eos || line.bench.keep_alive);
  EXPECT_EQ(line.bench.priority, "batch");
  EXPECT_TRUE(Parse({"bench", "m"}).bench.ignore_eos);
  EXPECT_EQ(Parse({"bench", "m", "-c", "4", "--rate", "2"}).exit_code, 2);
  EXPECT_EQ(Parse({"bench", "m", "--rate", "0"}).exit_code, 2);
}

TEST(Flags, SizesTakeUnits) {
  EXPECT_EQ(Parse({"serve", "m", "--kv-memory", "512MiB"}).serve.engine.kv_bytes, 512 << 20);
  EXPECT_EQ(Parse({"serve", "m", "--kv-memory", "1.5GiB"}).serve.engine.kv_bytes, 3LL << 29);
  EXPECT_EQ(Parse({"serve", "m", "--kv-memory", "1000000"}).serve.engine.kv_bytes, 1000000);
  for (const char* bad : {"lots", "-1", "0", "5parsec", "1e40"}) {
    const CommandLine line = Parse({"serve", "m", "--kv-memory", bad});
    EXPECT_EQ(line.command, Command::kExit) << bad;
    EXPECT_EQ(line.exit_code, 2) << bad;
  }
}

TEST(Flags, EngineOptions) {
  const EngineFlags defaults = Parse({"serve", "m"}).serve.engine;
  EXPECT_EQ(defaults.kv_format, "auto");
  EXPECT_TRUE(defaults.prefix_cache);
  EXPECT_EQ(defaults.max_in_flight, 0);
  const EngineFlags f =
      Parse({"serve", "m", "--kv-format", "folded", "--kv-type", "int8", "--no-prefix-cache",
             "--max-in-flight", "1", "--step-time-target", "12.5", "--max-queued-tokens", "100000",
             "--tenant-weight", "a=b=2.5", "--tenant-weight", "=0.5"})
          .serve.engine;
  EXPECT_EQ(f.kv_format, "folded");
  EXPECT_EQ(f.kv_type, "int8");
  EXPECT_FALSE(f.prefix_cache);
  EXPECT_EQ(f.max_in_flight, 1);
  EXPECT_EQ(f.step_time_target_ms, 12.5);
  EXPECT_EQ(f.max_queued_tokens, 100000);
  EXPECT_EQ(f.tenant_weights, (std::map<std::string, double>{{"a=b", 2.5}, {"", 0.5}}));
  EXPECT_TRUE(Parse({"serve", "m", "--prefix-cache"}).serve.engine.prefix_cache);
  const std::vector<std::vector<std::string>> bad = {
      {"--kv-format", "folder"},    {"--kv-type", "fp4"},       {"--max-in-flight", "3"},
      {"--step-time-target", "-1"}, {"--tenant-weight", "a"},   {"--tenant-weight", "a="},
      {"--tenant-weight", "a=2kg"}, {"--tenant-weight", "a=0"}, {"--tenant-weight", "a=nan"},
      {"--max-queued-tokens", "-1"}};
  for (std::vector<std::string> args : bad) {
    args.insert(args.begin(), {"serve", "m"});
    EXPECT_EQ(Parse(args).exit_code, 2) << args[2] << " " << args[3];
  }
}

TEST(Flags, RequestsSayWhoseTheyAre) {
  for (const char* command : {"generate", "chat"}) {
    const CommandLine line =
        Parse({command, "m", "--priority", "batch", "--tenant", "blue", "--cache-salt", "s"});
    const GenerateFlags& f = line.command == Command::kChat ? line.chat.generate : line.generate;
    EXPECT_EQ(f.priority, "batch");
    EXPECT_EQ(f.tenant, "blue");
    EXPECT_EQ(f.cache_salt, "s");
  }
  EXPECT_EQ(Parse({"generate", "m", "--priority", "urgent"}).exit_code, 2);
}

TEST(Flags, MistakesEndWithTwoAndHelpWithZero) {
  for (const std::vector<std::string>& bad :
       std::vector<std::vector<std::string>>{{},
                                             {"sreve", "m"},
                                             {"serve"},
                                             {"serve", "m", "--tp", "-1"},
                                             {"serve", "m", "--port", "x"},
                                             {"generate", "m", "--logit-bias", "x"},
                                             {"debug", "explode", "m", "f"}}) {
    const CommandLine line = Parse(bad);
    EXPECT_EQ(line.command, Command::kExit);
    EXPECT_EQ(line.exit_code, 2);
  }
  const CommandLine help = Parse({"generate", "--help"});
  EXPECT_EQ(help.command, Command::kExit);
  EXPECT_EQ(help.exit_code, 0);
}

TEST(Flags, AConfigurationFileFillsWhatTheCommandLineLeavesOpen) {
  const std::string path = testing::TempDir() + "lapidary-flags-test.toml";
  std::ofstream(path) << "[serve]\ntp = 4\nkv-memory = \"2GiB\"\nmax-context = 4096\nport = 0\n";
  const CommandLine line = Parse({"serve", "m", "--config", path, "--tp", "2"});
  ASSERT_EQ(line.command, Command::kServe);
  EXPECT_EQ(line.serve.engine.tensor_parallel, 2);
  EXPECT_EQ(line.serve.engine.kv_bytes, int64_t{2} << 30);
  EXPECT_EQ(line.serve.engine.max_context, 4096);
  EXPECT_EQ(line.serve.listen.port, 0);
  const CommandLine missing = Parse({"serve", "m", "--config", path + ".absent"});
  EXPECT_EQ(missing.exit_code, 2);
}

TEST(Flags, PromptsMayStartWithAnything) {
  EXPECT_EQ(Parse({"generate", "m", "--prompt=--not a flag"}).generate.prompt, "--not a flag");
  EXPECT_EQ(Parse({"generate", "m", "--prompt", ""}).generate.prompt, "");
}

TEST(Flags, StopStringsKeepCommas) {
  const CommandLine line =
      Parse({"generate", "m", "--prompt", "x", "--stop", "a,b", "--stop", "c"});
  EXPECT_EQ(line.generate.stop, (std::vector<std::string>{"a,b", "c"}));
}

}  // namespace
}  // namespace lapidary
