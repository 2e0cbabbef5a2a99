// The memory that the ranks of one communicator share, in POSIX shared memory. It has a name only
// until all have joined, so that nothing stays behind.
//
// A rank holds a lock on its own byte of the file for as long as it lives: its death, even as a
// zombie, frees it, and the others see that.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace lapidary::standin {

inline constexpr int kMostRanks = 16;
inline constexpr size_t kSlotBytes = 256 << 10;
inline constexpr size_t kBoxBytes = 64 << 10;

// What a rank believes the collective to be; the ranks compare.
struct Collective {
  uint32_t kind = 0, type = 0, op = 0, root = 0;
  uint64_t count = 0;
  bool operator==(const Collective&) const = default;
};

enum class RankState : uint32_t { kAbsent, kJoined, kLeft, kAborted };

struct alignas(64) RankPart {
  std::atomic<RankState> state;
  std::atomic<uint32_t> ranks;     // how many it was told there are
  std::atomic<uint64_t> produced;  // chunks put into its slot
  std::atomic<uint64_t> consumed;  // chunks of all slots read
  Collective collective;           // of the chunk last produced
  alignas(64) unsigned char slot[kSlotBytes];
};

// From one rank to another.
struct alignas(64) Mailbox {
  std::atomic<uint32_t> full;  // bytes; 0: empty
  uint32_t total_low;          // of the whole message, for a check
  alignas(64) unsigned char data[kBoxBytes];
};

struct Segment {
  RankPart rank[kMostRanks];
  Mailbox box[kMostRanks][kMostRanks];  // [from][to]
};

// A mapped segment and the lock of one rank.
class SegmentFile {
 public:
  ~SegmentFile();
  SegmentFile() = default;
  SegmentFile(const SegmentFile&) = delete;
  SegmentFile& operator=(const SegmentFile&) = delete;

  // False, with errno: there is no such segment.
  bool Open(const char* name);
  // Takes the rank's lock; false: somebody has it.
  bool Lock(int rank);
  // Whether somebody holds the rank's lock.
  bool IsHeld(int rank) const;
  Segment* get() const { return segment_; }

 private:
  int fd_ = -1;
  Segment* segment_ = nullptr;
};

// Makes an empty segment; its name goes into `name`.
bool CreateSegment(char* name, size_t size);
void UnlinkSegment(const char* name);

}  // namespace lapidary::standin
