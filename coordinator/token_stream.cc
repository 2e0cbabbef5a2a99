#include "coordinator/token_stream.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/error_details.h"
#include "common/log.h"

namespace lapidary {

namespace wire = cluster::v1;

namespace {

// Keeps one message of prompt scores far below the 4 MiB that clients take by default, also with
// the most alternatives.
constexpr int kScoresPerMessage = 256;
constexpr absl::Duration kMaxRetryDelay = absl::Hours(1);
// Steps join a message up to this size.
constexpr int64_t kJoinBytes = 16 << 10;
// A token id in a delta: a vocabulary of 2^18 takes at most 3 bytes.
constexpr int64_t kTokenBytes = 3;

Outcome OutcomeOf(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_LENGTH:
      return Outcome::kLength;
    case v1::FINISH_REASON_TOOL_CALLS:
      return Outcome::kToolCalls;
    default:
      return Outcome::kStop;
  }
}

}  // namespace

TokenStream::TokenStream(const AdmittedRequest& request, const ServedModel& model,
                         CoordinatorMetrics& metrics, const SlowReaderPolicy& policy,
                         absl::Duration retry_delay, WriteScheduler& writes, Hooks hooks)
    : client_id_(request.client_id),
      trace_id_(request.trace_id),
      received_(request.received),
      prompt_tokens_(request.prompt_tokens),
      max_tokens_(static_cast<uint32_t>(
          request.choices.empty() ? 0 : request.choices[0].sampling().max_tokens())),
      options_(request.stream),
      model_(model),
      metrics_(metrics),
      policy_(policy),
      retry_delay_(retry_delay),
      writes_(writes),
      hooks_(std::move(hooks)),
      unread_since_(request.received) {
  absl::MutexLock lock(&mu_);
  choices_.resize(request.choices.size());
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    choice.id = RequestId{request.choices[i].id()};
    choice_of_[choice.id] = i;
    if (model.tokenizer != nullptr) {
      choice.text.emplace(*model.tokenizer, !options_.keep_special_tokens);
    }
    if (!options_.stops.empty()) choice.stops.emplace(options_.stops, options_.include_stop);
  }
}

void TokenStream::Start(StreamWriter* writer) {
  absl::MutexLock lock(&mu_);
  writer_ = writer;
  WantWrite();
}

void TokenStream::OnEvent(const wire::RequestEvent& event, absl::Time now) {
  std::vector<RequestId> cancels;
  {
    absl::MutexLock lock(&mu_);
    const auto found = choice_of_.find(RequestId{event.id()});
    if (found == choice_of_.end() || final_) return;
    Choice* choice = &choices_[found->second];
    if (choice->finished) return;
    const bool was_above = pending_bytes_ > policy_.queue_bytes;
    if (event.finish() == wire::FINISH_ERROR || event.finish() == wire::FINISH_CANCELLED) {
      choice->finished = true;  // the engine has forgotten it
      const absl::Status status = EngineError(event);
      End(status, absl::IsDeadlineExceeded(status) ? Outcome::kDeadline : Outcome::kError,
          /*at_once=*/false, now, &cancels);
    } else {
      MeasureTimes(choice, event, now);
      QueuePromptScores(event);
      TakeTokens(choice, event, &cancels);
    }
    if (!final_ &&
        std::all_of(choices_.begin(), choices_.end(), [](const Choice& c) { return c.finished; })) {
      v1::GenerateResponse message;
      v1::Usage* usage = message.mutable_usage();
      usage->set_prompt_tokens(prompt_tokens_);
      for (const Choice& c : choices_) {
        usage->set_completion_tokens(usage->completion_tokens() + c.tokens);
      }
      usage->set_total_tokens(prompt_tokens_ + usage->completion_tokens());
      usage->set_cached_prompt_tokens(cached_tokens_);
      Queue(std::move(message));
      End(absl::OkStatus(), outcome_, /*at_once=*/false, now, &cancels);
    }
    if (!final_ && pending_bytes_ > policy_.max_queue_bytes()) {
      End(WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                         "the client does not read: %d bytes wait for it, the limit is %d",
                         pending_bytes_, policy_.max_queue_bytes())),
                     "SLOW_READER"),
          Outcome::kSlowReader, /*at_once=*/true, now, &cancels);
    }
    if (!was_above && pending_bytes_ > policy_.queue_bytes) unread_since_ = now;
    Throttle();
    WantWrite();
  }
  if (!cancels.empty()) hooks_.cancel(cancels);
}

