#include "tests/support/cuda/nccl_comm.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/support/cuda/cudart_stream.h"

namespace lapidary::standin {
namespace {

constexpr double kLookMs = 3;  // between two looks for lost ranks

}  // namespace

double NcclTimeoutSeconds() {
  static const double seconds = [] {
    const char* v = getenv("SIMT_NCCL_TIMEOUT_S");
    return v ? atof(v) : 120.0;
  }();
  return seconds;
}

Comm::Comm(int ranks, int rank, int device, bool blocking)
    : ranks_(ranks), rank_(rank), device_(device), blocking_(blocking) {}

Comm::~Comm() {
  if (waiter_.joinable()) waiter_.join();
}

ncclResult_t Comm::Join(const ncclUniqueId& id) {
  name_.assign(id.internal, strnlen(id.internal, sizeof id.internal));
  if (!file_.Open(name_.c_str())) {
    Fail(ncclSystemError, "there is no communicator of this id (" + name_ + ")");
    return ncclSystemError;
  }
  RankPart& own = segment().rank[rank_];
  if (own.state != RankState::kAbsent || !file_.Lock(rank_)) {
    Fail(ncclInvalidUsage, "rank " + std::to_string(rank_) + " has joined before");
    return ncclInvalidUsage;
  }
  own.ranks = static_cast<uint32_t>(ranks_);
  own.state = RankState::kJoined;
  return ncclSuccess;
}

ncclResult_t Comm::WaitForAll() {
  const double begin = NowMs();
  for (;;) {
    int joined = 0;
    for (int r = 0; r < ranks_; ++r) {
      const RankPart& part = segment().rank[r];
      if (part.state == RankState::kAbsent) continue;
      ++joined;
      if (part.ranks != static_cast<uint32_t>(ranks_)) {
        Fail(ncclInvalidArgument, "rank " + std::to_string(r) + " was told of " +
                                      std::to_string(part.ranks) + " ranks, this one of " +
                                      std::to_string(ranks_));
        return state_;
      }
    }
    if (joined == ranks_) break;
    if (aborted_) Fail(ncclInternalError, "aborted while it was being set up");
    if (aborted_ || FindLoss(true)) return state_;
    if (NowMs() - begin > 1000 * NcclTimeoutSeconds()) {
      Fail(ncclRemoteError, "only " + std::to_string(joined) + " of " + std::to_string(ranks_) +
                                " ranks have joined in time");
      return state_;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  UnlinkSegment(name_.c_str());  // all have it open; who comes second finds nothing
  return ncclSuccess;
}

void Comm::WaitForAllInBackground() {
  state_ = ncclInProgress;
  waiter_ = std::thread([this] {
    if (WaitForAll() == ncclSuccess) {
      ncclResult_t expected = ncclInProgress;
      state_.compare_exchange_strong(expected, ncclSuccess);
    }
  });
}

std::string Comm::last_error() {
  std::lock_guard lock(mu_);
  return last_error_;
}

void Comm::Fail(ncclResult_t error, const std::string& why) {
  std::lock_guard lock(mu_);
  if (state_ != ncclSuccess && state_ != ncclInProgress) return;
  last_error_ = why;
  state_ = error;
}

bool Comm::Gone(int rank, bool also_left) {
  switch (segment().rank[rank].state) {
    case RankState::kAbsent:
      return false;  // not yet there
    case RankState::kJoined:
      return !file_.IsHeld(rank);
    case RankState::kLeft:
      return also_left;
    case RankState::kAborted:
      return true;
  }
  return false;
}

int Comm::FindGone(bool also_left) {
  const double now = NowMs();
  std::atomic<double>& last_look_ms = last_look_ms_[also_left];
  if (now - last_look_ms < kLookMs) return -1;
  last_look_ms = now;
  for (int r = 0; r < ranks_; ++r) {
    if (r != rank_ && Gone(r, also_left)) return r;
  }
  return -1;
}

void Comm::Lose(int rank) { Fail(ncclRemoteError, "rank " + std::to_string(rank) + " is gone"); }

bool Comm::FindLoss(bool also_left) {
  const int gone = FindGone(also_left);
  if (gone >= 0) Lose(gone);
  return gone >= 0;
}

void Comm::Abort() {
  aborted_ = true;
  if (file_.get()) segment().rank[rank_].state = RankState::kAborted;
}

void Comm::Leave() {
  if (state_ == ncclInProgress) Abort();
  if (file_.get() && !aborted_) segment().rank[rank_].state = RankState::kLeft;
}

}  // namespace lapidary::standin
