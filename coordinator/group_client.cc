#include "coordinator/group_client.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_format.h"
#include "common/error_details.h"
#include "common/log.h"

namespace lapidary {

namespace wire = cluster::v1;

GroupClient::GroupClient(const CoordinatorConfig& config, std::string name, absl::Time now,
                         std::function<void()> on_change,
                         std::function<void(const StepWork&)> on_steps)
    : config_(config),
      name_(std::move(name)),
      on_change_(std::move(on_change)),
      on_steps_(std::move(on_steps)),
      waiting_since_(now) {
  state_.size = config_.tensor_parallel;
}

GroupClient::Worker* GroupClient::Find(const WorkerLink* link) {
  for (Worker& w : workers_) {
    if (w.link.get() == link) return &w;
  }
  return nullptr;
}

GroupClient::Worker* GroupClient::Leader() {
  for (Worker& w : workers_) {
    if (w.rank == 0) return &w;
  }
  return nullptr;
}

absl::Status GroupClient::Register(const wire::Register& worker, std::shared_ptr<WorkerLink> link) {
  const int hint = worker.has_rank_hint() ? static_cast<int>(worker.rank_hint()) : -1;
  {
    absl::MutexLock lock(&mu_);
    if (draining_) return absl::UnavailableError("the coordinator is draining");
    if (worker.has_rank_hint() && worker.rank_hint() >= static_cast<uint32_t>(state_.size)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("rank %d does not exist in a group of %d (ranks count from 0)",
                          worker.rank_hint(), state_.size));
    }
    for (const Worker& other : workers_) {
      if (hint >= 0 && (other.hint == hint || other.rank == hint)) {
        return absl::AlreadyExistsError(
            absl::StrFormat("rank %d is taken by %s", hint, other.name));
      }
    }
    if (std::ssize(workers_) >= state_.size) {
      return absl::FailedPreconditionError(
          absl::StrFormat("the group already has its %d workers", state_.size));
    }
    if (!workers_.empty() && workers_[0].device != worker.device()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("the device is %s, that of %s is %s: a group has one kind",
                          worker.device(), workers_[0].name, workers_[0].device));
    }
    Worker w;
    w.link = std::move(link);
    w.name = worker.worker();
    w.device = worker.device();
    w.hint = hint;
    workers_.push_back(std::move(w));
    CountWorkers();
    LogInfo("worker connected", {{"worker", worker.worker()},
                                 {"device", worker.device()},
                                 {"threads", worker.threads()},
                                 {"connected", state_.connected},
                                 {"wanted", state_.size}});
    if (state_.connected == state_.size) AssignRanks();
  }
  on_change_();
  return absl::OkStatus();
}

void GroupClient::CountWorkers() {
  state_.connected = static_cast<int>(workers_.size());
  state_.missing.clear();
  if (workers_.empty()) return;
  std::vector<bool> here(static_cast<size_t>(state_.size), false);
  for (const Worker& w : workers_) {
    if (w.hint < 0) return;  // it may become any
    here[static_cast<size_t>(w.hint)] = true;
  }
  for (int rank = 0; rank < state_.size; ++rank) {
    if (!here[static_cast<size_t>(rank)]) state_.missing.push_back(rank);
  }
}