void TokenStream::MeasureTimes(Choice* choice, const wire::RequestEvent& event, absl::Time now) {
  const bool first_choice = choice == choices_.data();
  if (first_choice && event.has_queue_seconds()) {
    queue_seconds_ = event.queue_seconds();
    metrics_.QueueTime(queue_seconds_);
  }
  if (first_choice && event.has_cached_tokens()) {
    cached_tokens_ = std::min(event.cached_tokens(), prompt_tokens_);
    metrics_.CachedPromptTokens(cached_tokens_);
  }
  if (event.tokens().empty()) return;
  if (!started_) {
    started_ = true;
    metrics_.PromptTokens(prompt_tokens_);
    metrics_.FirstToken(absl::ToDoubleSeconds(now - received_));
  }
  if (choice->tokens > 0) {
    metrics_.InterToken(absl::ToDoubleSeconds(now - choice->last_time), event.tokens_size());
  } else {
    choice->first_time = now;
  }
  choice->last_time = now;
}

void TokenStream::QueuePromptScores(const wire::RequestEvent& event) {
  for (int begin = 0; begin < event.prompt_scores_size(); begin += kScoresPerMessage) {
    v1::GenerateResponse message;
    const int end = std::min(begin + kScoresPerMessage, event.prompt_scores_size());
    for (int i = begin; i < end; ++i) {
      FillScore(event.prompt_scores(i), message.mutable_prompt_scores()->add_scores());
    }
    Queue(std::move(message));
  }
}

void TokenStream::FillScore(const wire::Scored& in, v1::TokenScore* out) const {
  const bool names = !options_.skip_text;
  out->set_id(in.id());
  if (names) out->set_token(model_.TokenName(static_cast<TokenId>(in.id())));
  out->set_logprob(in.logprob());
  for (int i = 0; i < std::min(in.top_ids_size(), in.top_logprobs_size()); ++i) {
    v1::TokenAlternative* top = out->add_top();
    top->set_id(in.top_ids(i));
    if (names) top->set_token(model_.TokenName(static_cast<TokenId>(in.top_ids(i))));
    top->set_logprob(in.top_logprobs(i));
  }
}

int TokenStream::AppendText(Choice* choice, TokenId id, std::string* shown) {
  if (!choice->stops) {
    if (!options_.skip_text) choice->text->Push(id, shown);
    return -1;
  }
  const std::string piece = choice->text->Push(id);
  if (!options_.skip_text) return choice->stops->Push(piece, shown);
  std::string unseen;
  return choice->stops->Push(piece, &unseen);
}

int TokenStream::AppendRest(Choice* choice, std::string* shown) {
  std::string text = choice->text->Finish();
  int stop = -1;
  if (choice->stops) {
    std::string certain;
    stop = choice->stops->Push(text, &certain);
    if (stop < 0) certain += choice->stops->Flush();
    text = std::move(certain);
  }
  if (!options_.skip_text) *shown += text;
  return stop;
}

void TokenStream::TakeTokens(Choice* choice, const wire::RequestEvent& event,
                             std::vector<RequestId>* cancels) {
  const bool goes_on = event.finish() == wire::FINISH_UNSPECIFIED;
  if (goes_on && event.tokens().empty()) return;
  Pending& pending = DeltaOf(choice);
  v1::Delta* delta = pending.message.mutable_delta();
  const int64_t bytes_before = pending.bytes;
  const size_t text_before = delta->text().size();
  const uint32_t tokens_before = choice->tokens;
  int stop = -1;
  for (int i = 0; i < event.tokens_size() && stop < 0; ++i) {
    const wire::Scored& token = event.tokens(i);
    const auto id = static_cast<TokenId>(token.id());
    ++choice->tokens;
    delta->add_token_ids(token.id());
    pending.bytes += kTokenBytes;
    if (options_.scores) {
      v1::TokenScore* score = delta->add_scores();
      FillScore(token, score);
      pending.bytes += static_cast<int64_t>(score->ByteSizeLong());
    }
    const bool ends = event.finish() == wire::FINISH_STOP && i + 1 == event.tokens_size() &&
                      event.has_stop_id() && event.stop_id() == token.id();
    // A stop token is part of the tokens, and of the text only where stops are.
    if (ends && !options_.include_stop) continue;
    if (!ends) choice->last_token = id;
    if (choice->text) stop = AppendText(choice, id, delta->mutable_text());
  }
  metrics_.GeneratedTokens(choice->tokens - tokens_before);
  // The end: what was held back comes out.
  const bool stopped_by_text = stop >= 0;
  if (!goes_on && !stopped_by_text && choice->text) {
    stop = AppendRest(choice, delta->mutable_text());
  }
  pending.bytes += static_cast<int64_t>(delta->text().size() - text_before);
  pending_bytes_ += pending.bytes - bytes_before;
  if (delta->token_ids().empty() && delta->text().empty()) {
    pending_bytes_ -= pending.bytes;
    pending_.pop_back();
  }
  if (stop >= 0) {
    // The engine may be steps ahead; what it computed past the stop is dropped.
    if (goes_on) cancels->push_back(choice->id);
    FinishChoice(choice, v1::FINISH_REASON_STOP, options_.stops[static_cast<size_t>(stop)],
                 std::nullopt);
    return;
  }
  if (goes_on) return;
  if (event.finish() == wire::FINISH_LENGTH) {
    FinishChoice(choice, v1::FINISH_REASON_LENGTH, "", std::nullopt);
  } else {
    std::optional<uint32_t> stop_id;
    if (event.has_stop_id()) stop_id = event.stop_id();
    const bool opens_response = stop_id && model_.tool_response_begin &&
                                *stop_id == static_cast<uint32_t>(*model_.tool_response_begin);
    const bool closed_call = model_.tool_call_end && choice->last_token == model_.tool_call_end;
    const bool tool_call = options_.chat && (opens_response || closed_call);
    FinishChoice(choice, tool_call ? v1::FINISH_REASON_TOOL_CALLS : v1::FINISH_REASON_STOP, "",
                 stop_id);
  }
}

