#include "tests/support/cuda/nccl_work.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>

#include "tests/support/cuda/cudart_stream.h"
#include "tests/support/cuda/nccl_reduce.h"

namespace lapidary::standin {
namespace {

constexpr int kSpins = 50;  // before others on this device get their turn

// What all operations have in common: aborts, lost ranks, time.
class NcclWork : public Work {
 public:
  explicit NcclWork(std::shared_ptr<Comm> comm) : comm_(std::move(comm)) { moved_ms_ = NowMs(); }

  bool Run() final {
    // Looked for first: what a rank gave before it went is taken, if it is all that was waited for.
    const int gone = comm_->FindGone(true);
    for (int spin = 0; spin < kSpins; ++spin) {
      if (comm_->aborted()) return true;  // what it would have written is undefined
      if (Advance()) {
        moved_ms_ = NowMs();
        spin = 0;
        if (finished_) return true;
      }
      if (broken_) return true;
      sched_yield();
    }
    // A lost rank is told by ncclCommGetAsyncError; the operation hangs, as it does on a GPU.
    if (gone >= 0) comm_->Lose(gone);
    if (NowMs() - moved_ms_ > 1000 * NcclTimeoutSeconds()) {
      Break(ncclRemoteError, "nobody answers: SIMT_NCCL_TIMEOUT_S is over");
    }
    return broken_;
  }

 protected:
  // One step; false if it must wait. Sets finished_ at the end.
  virtual bool Advance() = 0;

  void Break(ncclResult_t error, const std::string& why) {
    fprintf(stderr, "[simt] NCCL, rank %d of %d: %s\n", comm_->rank(), comm_->ranks(), why.c_str());
    comm_->Fail(error, why);
    comm_->Abort();
    FailDevice(cudaErrorLaunchFailure);
    broken_ = true;
  }

  const std::shared_ptr<Comm> comm_;
  bool finished_ = false, broken_ = false;

 private:
  double moved_ms_;
};

// Chunk by chunk: every rank puts its part into its slot, waits for all, takes what it needs.
class CollectiveWork : public NcclWork {
 public:
  explicit CollectiveWork(const CollectiveCall& call)
      : NcclWork(call.comm),
        call_(call),
        element_(NcclTypeBytes(call.type)),
        total_(call.kind == CollectiveKind::kReduceScatter
                   ? call.count * static_cast<size_t>(call.comm->ranks())
                   : call.count) {}

 private:
  bool Advance() override {
    Segment& segment = comm_->segment();
    RankPart& own = segment.rank[comm_->rank()];
    const uint64_t chunk = comm_->chunks;
    const size_t count = std::min(kSlotBytes / element_, total_ - done_);
    if (!produced_) {
      if (!All([&](const RankPart& r) { return r.consumed >= chunk; })) return false;
      if (Gives()) {
        memcpy(own.slot, static_cast<const unsigned char*>(call_.from) + done_ * element_,
               count * element_);
      }
      own.collective = {static_cast<uint32_t>(call_.kind), static_cast<uint32_t>(call_.type),
                        static_cast<uint32_t>(call_.op), static_cast<uint32_t>(call_.root),
                        call_.count};
      own.produced = chunk + 1;
      produced_ = true;
      return true;
    }
    if (!All([&](const RankPart& r) { return r.produced > chunk; })) return false;
    for (int r = 0; r < comm_->ranks(); ++r) {
      if (segment.rank[r].collective == own.collective) continue;
      const Collective& other = segment.rank[r].collective;
      Break(ncclInvalidUsage,
            std::string("this rank calls ") + NameOf(call_.kind) + " of " +
                std::to_string(call_.count) + " elements, rank " + std::to_string(r) + " calls " +
                NameOf(static_cast<CollectiveKind>(other.kind)) + " of " +
                std::to_string(other.count) + " (or another type, operation or root)");
      return false;
    }
    Take(segment, count);
    own.consumed = chunk + 1;
    ++comm_->chunks;
    produced_ = false;
    done_ += count;
    finished_ = done_ == total_;
    return true;
  }

  template <class Condition>
  bool All(Condition condition) const {
    for (int r = 0; r < comm_->ranks(); ++r) {
      if (!condition(comm_->segment().rank[r])) return false;
    }
    return true;
  }

  bool Gives() const {
    return call_.kind != CollectiveKind::kBroadcast || comm_->rank() == call_.root;
  }

  void Write(size_t element, const void* from, size_t count) {
    unsigned char* to = static_cast<unsigned char*>(call_.to) + element * element_;
    memcpy(to, from, count * element_);
    NoteDeviceWrite(to, count * element_);
  }