void GroupClient::AssignRanks() {
  // Hinted workers take their rank, the others the free ones in order of arrival.
  std::vector<bool> taken(static_cast<size_t>(state_.size), false);
  for (Worker& w : workers_) {
    if (w.hint < 0) continue;
    w.rank = w.hint;
    taken[static_cast<size_t>(w.rank)] = true;
  }
  for (Worker& w : workers_) {
    if (w.rank >= 0) continue;
    w.rank = static_cast<int>(std::find(taken.begin(), taken.end(), false) - taken.begin());
    taken[static_cast<size_t>(w.rank)] = true;
  }
  std::sort(workers_.begin(), workers_.end(),
            [](const Worker& a, const Worker& b) { return a.rank < b.rank; });
  ++state_.epoch;
  state_.phase = GroupPhase::kLoading;
  state_.last_failure.clear();
  state_.rank_up.assign(static_cast<size_t>(state_.size), true);
  wire::ConnectResponse message;
  message.set_epoch(state_.epoch);
  wire::Assignment* a = message.mutable_assignment();
  a->set_size(static_cast<uint32_t>(state_.size));
  a->set_model_path(config_.model_path);
  a->set_compute(config_.compute);
  a->set_arith(config_.arith);
  a->set_rendezvous(absl::StrFormat("%s-e%d", name_, state_.epoch));
  a->set_max_context_tokens(static_cast<uint32_t>(config_.max_context));
  a->set_max_running(static_cast<uint32_t>(config_.max_running));
  a->set_max_step_tokens(static_cast<uint32_t>(config_.max_step_tokens));
  a->set_max_queued(static_cast<uint32_t>(config_.max_queued));
  a->set_max_queued_tokens(static_cast<uint64_t>(config_.max_queued_tokens));
  a->set_kv_bytes(static_cast<uint64_t>(config_.kv_bytes));
  a->set_kv_format(config_.kv_format);
  a->set_kv_type(config_.kv_type);
  a->set_prefix_cache(config_.prefix_cache);
  a->set_max_in_flight(static_cast<uint32_t>(config_.max_in_flight));
  a->set_step_seconds_target(absl::ToDoubleSeconds(config_.step_time_target));
  for (const auto& entry : config_.tenant_weights) {
    (*a->mutable_tenant_weights())[entry.first] = entry.second;
  }
  for (const Worker& w : workers_) {
    a->set_rank(static_cast<uint32_t>(w.rank));
    w.link->Send(message);
    LogInfo("rank assigned", {{"rank", w.rank}, {"worker", w.name}, {"epoch", state_.epoch}});
  }
}

void GroupClient::OnMessage(const WorkerLink* link, const wire::ConnectRequest& message,
                            absl::Time now) {
  // Tokens first: the only message that comes often.
  if (message.has_step_events()) {
    {
      absl::MutexLock lock(&mu_);
      const Worker* w = Find(link);
      if (w == nullptr) return;  // of an ended epoch
      if (w->rank != 0 || message.epoch() != state_.epoch) {
        LogWarning("step events refused", {{"rank", w->rank}, {"epoch", message.epoch()}});
        return;
      }
    }
    Deliver(message.step_events(), now);
    return;
  }
  Ending ending;
  StepWork work;
  bool changed = false;
  {
    absl::MutexLock lock(&mu_);
    Worker* w = Find(link);
    if (w == nullptr) return;
    if (message.has_failure()) {
      ending = EndEpoch(w, absl::StrFormat("gave up: %s", message.failure().message()), now);
      changed = true;
    } else if (message.epoch() != state_.epoch || state_.phase == GroupPhase::kWaiting) {
      LogWarning("message of another epoch refused",
                 {{"worker", w->name}, {"epoch", message.epoch()}, {"current", state_.epoch}});
    } else if (message.has_progress()) {
      w->done_bytes = static_cast<int64_t>(message.progress().done_bytes());
      w->total_bytes = static_cast<int64_t>(message.progress().total_bytes());
      state_.loaded_bytes = state_.total_bytes = 0;
      for (const Worker& each : workers_) {
        state_.loaded_bytes += each.done_bytes;
        state_.total_bytes += each.total_bytes;
      }
    } else if (message.has_communicator_id()) {
      RelayCommunicatorId(*w, message.communicator_id());
    } else if (message.has_ready()) {
      TakeReady(w, message.ready());
      changed = true;
    } else if (message.has_load() && w->rank == 0) {
      work = TakeLoad(message.load());
    }
  }
  Finish(ending, now);
  if (work.steps > 0 && on_steps_) on_steps_(work);
  if (changed) on_change_();
}