void TokenStream::FinishChoice(Choice* choice, v1::FinishReason reason, const std::string& stop,
                               std::optional<uint32_t> stop_id) {
  choice->finished = true;
  if (choice == choices_.data()) outcome_ = OutcomeOf(reason);
  v1::GenerateResponse message;
  v1::ChoiceFinished* finished = message.mutable_choice_finished();
  finished->set_choice(static_cast<uint32_t>(choice - choices_.data()));
  finished->set_reason(reason);
  finished->set_stop(stop);
  if (stop_id) finished->set_stop_token_id(*stop_id);
  finished->set_completion_tokens(choice->tokens);
  Queue(std::move(message));
}

absl::Status TokenStream::EngineError(const wire::RequestEvent& event) {
  if (event.finish() == wire::FINISH_CANCELLED) {
    return absl::AbortedError("the engine gave the request up");
  }
  const auto code = static_cast<absl::StatusCode>(event.error_code());
  const bool known = event.error_code() > 0 && event.error_code() <= 16;
  absl::Status status(known ? code : absl::StatusCode::kInternal, event.error_message());
  if (absl::IsResourceExhausted(status)) {
    metrics_.Rejected(Rejection::kQueueFull);
    // Written so that NaN is no advice.
    const double seconds = event.retry_after_seconds();
    const absl::Duration delay =
        seconds > 0 ? std::min(absl::Seconds(seconds), kMaxRetryDelay) : retry_delay_;
    return WithRetryAfter(WithReason(std::move(status), "QUEUE_FULL"), delay);
  }
  if (absl::IsUnavailable(status)) return WithRetryAfter(std::move(status), retry_delay_);
  if (absl::IsInvalidArgument(status)) return WithReason(std::move(status), "REFUSED_BY_ENGINE");
  return status;
}

void TokenStream::OnLost(const absl::Status& why, absl::Time now) {
  std::vector<RequestId> cancels;  // the group has forgotten them already
  absl::MutexLock lock(&mu_);
  End(why, Outcome::kLost, /*at_once=*/false, now, &cancels);
  WantWrite();
}

void TokenStream::Fail(const absl::Status& status, Outcome outcome, absl::Time now) {
  std::vector<RequestId> cancels;
  {
    absl::MutexLock lock(&mu_);
    End(status, outcome, /*at_once=*/false, now, &cancels);
    WantWrite();
  }
  if (!cancels.empty()) hooks_.cancel(cancels);
}

void TokenStream::ClientGone(bool deadline_passed, absl::Time now) {
  std::vector<RequestId> cancels;
  {
    absl::MutexLock lock(&mu_);
    if (deadline_passed) {
      End(absl::DeadlineExceededError("the call's deadline has passed"), Outcome::kDeadline,
          /*at_once=*/true, now, &cancels);
    } else {
      End(absl::CancelledError("the client cancelled"), Outcome::kCancelled, /*at_once=*/true, now,
          &cancels);
    }
    if (writer_ != nullptr) Deliver();  // it had ended, but its queue will not be read any more
  }
  if (!cancels.empty()) hooks_.cancel(cancels);
}

void TokenStream::Tick(absl::Time now) {
  std::vector<RequestId> cancels;
  {
    absl::MutexLock lock(&mu_);
    if (writer_ == nullptr || (!paused_ && pending_bytes_ <= policy_.queue_bytes)) return;
    if (now - unread_since_ < policy_.timeout) return;
    const absl::Status status =
        WithReason(absl::ResourceExhaustedError(absl::StrFormat(
                       "the client does not read: %d bytes wait for it, and it took none for %s",
                       pending_bytes_, absl::FormatDuration(policy_.timeout))),
                   "SLOW_READER");
    if (final_) {
      final_ = status;
      Deliver();
    } else {
      End(status, Outcome::kSlowReader, /*at_once=*/true, now, &cancels);
    }
  }
  if (!cancels.empty()) hooks_.cancel(cancels);
}

