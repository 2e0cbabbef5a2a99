// Collectives of ranks that share memory: threads of one process, or processes that meet by name.
//
// A small sum takes one meeting and every rank adds everything; a large one goes through the window
// in chunks, each rank adding its part and then taking the others' (reduce-scatter, gather). Both
// add in rank order, so all ranks hold the same bytes whichever way was taken.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/comm/communicator.h"
#include "worker/comm/exchange.h"
#include "worker/comm/peer_watch.h"
#include "worker/comm/shm_segment.h"

namespace lapidary {
namespace {

// Up to here the second meeting of the large way costs more than adding size times as much.
constexpr int64_t kSmallFloats = 16 * 1024;
// The window, both halves of all ranks. A slot stays within a core's L2.
constexpr int64_t kWindowBytes = 4 << 20;
constexpr int64_t kMaxSlotBytes = 512 << 10;

int64_t SlotBytes(int size) {
  return std::min(kMaxSlotBytes, kWindowBytes / (2 * size)) / 4096 * 4096;
}

// out[i] = in[0][i] + in[1][i] + ..., in this order. out may be one of the inputs' memory only if
// it is not read by others; it is never here.
void SumInRankOrder(const std::vector<const float*>& in, int64_t count, float* __restrict out) {
  constexpr int64_t kBlock = 2048;  // stays in L1 while the ranks are added
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    float* __restrict o = out + begin;
    std::memcpy(o, in[0] + begin, static_cast<size_t>(n) * sizeof(float));
    for (size_t r = 1; r < in.size(); ++r) {
      const float* __restrict x = in[r] + begin;
      for (int64_t i = 0; i < n; ++i) o[i] += x[i];
    }
  }
}

class SharedMemoryCommunicator final : public Communicator {
 public:
  // `memory` keeps the exchange's memory mapped.
  SharedMemoryCommunicator(std::shared_ptr<void> memory, Exchange exchange, absl::Duration timeout)
      : memory_(std::move(memory)),
        exchange_(exchange),
        timeout_nanos_(absl::ToInt64Nanoseconds(timeout)) {}

  void WatchPeers(std::unique_ptr<PeerWatch> watch) { watch_ = std::move(watch); }

  RankId rank() const override { return RankId{exchange_.rank()}; }
  int size() const override { return exchange_.size(); }

  void AllReduceSum(float* data, int64_t count, Stream& stream) override {
    if (size() == 1 || count == 0) return;
    stream.Enqueue([this, data, count] {
      return count <= SmallFloats() ? SumSmall(data, count) : SumLarge(data, count);
    });
  }

  void AllGather(const void* send, int64_t bytes, void* recv, Stream& stream) override {
    stream.Enqueue([this, send, bytes, recv] {
      return Gather(static_cast<const uint8_t*>(send), bytes, static_cast<uint8_t*>(recv));
    });
  }

  void Barrier(Stream& stream) override {
    if (size() == 1) return;
    stream.Enqueue([this] { return Meet(); });
  }

  void Abort(const std::string& reason) override {
    exchange_.Abort(reason);
    aborted_ = true;
  }
  // Unlike Abort(), lets a meeting through that everyone had come to.
  void PeerExited(int rank, pid_t pid) {
    exchange_.Abort(absl::StrFormat("rank %d (process %d) died", rank, pid));
  }

  void set_operation_timeout(absl::Duration timeout) override {
    timeout_nanos_ = absl::ToInt64Nanoseconds(timeout);
  }

 private:
  absl::Status Meet() {
    if (aborted_) return exchange_.abort_status();
    return exchange_.Meet(absl::Nanoseconds(timeout_nanos_.load()));
  }
  int64_t slot_floats() const { return exchange_.slot_bytes() / int64_t{sizeof(float)}; }
  int64_t SmallFloats() const { return std::min(kSmallFloats, slot_floats()); }

  // Slots of all ranks in the phase just met, each from `offset` floats on.
  std::vector<const float*> Slots(int64_t offset) const {
    std::vector<const float*> slots(size());
    for (int r = 0; r < size(); ++r) {
      slots[r] = reinterpret_cast<const float*>(exchange_.Slot(r)) + offset;
    }
    return slots;
  }