  // Elements [done_, done_ + count) of the slots.
  void Take(const Segment& segment, size_t count) {
    switch (call_.kind) {
      case CollectiveKind::kBroadcast:
        Write(done_, segment.rank[call_.root].slot, count);
        return;
      case CollectiveKind::kAllGather:
        for (int r = 0; r < comm_->ranks(); ++r) {
          Write(static_cast<size_t>(r) * call_.count + done_, segment.rank[r].slot, count);
        }
        return;
      case CollectiveKind::kReduce:
        if (comm_->rank() != call_.root) return;
        Sum(segment, 0, count);
        Write(done_, sum_.data(), count);
        return;
      case CollectiveKind::kAllReduce:
        Sum(segment, 0, count);
        Write(done_, sum_.data(), count);
        return;
      case CollectiveKind::kReduceScatter: {
        const size_t first = static_cast<size_t>(comm_->rank()) * call_.count;
        const size_t begin = std::max(first, done_);
        const size_t end = std::min(first + call_.count, done_ + count);
        if (begin >= end) return;
        Sum(segment, begin - done_, end - begin);
        Write(begin - first, sum_.data(), end - begin);
        return;
      }
    }
  }

  // In the order of ranks, the same everywhere. (The real library promises no order.)
  void Sum(const Segment& segment, size_t first, size_t count) {
    const size_t offset = first * element_;
    sum_.assign(segment.rank[0].slot + offset, segment.rank[0].slot + offset + count * element_);
    for (int r = 1; r < comm_->ranks(); ++r) {
      NcclReduceInto(call_.type, call_.op, sum_.data(), segment.rank[r].slot + offset, count);
    }
    if (call_.op == ncclAvg) NcclDivide(call_.type, sum_.data(), count, comm_->ranks());
  }

  const CollectiveCall call_;
  const size_t element_;  // bytes
  const size_t total_;    // elements that each rank gives
  size_t done_ = 0;
  bool produced_ = false;  // the present chunk
  std::vector<unsigned char> sum_;
};

class MessagesWork : public NcclWork {
 public:
  MessagesWork(std::shared_ptr<Comm> comm, std::vector<Message> messages)
      : NcclWork(std::move(comm)), messages_(std::move(messages)), done_(messages_.size()) {}

 private:
  bool Advance() override {
    bool moved = false;
    finished_ = true;
    for (size_t i = 0; i < messages_.size(); ++i) {
      const Message& m = messages_[i];
      if (done_[i] == m.bytes) continue;
      // Messages between two ranks keep their order.
      if (!EarlierSame(i)) moved |= Step(m, &done_[i]);
      finished_ &= done_[i] == m.bytes;
    }
    return moved || finished_;
  }

  bool EarlierSame(size_t i) const {
    for (size_t j = 0; j < i; ++j) {
      if (messages_[j].send == messages_[i].send && messages_[j].peer == messages_[i].peer &&
          done_[j] != messages_[j].bytes) {
        return true;
      }
    }
    return false;
  }

  bool Step(const Message& m, size_t* done) {
    Segment& segment = comm_->segment();
    Mailbox& box = m.send ? segment.box[comm_->rank()][m.peer] : segment.box[m.peer][comm_->rank()];
    const uint32_t full = box.full.load(std::memory_order_acquire);
    if (m.send == (full != 0)) return false;
    if (m.send) {
      const size_t bytes = std::min(kBoxBytes, m.bytes - *done);
      memcpy(box.data, m.data + *done, bytes);
      box.total_low = static_cast<uint32_t>(m.bytes);
      *done += bytes;
      box.full.store(static_cast<uint32_t>(bytes), std::memory_order_release);
      return true;
    }
    if (box.total_low != static_cast<uint32_t>(m.bytes)) {
      Break(ncclInvalidUsage, "rank " + std::to_string(m.peer) + " sends " +
                                  std::to_string(box.total_low) + " bytes, this rank expects " +
                                  std::to_string(m.bytes));
      return false;
    }
    memcpy(m.data + *done, box.data, full);
    NoteDeviceWrite(m.data + *done, full);
    *done += full;
    box.full.store(0, std::memory_order_release);
    return true;
  }

  const std::vector<Message> messages_;
  std::vector<size_t> done_;  // bytes
};

}  // namespace

const char* NameOf(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::kAllReduce:
      return "AllReduce";
    case CollectiveKind::kReduce:
      return "Reduce";
    case CollectiveKind::kBroadcast:
      return "Broadcast";
    case CollectiveKind::kAllGather:
      return "AllGather";
    case CollectiveKind::kReduceScatter:
      return "ReduceScatter";
  }
  return "another collective";
}

WorkFactory MakeCollective(CollectiveCall call) {
  return [call = std::move(call)] { return std::make_unique<CollectiveWork>(call); };
}

WorkFactory MakeMessages(std::shared_ptr<Comm> comm, std::vector<Message> messages) {
  return [comm = std::move(comm), messages = std::move(messages)] {
    return std::make_unique<MessagesWork>(comm, messages);
  };
}

}  // namespace lapidary::standin
