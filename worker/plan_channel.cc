#include "worker/plan_channel.h"

#include <sys/types.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/check.h"
#include "common/status_macros.h"
#include "worker/comm/peer_watch.h"
#include "worker/comm/shared_wait.h"
#include "worker/comm/shm_segment.h"

namespace lapidary {
namespace {

constexpr int kMaxRanks = ShmSegment::kMaxRanks;

struct RingHeader {
  SharedAbort abort;
  SharedCounter written;          // bytes, modulo 2^32
  SharedCounter read[kMaxRanks];  // by each reader; entry 0 is not used
};

// A byte ring in memory that all ranks map. Zeroed memory is an empty ring.
class Ring {
 public:
  static int64_t Bytes(int64_t ring_bytes) { return int64_t{sizeof(RingHeader)} + ring_bytes; }

  Ring(void* memory, int64_t ring_bytes)
      : header_(*static_cast<RingHeader*>(memory)),
        data_(static_cast<uint8_t*>(memory) + sizeof(RingHeader)),
        capacity_(static_cast<uint32_t>(ring_bytes)) {
    LAPIDARY_CHECK(ring_bytes > 0 && ring_bytes <= (1 << 30) &&
                   (ring_bytes & (ring_bytes - 1)) == 0);
  }

  absl::Status Write(const uint8_t* bytes, size_t count, int size, absl::Duration timeout) {
    while (count > 0) {
      // Pieces of half a ring, so that readers copy while the writer goes on.
      const uint32_t n = static_cast<uint32_t>(std::min<size_t>(count, capacity_ / 2));
      const uint32_t at = header_.written.value.load(std::memory_order_relaxed);
      for (int r = 1; r < size; ++r) {
        switch (WaitReached(header_.read[r], at + n - capacity_, header_.abort, timeout)) {
          case WaitOutcome::kReached:
            break;
          case WaitOutcome::kAborted:
            return header_.abort.status();
          case WaitOutcome::kTimedOut: {
            const absl::Status late = absl::DeadlineExceededError(absl::StrFormat(
                "rank %d has not taken a plan for %s", r, absl::FormatDuration(timeout)));
            Abort(std::string(late.message()));
            return late;
          }
        }
      }
      if (header_.abort.aborted()) return header_.abort.status();
      const uint32_t offset = at & (capacity_ - 1);
      const uint32_t first = std::min(n, capacity_ - offset);
      std::memcpy(data_ + offset, bytes, first);
      std::memcpy(data_, bytes + first, n - first);
      header_.written.Advance(at + n);
      bytes += n;
      count -= n;
    }
    return absl::OkStatus();
  }

  absl::Status Read(int rank, uint8_t* bytes, size_t count) {
    while (count > 0) {
      const uint32_t n = static_cast<uint32_t>(std::min<size_t>(count, capacity_ / 2));
      const uint32_t at = header_.read[rank].value.load(std::memory_order_relaxed);
      if (WaitReached(header_.written, at + n, header_.abort, absl::InfiniteDuration()) ==
          WaitOutcome::kAborted) {
        return header_.abort.status();
      }
      const uint32_t offset = at & (capacity_ - 1);
      const uint32_t first = std::min(n, capacity_ - offset);
      std::memcpy(bytes, data_ + offset, first);
      std::memcpy(bytes + first, data_, n - first);
      header_.read[rank].Advance(at + n);
      bytes += n;
      count -= n;
    }
    return absl::OkStatus();
  }

  void Abort(const std::string& reason) {
    if (!header_.abort.Set(reason)) return;
    header_.written.WakeAll();
    for (SharedCounter& counter : header_.read) counter.WakeAll();
  }

  absl::Status status() const {
    return header_.abort.aborted() ? header_.abort.status() : absl::OkStatus();
  }

 private:
  RingHeader& header_;
  uint8_t* const data_;
  const uint32_t capacity_;
};

class RingSender final : public PlanSender {
 public:
  RingSender(std::shared_ptr<void> memory, Ring ring, int size, absl::Duration send_timeout)
      : memory_(std::move(memory)), ring_(ring), size_(size), send_timeout_(send_timeout) {}

  absl::Status Send(std::string_view message) override {
    if (size_ == 1) return absl::OkStatus();
    const uint64_t length = message.size();
    RETURN_IF_ERROR(ring_.Write(reinterpret_cast<const uint8_t*>(&length), sizeof length, size_,
                                send_timeout_));
    return ring_.Write(reinterpret_cast<const uint8_t*>(message.data()), message.size(), size_,
                       send_timeout_);
  }
  void Abort(const std::string& reason) override { ring_.Abort(reason); }
  absl::Status status() const override { return ring_.status(); }