  absl::Status SumSmall(float* data, int64_t count) {
    std::memcpy(exchange_.OwnSlot(), data, static_cast<size_t>(count) * sizeof(float));
    RETURN_IF_ERROR(Meet());
    SumInRankOrder(Slots(0), count, data);
    return absl::OkStatus();
  }

  absl::Status SumLarge(float* data, int64_t count) {
    for (int64_t begin = 0; begin < count; begin += slot_floats()) {
      float* const chunk = data + begin;
      const int64_t n = std::min(slot_floats(), count - begin);
      const auto part = [n, this](int r) { return n * r / size(); };
      std::memcpy(exchange_.OwnSlot(), chunk, static_cast<size_t>(n) * sizeof(float));
      RETURN_IF_ERROR(Meet());
      const int64_t own = part(exchange_.rank());
      SumInRankOrder(Slots(own), part(exchange_.rank() + 1) - own,
                     reinterpret_cast<float*>(exchange_.OwnSlot()));
      RETURN_IF_ERROR(Meet());
      for (int r = 0; r < size(); ++r) {
        std::memcpy(chunk + part(r), exchange_.Slot(r),
                    static_cast<size_t>(part(r + 1) - part(r)) * sizeof(float));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Gather(const uint8_t* send, int64_t bytes, uint8_t* recv) {
    uint8_t* const own = recv + exchange_.rank() * bytes;
    if (send != own) std::memmove(own, send, static_cast<size_t>(bytes));
    if (size() == 1) return absl::OkStatus();
    for (int64_t begin = 0; begin < bytes; begin += exchange_.slot_bytes()) {
      const size_t n = static_cast<size_t>(std::min(exchange_.slot_bytes(), bytes - begin));
      std::memcpy(exchange_.OwnSlot(), own + begin, n);
      RETURN_IF_ERROR(Meet());
      for (int r = 0; r < size(); ++r) {
        if (r == exchange_.rank()) continue;
        std::memcpy(recv + r * bytes + begin, exchange_.Slot(r), n);
      }
    }
    return absl::OkStatus();
  }

  const std::shared_ptr<void> memory_;
  Exchange exchange_;
  std::atomic<int64_t> timeout_nanos_;
  std::atomic<bool> aborted_{false};
  std::unique_ptr<PeerWatch> watch_;  // last: stopped first
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> CreateInprocCommunicators(int size) {
  const int64_t slot_bytes = SlotBytes(size);
  const size_t bytes = static_cast<size_t>(Exchange::Bytes(size, slot_bytes));
  constexpr std::align_val_t kAlignment{4096};
  const std::shared_ptr<void> memory(::operator new(bytes, kAlignment),
                                     [](void* p) { ::operator delete(p, kAlignment); });
  std::memset(memory.get(), 0, bytes);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r) {
    ranks.push_back(std::make_unique<SharedMemoryCommunicator>(
        memory, Exchange(memory.get(), r, size, slot_bytes), absl::Seconds(60)));
  }
  return ranks;
}

absl::StatusOr<std::unique_ptr<Communicator>> CreateShmCommunicator(const ShmCommOptions& options) {
  if (options.size < 1 || options.size > Exchange::kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "a group on one host has 1 to %d ranks, not %d", Exchange::kMaxRanks, options.size));
  }
  const int64_t slot_bytes = SlotBytes(options.size);
  ShmSegmentOptions segment_options;
  segment_options.name = options.name;
  segment_options.rank = options.rank.value;
  segment_options.size = options.size;
  segment_options.payload_bytes = Exchange::Bytes(options.size, slot_bytes);
  segment_options.connect_timeout = options.connect_timeout;
  ASSIGN_OR_RETURN(std::shared_ptr<ShmSegment> segment, ShmSegment::Meet(segment_options));
  const std::vector<pid_t> pids = segment->pids();
  const Exchange exchange(segment->payload(), options.rank.value, options.size, slot_bytes);
  auto comm =
      std::make_unique<SharedMemoryCommunicator>(segment, exchange, options.operation_timeout);
  SharedMemoryCommunicator* const raw = comm.get();
  ASSIGN_OR_RETURN(
      std::unique_ptr<PeerWatch> watch,
      PeerWatch::Start(pids, [raw](int rank, pid_t pid) { raw->PeerExited(rank, pid); }));
  comm->WatchPeers(std::move(watch));
  return std::unique_ptr<Communicator>(std::move(comm));
}

}  // namespace lapidary