void GroupClient::RelayCommunicatorId(const Worker& from, const wire::CommunicatorId& id) {
  if (from.rank != 0) {
    LogWarning("communicator id refused: it is the leader's to make", {{"rank", from.rank}});
    return;
  }
  wire::ConnectResponse message;
  message.set_epoch(state_.epoch);
  *message.mutable_communicator_id() = id;
  for (const Worker& w : workers_) {
    if (w.rank != 0) w.link->Send(message);
  }
}

StepWork GroupClient::TakeLoad(const wire::Load& load) {
  const auto work_so_far = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return StepWork{.steps = state_.steps,
                    .tokens = state_.decode_rows + state_.prefill_tokens,
                    .plan_seconds = state_.plan_seconds,
                    .forward_seconds = state_.forward_seconds,
                    .sample_seconds = state_.sample_seconds};
  };
  const StepWork before = work_so_far();
  state_.waiting = load.waiting();
  state_.running = load.running();
  state_.waiting_tokens = static_cast<int64_t>(load.waiting_tokens());
  state_.waiting_batch = load.waiting_batch();
  state_.running_batch = load.running_batch();
  state_.sliding_pages_used = load.sliding_pages_used();
  state_.global_pages_used = load.global_pages_used();
  state_.sliding_pages_cached = load.sliding_pages_cached();
  state_.global_pages_cached = load.global_pages_cached();
  state_.preemptions = load.preemptions();
  state_.recomputed_tokens = load.recomputed_tokens();
  state_.steps = load.steps();
  state_.decode_rows = load.decode_rows();
  state_.prefill_tokens = load.prefill_tokens();
  state_.prefix_lookup_tokens = load.prefix_lookup_tokens();
  state_.prefix_hit_tokens = load.prefix_hit_tokens();
  state_.prefix_evicted_pages = load.prefix_evicted_pages();
  state_.plan_seconds = load.step_seconds().plan();
  state_.forward_seconds = load.step_seconds().forward();
  state_.sample_seconds = load.step_seconds().sample();
  StepWork work = work_so_far();
  if (work.steps <= before.steps) return StepWork{};
  work.steps -= before.steps;
  work.tokens -= before.tokens;
  work.plan_seconds -= before.plan_seconds;
  work.forward_seconds -= before.forward_seconds;
  work.sample_seconds -= before.sample_seconds;
  return work;
}

void GroupClient::TakeReady(Worker* worker, const wire::Ready& ready) {
  worker->ready = true;
  worker->sizes = ready;
  state_.weights_bytes = state_.kv_bytes = state_.workspace_bytes = 0;
  for (const Worker& w : workers_) {
    state_.weights_bytes += static_cast<int64_t>(w.sizes.weights_bytes());
    state_.kv_bytes += static_cast<int64_t>(w.sizes.kv_bytes());
    state_.workspace_bytes += static_cast<int64_t>(w.sizes.workspace_bytes());
  }
  if (worker->rank != 0 || state_.phase != GroupPhase::kLoading) return;
  state_.phase = GroupPhase::kReady;
  state_.sliding_pages = ready.sliding_pages();
  state_.global_pages = ready.global_pages();
  state_.max_context = ready.max_context_tokens();
  state_.arith = ready.arith();
  state_.compute = ready.compute();
  LogInfo("group ready", {{"epoch", state_.epoch},
                          {"ranks", state_.size},
                          {"max_context", state_.max_context},
                          {"compute", state_.compute},
                          {"arith", state_.arith}});
}