  void Keep(std::unique_ptr<PeerWatch> watch) { watch_ = std::move(watch); }

 private:
  const std::shared_ptr<void> memory_;
  Ring ring_;
  const int size_;
  const absl::Duration send_timeout_;
  std::unique_ptr<PeerWatch> watch_;  // last: stopped before the memory goes
};

class RingReceiver final : public PlanReceiver {
 public:
  RingReceiver(std::shared_ptr<void> memory, Ring ring, int rank)
      : memory_(std::move(memory)), ring_(ring), rank_(rank) {}

  absl::StatusOr<std::string> Receive() override {
    uint64_t length = 0;
    RETURN_IF_ERROR(ring_.Read(rank_, reinterpret_cast<uint8_t*>(&length), sizeof length));
    std::string message(length, '\0');
    RETURN_IF_ERROR(ring_.Read(rank_, reinterpret_cast<uint8_t*>(message.data()), length));
    return message;
  }
  void Abort(const std::string& reason) override { ring_.Abort(reason); }

  void Keep(std::unique_ptr<PeerWatch> watch) { watch_ = std::move(watch); }

 private:
  const std::shared_ptr<void> memory_;
  Ring ring_;
  const int rank_;
  std::unique_ptr<PeerWatch> watch_;  // last: stopped before the memory goes
};

absl::StatusOr<std::shared_ptr<ShmSegment>> MeetForPlans(const PlanChannelOptions& options) {
  ShmSegmentOptions segment;
  segment.name = options.name;
  segment.rank = options.rank;
  segment.size = options.size;
  segment.payload_bytes = Ring::Bytes(options.ring_bytes);
  segment.connect_timeout = options.connect_timeout;
  return ShmSegment::Meet(segment);
}

absl::StatusOr<std::unique_ptr<PeerWatch>> WatchPeers(
    const std::vector<pid_t>& pids, Ring ring,
    const std::function<void(const std::string&)>& on_peer_exit) {
  return PeerWatch::Start(pids, [ring, on_peer_exit](int rank, pid_t pid) mutable {
    const std::string reason = absl::StrFormat("rank %d (process %d) died", rank, pid);
    ring.Abort(reason);
    if (on_peer_exit) on_peer_exit(reason);
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<PlanSender>> CreateShmPlanSender(const PlanChannelOptions& options) {
  LAPIDARY_CHECK(options.rank == 0);
  ASSIGN_OR_RETURN(std::shared_ptr<ShmSegment> segment, MeetForPlans(options));
  const Ring ring(segment->payload(), options.ring_bytes);
  const std::vector<pid_t> pids = segment->pids();
  auto sender = std::make_unique<RingSender>(segment, ring, options.size, options.send_timeout);
  ASSIGN_OR_RETURN(std::unique_ptr<PeerWatch> watch, WatchPeers(pids, ring, options.on_peer_exit));
  sender->Keep(std::move(watch));
  return std::unique_ptr<PlanSender>(std::move(sender));
}

absl::StatusOr<std::unique_ptr<PlanReceiver>> CreateShmPlanReceiver(
    const PlanChannelOptions& options) {
  LAPIDARY_CHECK(options.rank > 0);
  ASSIGN_OR_RETURN(std::shared_ptr<ShmSegment> segment, MeetForPlans(options));
  const Ring ring(segment->payload(), options.ring_bytes);
  // The leader alone: it notices the others' deaths itself and tells, whereas one of two followers
  // that have finished must not fail the other, which is still reading the leader's last words.
  std::vector<pid_t> pids = segment->pids();
  pids.resize(1);
  auto receiver = std::make_unique<RingReceiver>(segment, ring, options.rank);
  ASSIGN_OR_RETURN(std::unique_ptr<PeerWatch> watch, WatchPeers(pids, ring, options.on_peer_exit));
  receiver->Keep(std::move(watch));
  return std::unique_ptr<PlanReceiver>(std::move(receiver));
}

InprocPlanChannel CreateInprocPlanChannel(int size, int64_t ring_bytes,
                                          absl::Duration send_timeout) {
  constexpr std::align_val_t kAlignment{4096};
  const size_t bytes = static_cast<size_t>(Ring::Bytes(ring_bytes));
  const std::shared_ptr<void> memory(::operator new(bytes, kAlignment),
                                     [](void* p) { ::operator delete(p, kAlignment); });
  std::memset(memory.get(), 0, bytes);
  const Ring ring(memory.get(), ring_bytes);
  InprocPlanChannel channel;
  channel.sender = std::make_unique<RingSender>(memory, ring, size, send_timeout);
  for (int r = 1; r < size; ++r) {
    channel.receivers.push_back(std::make_unique<RingReceiver>(memory, ring, r));
  }
  return channel;
}

}  // namespace lapidary
