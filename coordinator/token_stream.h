// Token ids of one client request -> its events: text, scores, stop strings, usage; and the queue
// in front of a client that may read slowly or go away.
//
// Fed by the group's reader thread, written by the write scheduler's, watched by the housekeeper.
// Tokens join the message that waits, so several steps share one when the writer is behind. Exactly
// one terminal status reaches the writer. Lock order: mu_ before the locks of LiveRequests, of the
// group and of the write scheduler.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/admission.h"
#include "coordinator/coordinator_metrics.h"
#include "coordinator/group_client.h"
#include "coordinator/served_model.h"
#include "coordinator/stop_matcher.h"
#include "coordinator/write_scheduler.h"

namespace lapidary {

// The RPC's outgoing side. Called with the stream's lock held: must neither block nor call back.
class StreamWriter {
 public:
  virtual ~StreamWriter() = default;
  // One at a time: the next after WriteDone(). `message` stays valid until then.
  virtual void Write(const v1::GenerateResponse& message) = 0;
  // The last call; the writer may be gone when it returns.
  virtual void Finish(const absl::Status& status) = 0;
};

struct SlowReaderPolicy {
  int64_t queue_bytes = 1 << 20;               // above: the engine is paused
  absl::Duration timeout = absl::Seconds(30);  // so long without any reading: cancelled
  int64_t resume_bytes() const { return queue_bytes / 2; }     // below: it goes on
  int64_t max_queue_bytes() const { return 8 * queue_bytes; }  // above: cancelled at once
};

class TokenStream : public RequestSink,
                    public WriteTarget,
                    public std::enable_shared_from_this<TokenStream> {
 public:
  struct Hooks {
    // Forgets engine requests. Called without locks.
    std::function<void(const std::vector<RequestId>&)> cancel;
    // Pauses engine requests, or resumes them. Called with mu_ held, so that they arrive in order;
    // must neither block nor call back.
    std::function<void(const std::vector<RequestId>&, bool paused)> set_paused;
    // The request is over: its client id is free again. Called once, with mu_ held, before the
    // client can see the end.
    std::function<void()> over;
  };

  TokenStream(const AdmittedRequest& request, const ServedModel& model, CoordinatorMetrics& metrics,
              const SlowReaderPolicy& policy, absl::Duration retry_delay, WriteScheduler& writes,
              Hooks hooks);

  // After OnCancel by gRPC's own count, which ThreadSanitizer cannot see: the mutex says it again.
  ~TokenStream() override { absl::MutexLock lock(&mu_); }

  // Once, when the group has taken the request; events that came first are written now. The writer
  // outlives the call of its Finish().
  void Start(StreamWriter* writer) ABSL_LOCKS_EXCLUDED(mu_);

  void OnEvent(const cluster::v1::RequestEvent& event, absl::Time now) override
      ABSL_LOCKS_EXCLUDED(mu_);
  void OnLost(const absl::Status& why, absl::Time now) override ABSL_LOCKS_EXCLUDED(mu_);

  // From the scheduler: the first message that waits, or the end.
  void WriteNow() override ABSL_LOCKS_EXCLUDED(mu_);
  // From the RPC: the message is out (ok) or never will be.
  void WriteDone(bool ok, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  // From the RPC: cancelled, or its deadline has passed.
  void ClientGone(bool deadline_passed, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends it with an error after what is queued: not admitted by the group, drained away.
  void Fail(const absl::Status& status, Outcome outcome, absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  // Ends it when its client has read nothing for too long.
  void Tick(absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Choice {
    RequestId id;
    std::optional<IncrementalDetokenizer> text;  // absent without a tokenizer
    std::optional<StopMatcher> stops;            // absent without stop strings
    std::optional<TokenId> last_token;
    uint32_t tokens = 0;
    bool finished = false;
    absl::Time first_time, last_time;  // of the oldest and the newest token
  };
  struct Pending {
    v1::GenerateResponse message;
    int64_t bytes = 0;  // about what it takes on the wire
  };

  // Each appends events; `cancels` collects engine requests to forget once mu_ is given up.
  void TakeTokens(Choice* choice, const cluster::v1::RequestEvent& event,
                  std::vector<RequestId>* cancels) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TakeFinish(Choice* choice, const cluster::v1::RequestEvent& event, v1::Delta* delta)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FinishChoice(Choice* choice, v1::FinishReason reason, const std::string& stop,
                    std::optional<uint32_t> stop_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void QueuePromptScores(const cluster::v1::RequestEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void MeasureTimes(Choice* choice, const cluster::v1::RequestEvent& event, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // One token's text, as far as no stop string can begin in it. The stop that is complete, or -1.
  int AppendText(Choice* choice, TokenId id, std::string* shown) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What was held back, at the end.
  int AppendRest(Choice* choice, std::string* shown) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status EngineError(const cluster::v1::RequestEvent& event)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Has the engine compute only what a reader takes.
  void Throttle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Queue(v1::GenerateResponse message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The delta that waits last, when it is this choice's and has room; else a new one.
  Pending& DeltaOf(const Choice* choice) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Has the scheduler call WriteNow() when that would write something.
  void WantWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Sets the terminal status; delivered after what is queued, or `at_once`. Later calls do nothing.
  void End(const absl::Status& status, Outcome outcome, bool at_once, absl::Time now,
           std::vector<RequestId>* cancels) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  EndedRequest Summarize(Outcome outcome, absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Deliver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FillScore(const cluster::v1::Scored& in, v1::TokenScore* out) const;

  const std::string client_id_, trace_id_;
  const absl::Time received_;
  const uint32_t prompt_tokens_;
  const uint32_t max_tokens_;  // of a choice
  const StreamOptions options_;
  const ServedModel& model_;
  CoordinatorMetrics& metrics_;
  const SlowReaderPolicy policy_;
  const absl::Duration retry_delay_;
  WriteScheduler& writes_;
  const Hooks hooks_;

  absl::Mutex mu_;
  StreamWriter* writer_ ABSL_GUARDED_BY(mu_) = nullptr;  // null before Start and after Finish
  std::vector<Choice> choices_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<RequestId, size_t> choice_of_ ABSL_GUARDED_BY(mu_);
  v1::GenerateResponse spare_ ABSL_GUARDED_BY(mu_);   // a delta that is out, for its memory
  std::deque<Pending> pending_ ABSL_GUARDED_BY(mu_);  // front is being written, if any
  int64_t pending_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool write_in_flight_ ABSL_GUARDED_BY(mu_) = false;  // gRPC allows one StartWrite at a time
  bool write_wanted_ ABSL_GUARDED_BY(mu_) = false;     // the scheduler has been asked
  bool paused_ ABSL_GUARDED_BY(mu_) = false;           // the engine, as it was told last
  absl::Time unread_since_ ABSL_GUARDED_BY(mu_);  // of a queue above the limit: its last progress
  bool started_ ABSL_GUARDED_BY(mu_) = false;     // the engine has answered
  std::optional<absl::Status> final_ ABSL_GUARDED_BY(mu_);
  Outcome outcome_ ABSL_GUARDED_BY(mu_) = Outcome::kStop;  // of choice 0
  double queue_seconds_ ABSL_GUARDED_BY(mu_) = 0;          // of choice 0, in the engine
  uint32_t cached_tokens_ ABSL_GUARDED_BY(mu_) = 0;        // of choice 0's prompt
};

}  // namespace lapidary
