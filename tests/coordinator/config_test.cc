#include "coordinator/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace lapidary {
namespace {

using ::testing::HasSubstr;

CoordinatorConfig Good() {
  CoordinatorConfig config;
  config.model_path = "/models/gemma";
  return config;
}

TEST(CoordinatorConfigTest, DefaultsAreValidAndOnLoopback) {
  EXPECT_TRUE(Good().Validate().ok()) << Good().Validate();
  EXPECT_EQ(Good().listen.rfind("127.0.0.1:", 0), 0u);
}

TEST(CoordinatorConfigTest, EveryProblemIsNamedAtOnce) {
  CoordinatorConfig config;
  config.listen = "nonsense";
  config.compute = "fp4";
  config.tensor_parallel = 0;
  config.max_running = 0;
  config.kv_bytes = -1;
  config.drain_timeout = absl::ZeroDuration();
  config.kv_format = "folder";
  config.kv_type = "fp4";
  config.max_in_flight = 3;
  config.max_queued_tokens = -1;
  config.step_time_target = -absl::Seconds(1);
  config.tenant_weights = {{"blue", 0}};
  const std::string message(config.Validate().message());
  for (const char* field : {"listen", "model_path", "compute", "tensor_parallel", "max_running",
                            "kv_bytes", "drain_timeout", "kv_format", "kv_type", "max_in_flight",
                            "max_queued_tokens", "step_time_target", "tenant_weights"}) {
    EXPECT_THAT(message, HasSubstr(field));
  }
}

TEST(CoordinatorConfigTest, TenantWeightsAreNumbersAboveZeroOfShortNames) {
  CoordinatorConfig config = Good();
  config.tenant_weights = {{"", 2}, {std::string(kMaxTenantBytes, 'x'), 0.5}};
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  for (const double bad : {0.0, -1.0, std::nan(""), double{INFINITY}}) {
    config.tenant_weights = {{"blue", bad}};
    EXPECT_THAT(std::string(config.Validate().message()), HasSubstr("'blue'"));
  }
  config.tenant_weights = {{std::string(kMaxTenantBytes + 1, 'x'), 1}};
  EXPECT_THAT(std::string(config.Validate().message()), HasSubstr("129 bytes"));
}

TEST(CoordinatorConfigTest, OtherThanLoopbackNeedsInsecure) {
  for (std::string CoordinatorConfig::*field :
       {&CoordinatorConfig::listen, &CoordinatorConfig::worker_listen,
        &CoordinatorConfig::metrics_listen}) {
    CoordinatorConfig config = Good();
    config.*field = "0.0.0.0:50051";
    EXPECT_THAT(std::string(config.Validate().message()), HasSubstr("--insecure"));
    config.insecure = true;
    EXPECT_TRUE(config.Validate().ok()) << config.Validate();
  }
  CoordinatorConfig config = Good();
  config.listen = "[::1]:0";
  EXPECT_TRUE(config.Validate().ok()) << config.Validate();
}

TEST(CoordinatorConfigTest, TheServedNameIsThePathsLastPart) {
  CoordinatorConfig config;
  const auto name = [&](const char* path) {
    config.model_path = path;
    return config.ServedName();
  };
  EXPECT_EQ(name("/models/gemma-4-31b/"), "gemma-4-31b");
  EXPECT_EQ(name("gemma3-270m.gguf"), "gemma3-270m");
  EXPECT_EQ(name("/a/b.c"), "b.c");
  config.served_model_name = "mine";
  EXPECT_EQ(name("/a/b"), "mine");
}

}  // namespace
}  // namespace lapidary