void GroupClient::Deliver(const wire::StepEvents& step, absl::Time now) {
  // Sinks are called without the lock: they may cancel, and they take their own.
  std::vector<std::shared_ptr<RequestSink>> sinks(static_cast<size_t>(step.events_size()));
  {
    absl::MutexLock lock(&mu_);
    for (int i = 0; i < step.events_size(); ++i) {
      const auto found = live_.find(RequestId{step.events(i).id()});
      if (found == live_.end()) continue;  // cancelled meanwhile
      sinks[static_cast<size_t>(i)] = found->second;
      if (step.events(i).finish() != wire::FINISH_UNSPECIFIED) live_.erase(found);
    }
  }
  for (int i = 0; i < step.events_size(); ++i) {
    const std::shared_ptr<RequestSink>& sink = sinks[static_cast<size_t>(i)];
    if (sink != nullptr) sink->OnEvent(step.events(i), now);
  }
}

void GroupClient::OnClosed(const WorkerLink* link, std::string_view why, absl::Time now) {
  Ending ending;
  {
    absl::MutexLock lock(&mu_);
    Worker* w = Find(link);
    if (w == nullptr) return;
    if (state_.phase == GroupPhase::kWaiting || workers_told_to_drain_) {
      // Nobody depends on it (yet, or any more).
      LogInfo("worker left", {{"worker", w->name}, {"why", std::string(why)}});
      if (w->rank >= 0) state_.rank_up[static_cast<size_t>(w->rank)] = false;
      workers_.erase(workers_.begin() + (w - workers_.data()));
      CountWorkers();
    } else {
      ending = EndEpoch(w, absl::StrFormat("was lost: %s", std::string(why)), now);
    }
  }
  Finish(ending, now);
  on_change_();
}

GroupClient::Ending GroupClient::EndEpoch(const Worker* culprit, std::string_view why,
                                          absl::Time now) {
  Ending ending;
  std::string reason(why);
  std::vector<std::pair<std::string, std::string>> metadata = {
      {"epoch", absl::StrFormat("%d", state_.epoch)}};
  if (culprit != nullptr && culprit->rank >= 0) {
    reason = absl::StrFormat("rank %d (%s) %s", culprit->rank, culprit->name, reason);
    metadata.emplace_back("rank", absl::StrFormat("%d", culprit->rank));
  } else if (culprit != nullptr) {
    reason = absl::StrFormat("worker %s %s", culprit->name, reason);
  }
  LogError("group lost", {{"epoch", state_.epoch},
                          {"why", reason},
                          {"live_requests", static_cast<int64_t>(live_.size())}});
  wire::ConnectResponse abort;
  abort.set_epoch(state_.epoch);
  abort.mutable_abort()->set_reason(reason);
  for (const Worker& w : workers_) {
    if (&w != culprit) w.link->Send(abort);
    w.link->Close(absl::AbortedError(reason));
  }
  workers_.clear();
  ending.status = WithRetryAfter(
      WithReason(absl::UnavailableError("the group was lost: " + reason), "GROUP_LOST", metadata),
      config_.retry_delay);
  ending.sinks.reserve(live_.size());
  for (auto& entry : live_) ending.sinks.push_back(std::move(entry.second));
  live_.clear();

  GroupState fresh;
  fresh.phase = draining_ ? GroupPhase::kDraining : GroupPhase::kWaiting;
  fresh.epoch = state_.epoch;
  fresh.size = state_.size;
  fresh.rank_up.assign(static_cast<size_t>(state_.size), false);
  fresh.last_failure = reason;
  state_ = std::move(fresh);
  waiting_since_ = now;
  overdue_ = false;
  return ending;
}

void GroupClient::Finish(const Ending& ending, absl::Time now) {
  // A sink with several choices is told several times; the first one counts.
  for (const auto& sink : ending.sinks) sink->OnLost(ending.status, now);
}

absl::Status GroupClient::Submit(const std::vector<wire::Submit>& choices,
                                 const std::shared_ptr<RequestSink>& sink) {
  absl::MutexLock lock(&mu_);
  if (!state_.ready()) {
    return WithRetryAfter(
        WithReason(absl::UnavailableError("no group is ready: " + state_.Describe()),
                   draining_ ? "DRAINING" : "NO_GROUP"),
        config_.retry_delay);
  }
  WorkerLink& leader = *Leader()->link;
  for (const wire::Submit& choice : choices) {
    live_.emplace(RequestId{choice.id()}, sink);
    wire::ConnectResponse message;
    message.set_epoch(state_.epoch);
    *message.mutable_submit() = choice;
    leader.Send(std::move(message));
  }
  return absl::OkStatus();
}

