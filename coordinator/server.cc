#include "coordinator/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/error_details.h"
#include "common/http_server.h"
#include "common/listen_address.h"
#include "common/log.h"
#include "common/metrics_registry.h"
#include "common/status_macros.h"
#include "coordinator/admission.h"
#include "coordinator/cluster_service.h"
#include "coordinator/coordinator_metrics.h"
#include "coordinator/generate_service.h"
#include "coordinator/group_client.h"
#include "coordinator/live_requests.h"
#include "coordinator/router.h"
#include "coordinator/served_model.h"
#include "grpc/health/v1/health.pb.h"

namespace lapidary {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(50);
constexpr absl::Duration kWorkerExitTimeout = absl::Seconds(10);  // after Drain
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);       // then calls are cut
constexpr char kServiceName[] = "lapidary.v1.LapidaryService";

int Millis(absl::Duration d) { return static_cast<int>(absl::ToInt64Milliseconds(d)); }

uint64_t Entropy() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// Linking gRPC's reflection puts it on every server; this takes it off one.
class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    const auto is_reflection = [](const std::unique_ptr<grpc::ServerBuilderPlugin>& plugin) {
      return plugin->name().find("reflection") != std::string::npos;
    };
    plugins->erase(std::remove_if(plugins->begin(), plugins->end(), is_reflection), plugins->end());
  }
};

void AddCommonArguments(grpc::ServerBuilder& builder) {
  // Without this a second server on the same port would silently share it.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // Idle streams are pinged for as long as they live, not twice only.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             Millis(absl::Seconds(10)));
}

absl::StatusOr<std::unique_ptr<grpc::Server>> Listen(grpc::ServerBuilder& builder,
                                                     const std::string& address_text, int* port) {
  ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(address_text));
  RETURN_IF_ERROR(ProbeListen(address));
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), port);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || *port == 0) {
    return absl::UnavailableError(absl::StrFormat("can not listen on %s", address.ToString()));
  }
  return server;
}

}  // namespace

class CoordinatorServer::Impl {
 public:
  explicit Impl(CoordinatorConfig config, std::unique_ptr<ServedModel> model)
      : config_(std::move(config)),
        model_(std::move(model)),
        metrics_(registry_, MetricsOptions{.model_name = model_->name,
                                           .tensor_parallel = config_.tensor_parallel,
                                           .compat = config_.compat_metrics}),
        admission_(*model_, Entropy()),
        group_(
            config_, absl::StrFormat("lapidary-%d-%08x", getpid(), Entropy() & 0xffffffff),
            absl::Now(), [this] { PublishHealth(); },
            [this](const StepWork& work) { metrics_.Stepped(work); }),
        router_(group_),
        generate_service_(
            {config_, *model_, admission_, router_, group_, live_, metrics_, writes_}),
        cluster_service_(group_) {}

  ~Impl() {
    if (!drained_) {
      const absl::Time now = absl::Now();
      group_.Abort("the coordinator was shut down", now);
      live_.FailAll(Ending("the coordinator was shut down"), Outcome::kLost, now);
      ClosePorts();
    }
    stop_housekeeping_.Notify();
    if (housekeeper_.joinable()) housekeeper_.join();
  }

  absl::Status Start() {
    RETURN_IF_ERROR(StartMetrics());
    RETURN_IF_ERROR(StartWorkerPort());
    RETURN_IF_ERROR(StartClientPort());
    housekeeper_ = std::thread([this] { Housekeep(); });
    LogInfo("coordinator started", {{"model", model_->name},
                                    {"architecture", model_->spec.display_name},
                                    {"ranks", config_.tensor_parallel},
                                    {"port", port_},
                                    {"worker_port", worker_port_},
                                    {"metrics_port", metrics_port_}});
    return absl::OkStatus();
  }

  void Drain() {
    const absl::Time began = absl::Now();
    LogInfo("draining", {{"open_streams", live_.open()}});
    group_.BeginDrain();
    if (!live_.AwaitNone(began + config_.drain_timeout)) {
      LogWarning("streams cut off at the drain timeout", {{"open_streams", live_.open()}});
      live_.FailAll(Ending("the coordinator is draining and the request took too long"),
                    Outcome::kLost, absl::Now());
    }
    group_.DrainWorkers(absl::Now() + kWorkerExitTimeout);
    ClosePorts();
    drained_ = true;
    LogInfo("drained", {{"seconds", absl::ToDoubleSeconds(absl::Now() - began)}});
  }

  int port() const { return port_; }
  int worker_port() const { return worker_port_; }
  int metrics_port() const { return metrics_port_; }
  GroupClient& group() { return group_; }
  const GroupClient& group() const { return group_; }

 private:
  absl::Status Ending(std::string_view why) const {
    return WithRetryAfter(
        WithReason(absl::UnavailableError(absl::StrFormat("%s", std::string(why))), "DRAINING"),
        config_.retry_delay);
  }

  absl::Status StartMetrics() {
    std::map<std::string, HttpHandler> routes;
    routes["/metrics"] = [this] {
      metrics_.Update(group_.state(), live_.open());
      return HttpResponse{200, registry_.Text(), kMetricsContentType};
    };
    // Alive means that this thread answers; load and peers have no say.
    routes["/livez"] = [] { return HttpResponse{200, "alive\n"}; };
    routes["/readyz"] = [this] {
      const GroupState state = group_.state();
      return HttpResponse{state.ready() ? 200 : 503, state.Describe() + "\n"};
    };
    ASSIGN_OR_RETURN(const ListenAddress address, ParseListenAddress(config_.metrics_listen));
    ASSIGN_OR_RETURN(http_, HttpServer::Start(address, std::move(routes)));
    metrics_port_ = http_->port();
    return absl::OkStatus();
  }

