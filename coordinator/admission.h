// A client's message to what the engine needs: tokens, resolved sampling, limits — or a status that
// names every bad field. No I/O; may take a while for long text (tokenizing, 10 MB/s).
#pragma once
#include <atomic>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/served_model.h"
#include "coordinator/trace_context.h"
#include "lapidary/cluster/v1/cluster.pb.h"
#include "lapidary/v1/lapidary.pb.h"

namespace lapidary {

// Bounds of one request, checked before anything is computed.
inline constexpr uint32_t kMaxChoices = 64;
inline constexpr uint32_t kMaxLogprobs = 128;
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopBytes = 1024;  // of one stop string
inline constexpr int kMaxStopTokens = 64;
inline constexpr int kMaxLogitBias = 4096;
inline constexpr size_t kMaxRequestIdBytes = 128;
inline constexpr size_t kMaxCacheSaltBytes = 128;  // of a tenant: kMaxTenantBytes

// What is known about a call beside its message.
struct CallFacts {
  absl::Time now;
  absl::Time deadline = absl::InfiniteFuture();
  TraceContext trace;
};

// How a request's tokens become its client's events.
struct StreamOptions {
  std::vector<std::string> stops;
  bool include_stop = false;
  bool skip_text = false;
  bool keep_special_tokens = false;
  bool scores = false;  // the client asked for logprobs
  bool chat = false;    // tool calls end with a reason of their own
};

// One client request, resolved.
struct AdmittedRequest {
  std::string client_id;
  std::string trace_id;
  absl::Time received;
  uint32_t prompt_tokens = 0;
  StreamOptions stream;
  // One per choice, in order; ids are unique in this process.
  std::vector<cluster::v1::Submit> choices;
};

class Admission {
 public:
  // `entropy` seeds the seeds drawn for requests without one, and made-up request ids.
  Admission(const ServedModel& model, uint64_t entropy) : model_(model), random_(entropy) {}

  // `max_context`: tokens of prompt and output together. Any thread.
  absl::StatusOr<AdmittedRequest> Admit(const v1::GenerateRequest& request, const CallFacts& facts,
                                        int64_t max_context);

 private:
  uint64_t Draw() ABSL_LOCKS_EXCLUDED(mu_);

  const ServedModel& model_;
  std::atomic<uint64_t> next_id_{1};
  absl::Mutex mu_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
};

// The prompt of a chat: rendered, tokenized, one BOS in front. INVALID_ARGUMENT names the field;
// FAILED_PRECONDITION without a tokenizer or with an unknown chat template. `rendered` may be null.
absl::StatusOr<std::vector<TokenId>> EncodeChat(const ServedModel& model, const v1::Chat& chat,
                                                std::string* rendered);

}  // namespace lapidary