void TokenStream::Throttle() {
  if (final_) return;
  const bool pause = pending_bytes_ > (paused_ ? policy_.resume_bytes() : policy_.queue_bytes);
  if (pause == paused_) return;
  paused_ = pause;
  metrics_.Paused(pause);
  std::vector<RequestId> ids;
  for (const Choice& choice : choices_) {
    if (!choice.finished) ids.push_back(choice.id);
  }
  hooks_.set_paused(ids, pause);
}

void TokenStream::Queue(v1::GenerateResponse message) {
  message.set_request_id(client_id_);
  const auto bytes = static_cast<int64_t>(message.ByteSizeLong());
  pending_bytes_ += bytes;
  pending_.push_back(Pending{std::move(message), bytes});
}

TokenStream::Pending& TokenStream::DeltaOf(const Choice* choice) {
  const auto index = static_cast<uint32_t>(choice - choices_.data());
  if (pending_.size() > (write_in_flight_ ? 1u : 0u)) {
    Pending& last = pending_.back();
    if (last.message.has_delta() && last.message.delta().choice() == index &&
        last.bytes < kJoinBytes) {
      return last;
    }
  }
  v1::GenerateResponse message = std::exchange(spare_, {});
  message.mutable_delta()->Clear();  // keeps what was allocated
  message.mutable_delta()->set_choice(index);
  Queue(std::move(message));
  return pending_.back();
}

void TokenStream::WantWrite() {
  if (writer_ == nullptr || write_in_flight_ || write_wanted_) return;
  if (pending_.empty() && !final_) return;
  write_wanted_ = true;
  writes_.Add(shared_from_this());
}

void TokenStream::WriteNow() {
  absl::MutexLock lock(&mu_);
  write_wanted_ = false;
  if (writer_ == nullptr || write_in_flight_) return;
  if (!pending_.empty()) {
    write_in_flight_ = true;
    writer_->Write(pending_.front().message);
  } else if (final_) {
    Deliver();
  }
}

void TokenStream::WriteDone(bool ok, absl::Time now) {
  absl::MutexLock lock(&mu_);
  write_in_flight_ = false;
  unread_since_ = now;
  pending_bytes_ -= pending_.front().bytes;
  if (pending_.front().message.has_delta()) spare_ = std::move(pending_.front().message);
  pending_.pop_front();
  if (!ok) return;  // the call is broken: ClientGone comes
  Throttle();
  WantWrite();
}

void TokenStream::End(const absl::Status& status, Outcome outcome, bool at_once, absl::Time now,
                      std::vector<RequestId>* cancels) {
  if (final_) return;
  final_ = status;
  if (std::exchange(paused_, false)) metrics_.Paused(false);
  for (const Choice& choice : choices_) {
    if (!choice.finished) cancels->push_back(choice.id);
  }
  const EndedRequest ended = Summarize(outcome, now);
  metrics_.Finished(ended);
  const std::string code = absl::StatusCodeToString(status.code());
  LogInfo("request finished", {{"request_id", client_id_},
                               {"trace_id", trace_id_},
                               {"finish", OutcomeName(outcome)},
                               {"code", code},
                               {"why", std::string(status.message())},
                               {"prompt_tokens", prompt_tokens_},
                               {"generated_tokens", ended.generated_tokens},
                               {"seconds", ended.seconds}});
  hooks_.over();
  if (at_once) Deliver();
}

EndedRequest TokenStream::Summarize(Outcome outcome, absl::Time now) const {
  EndedRequest out;
  out.outcome = outcome;
  out.seconds = absl::ToDoubleSeconds(now - received_);
  out.prompt_tokens = prompt_tokens_;
  out.choices = static_cast<uint32_t>(choices_.size());
  out.max_tokens = max_tokens_;
  for (const Choice& choice : choices_) {
    out.generated_tokens += choice.tokens;
    out.longest_choice = std::max(out.longest_choice, choice.tokens);
  }
  if (choices_.empty() || choices_[0].tokens == 0) return out;
  const Choice& first = choices_[0];
  out.first_choice = ChoiceTimes{.queue = queue_seconds_,
                                 .first_token = absl::ToDoubleSeconds(first.first_time - received_),
                                 .last_token = absl::ToDoubleSeconds(first.last_time - received_),
                                 .tokens = first.tokens,
                                 .cached_tokens = cached_tokens_};
  return out;
}

// Ends the RPC now. A message being written stays in place until WriteDone.
void TokenStream::Deliver() {
  if (writer_ == nullptr) return;
  std::exchange(writer_, nullptr)->Finish(*final_);
  while (pending_.size() > (write_in_flight_ ? 1u : 0u)) {
    pending_bytes_ -= pending_.back().bytes;
    pending_.pop_back();
  }
}

}  // namespace lapidary