  absl::Status StartWorkerPort() {
    grpc::ServerBuilder builder;
    AddCommonArguments(builder);
    // A silent rank is a lost one.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Millis(config_.worker_keepalive));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Millis(config_.worker_keepalive));
    builder.SetOption(std::make_unique<WithoutReflection>());
    builder.SetMaxReceiveMessageSize(-1);  // our own processes; a step with prompt scores is big
    builder.RegisterService(&cluster_service_);
    ASSIGN_OR_RETURN(worker_server_, Listen(builder, config_.worker_listen, &worker_port_));
    return absl::OkStatus();
  }

  absl::Status StartClientPort() {
    grpc::EnableDefaultHealthCheckService(true);
    grpc::ServerBuilder builder;
    AddCommonArguments(builder);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Millis(absl::Minutes(1)));
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Millis(absl::Seconds(20)));
    // Rebalances clients behind connection-level balancers; streams are allowed to finish.
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, Millis(absl::Minutes(30)));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 4096);
    // Costs in every message; tokens are too short to compress.
    builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
    builder.AddChannelArgument(GRPC_ARG_ENABLE_CHANNELZ, 0);
    builder.SetMaxReceiveMessageSize(static_cast<int>(config_.max_request_bytes));
    // Once is enough for the process; repeated calls do nothing. The descriptor's use links the
    // health service's description in, for reflection to find.
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    (void)grpc::health::v1::HealthCheckRequest::descriptor();
    if (!config_.reflection) builder.SetOption(std::make_unique<WithoutReflection>());
    builder.RegisterService(&generate_service_);
    ASSIGN_OR_RETURN(client_server_, Listen(builder, config_.listen, &port_));
    PublishHealth();
    return absl::OkStatus();
  }

  // Reads the group's state afresh, so that of two racing changes the later one stays.
  void PublishHealth() ABSL_LOCKS_EXCLUDED(health_mu_) {
    absl::MutexLock lock(&health_mu_);
    if (client_server_ == nullptr || ports_closed_) return;
    grpc::HealthCheckServiceInterface* health = client_server_->GetHealthCheckService();
    if (health == nullptr) return;
    const bool ready = group_.state().ready();
    if (ready) was_ready_ = true;
    health->SetServingStatus("", ready);
    health->SetServingStatus(kServiceName, ready);
    health->SetServingStatus("readiness", ready);
    health->SetServingStatus("startup", was_ready_);
    health->SetServingStatus("liveness", true);
  }

  void Housekeep() {
    while (!stop_housekeeping_.WaitForNotificationWithTimeout(kTick)) {
      const absl::Time now = absl::Now();
      group_.Tick(now);
      live_.Tick(now);
    }
  }

  // After this no callback runs: everything they use may go.
  void ClosePorts() ABSL_LOCKS_EXCLUDED(health_mu_) {
    {
      absl::MutexLock lock(&health_mu_);
      ports_closed_ = true;
    }
    const auto deadline = absl::ToChronoTime(absl::Now() + kShutdownGrace);
    if (client_server_ != nullptr) client_server_->Shutdown(deadline);
    if (worker_server_ != nullptr) worker_server_->Shutdown(deadline);
    if (client_server_ != nullptr) client_server_->Wait();
    if (worker_server_ != nullptr) worker_server_->Wait();
    http_.reset();
    // Taking their locks also orders the callbacks' last writes before their destructors, for
    // ThreadSanitizer, which does not see how gRPC's Wait() does.
    LogDebug("ports closed",
             {{"open_streams", live_.open()}, {"workers", group_.state().connected}});
  }

  const CoordinatorConfig config_;
  const std::unique_ptr<ServedModel> model_;
  MetricsRegistry registry_;
  CoordinatorMetrics metrics_;
  WriteScheduler writes_;
  LiveRequests live_;
  Admission admission_;
  GroupClient group_;
  Router router_;
  GenerateService generate_service_;
  ClusterService cluster_service_;

  int port_ = 0, worker_port_ = 0, metrics_port_ = 0;
  bool drained_ = false;
  absl::Mutex health_mu_;
  bool was_ready_ ABSL_GUARDED_BY(health_mu_) = false;
  bool ports_closed_ ABSL_GUARDED_BY(health_mu_) = false;
  absl::Notification stop_housekeeping_;
  std::thread housekeeper_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<grpc::Server> worker_server_;
  std::unique_ptr<grpc::Server> client_server_;
};

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(
    const CoordinatorConfig& config) {
  RETURN_IF_ERROR(config.Validate());
  ASSIGN_OR_RETURN(std::unique_ptr<ServedModel> model, ServedModel::Load(config));
  auto impl = std::make_unique<Impl>(config, std::move(model));
  RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<CoordinatorServer>(new CoordinatorServer(std::move(impl)));
}

CoordinatorServer::CoordinatorServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CoordinatorServer::~CoordinatorServer() = default;
int CoordinatorServer::port() const { return impl_->port(); }
int CoordinatorServer::worker_port() const { return impl_->worker_port(); }
int CoordinatorServer::metrics_port() const { return impl_->metrics_port(); }
GroupState CoordinatorServer::group_state() const { return impl_->group().state(); }
absl::Status CoordinatorServer::WaitUntilReady(absl::Time deadline) {
  return impl_->group().WaitUntilReady(deadline);
}
void CoordinatorServer::Drain() { impl_->Drain(); }

}  // namespace lapidary