void GroupClient::Cancel(const std::vector<RequestId>& ids) {
  absl::MutexLock lock(&mu_);
  Worker* leader = Leader();
  for (const RequestId id : ids) {
    if (live_.erase(id) == 0 || leader == nullptr) continue;
    wire::ConnectResponse message;
    message.set_epoch(state_.epoch);
    message.mutable_cancel()->set_id(id.value);
    leader->link->Send(std::move(message));
  }
}

void GroupClient::SetPaused(const std::vector<RequestId>& ids, bool paused) {
  absl::MutexLock lock(&mu_);
  Worker* leader = Leader();
  for (const RequestId id : ids) {
    if (!live_.contains(id) || leader == nullptr) continue;
    wire::ConnectResponse message;
    message.set_epoch(state_.epoch);
    if (paused) {
      message.mutable_pause()->set_id(id.value);
    } else {
      message.mutable_resume()->set_id(id.value);
    }
    leader->link->Send(std::move(message));
  }
}

GroupState GroupClient::state() const {
  absl::MutexLock lock(&mu_);
  return state_;
}

absl::Status GroupClient::WaitUntilReady(absl::Time deadline) {
  const auto settled = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
    return state_.ready() || draining_ ||
           (state_.phase == GroupPhase::kWaiting && !state_.last_failure.empty());
  };
  absl::MutexLock lock(&mu_);
  const bool done = mu_.AwaitWithDeadline(absl::Condition(&settled), deadline);
  if (state_.ready()) return absl::OkStatus();
  if (!done) return absl::DeadlineExceededError("the group is not ready: " + state_.Describe());
  return absl::UnavailableError(state_.Describe());
}

void GroupClient::Tick(absl::Time now) {
  {
    absl::MutexLock lock(&mu_);
    if (state_.phase != GroupPhase::kWaiting || overdue_ ||
        now - waiting_since_ < config_.worker_connect_timeout) {
      return;
    }
    overdue_ = true;
    const std::string overdue =
        absl::StrFormat("only %d of %d after %s", state_.connected, state_.size,
                        absl::FormatDuration(config_.worker_connect_timeout));
    state_.last_failure =
        state_.last_failure.empty() ? overdue : state_.last_failure + "; " + overdue;
    LogError(
        "workers have not connected",
        {{"connected", state_.connected}, {"wanted", state_.size}, {"state", state_.Describe()}});
  }
  on_change_();
}

void GroupClient::BeginDrain() {
  {
    absl::MutexLock lock(&mu_);
    draining_ = true;
    state_.phase = GroupPhase::kDraining;
  }
  on_change_();
}

void GroupClient::DrainWorkers(absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  workers_told_to_drain_ = true;
  wire::ConnectResponse message;
  message.set_epoch(state_.epoch);
  message.mutable_drain();
  for (const Worker& w : workers_) w.link->Send(message);
  const auto gone = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return workers_.empty(); };
  if (!mu_.AwaitWithDeadline(absl::Condition(&gone), deadline)) {
    LogWarning("workers did not leave in time",
               {{"connected", static_cast<int64_t>(workers_.size())}});
  }
}

void GroupClient::Abort(std::string_view reason, absl::Time now) {
  Ending ending;
  {
    absl::MutexLock lock(&mu_);
    draining_ = true;
    if (workers_.empty() && live_.empty()) {
      state_.phase = GroupPhase::kDraining;
    } else {
      ending = EndEpoch(nullptr, reason, now);
    }
  }
  Finish(ending, now);
  on_change_();
}

}  // namespace lapidary
