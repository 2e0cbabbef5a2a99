// The seam between the load generator and what it loads: a Lapidary server or an OpenAI-compatible
// one. Everything runs on the caller's thread, inside Poll: no locks, and one core drives hundreds
// of streams.
#pragma once
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/bench/workload.h"

namespace lapidary {

using BenchTime = std::chrono::steady_clock::time_point;

// One message of a stream that brought tokens.
struct TokenArrival {
  BenchTime time;
  int64_t tokens = 0;
};

// What came back for one request.
struct BenchAnswer {
  int64_t index = 0;
  BenchTime started;   // when it was due: a sender that is late does not flatter the server
  BenchTime finished;  // when the stream ended
  // Empty when the stream ended as it should; else a short kind ("UNAVAILABLE", "HTTP 404", ...).
  std::string error_kind, error;
  std::string finish_reason;  // "length", "stop", ...; empty when none came
  std::vector<TokenArrival> arrivals;
  // Whether the server says how many tokens each message brings. If not, each counts as one token,
  // and the total is the server's usage.
  bool exact_counts = true;
  std::optional<int64_t> prompt_tokens, completion_tokens, cached_tokens;  // the server's usage
  std::vector<uint32_t> token_ids;  // gRPC; HTTP has only text
  std::string text;

  int64_t ArrivedTokens() const {
    int64_t sum = 0;
    for (const TokenArrival& arrival : arrivals) sum += arrival.tokens;
    return sum;
  }
  // Tokens of the answer by the best knowledge.
  int64_t Tokens() const {
    return exact_counts ? ArrivedTokens() : completion_tokens.value_or(ArrivedTokens());
  }
};

// How every request of a run is asked.
struct AskOptions {
  std::string model;  // empty: the only one
  bool ignore_eos = true;
  double temperature = 0;
  int64_t top_k = 0;  // 0: all
  double top_p = 1;
  bool skip_text = false;     // gRPC: ask for token ids alone
  bool batch = false;         // gRPC: of batch priority
  std::string tenant;         // gRPC
  double timeout_s = 600;     // of one request
  int connections = 1;        // gRPC
  bool keep_alive = true;     // HTTP
  std::string extra_body;     // HTTP: a JSON object merged into each body
  bool keep_answers = false;  // keep token_ids and text (else counted only)
};

class BenchClient {
 public:
  virtual ~BenchClient() = default;
  // Begins a request; `due` is when it should have been sent.
  virtual void Send(const BenchRequest& request, BenchTime due) = 0;
  // Works until `until`, or until at least one answer is complete; appends the complete ones.
  virtual void Poll(BenchTime until, std::vector<BenchAnswer>* answers) = 0;
  // Cancels everything in flight; the answers still come out of Poll.
  virtual void CancelAll() = 0;
  // Tokens that have arrived so far, of unfinished answers too.
  virtual int64_t arrived_tokens() const = 0;
};

}  // namespace lapidary
