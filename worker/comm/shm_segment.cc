#include "worker/comm/shm_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "worker/comm/peer_watch.h"
#include "worker/comm/shared_wait.h"

namespace lapidary {
namespace {

constexpr uint64_t kMagic = 0x3159444950414c4cULL;
constexpr int64_t kHeaderBytes = 4096;
constexpr absl::Duration kRetry = absl::Milliseconds(5);
// While it waits for the others, a rank looks this often whether those that came still live.
constexpr absl::Duration kLivenessSlice = absl::Milliseconds(200);

std::string Path(const std::string& name) { return "/lapidary-" + name; }

bool ValidName(const std::string& name) {
  return !name.empty() && name.size() <= 200 &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '-' || c == '_' || c == '.';
         });
}

}  // namespace

struct ShmSegment::Header {
  std::atomic<uint64_t> magic;  // written last by the creator
  int32_t size;
  int64_t payload_bytes;
  std::atomic<int32_t> pids[kMaxRanks];  // 0: not attached
  SharedCounter attached;                // how many; also the futex of those who wait
  SharedCounter complete;                // 1: everyone is here
  SharedAbort failed;                    // someone gave up
};

namespace {

struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

}  // namespace

ShmSegment::~ShmSegment() { munmap(memory_, static_cast<size_t>(bytes_)); }
ShmSegment::Header& ShmSegment::header() const { return *static_cast<Header*>(memory_); }
uint8_t* ShmSegment::payload() const { return static_cast<uint8_t*>(memory_) + kHeaderBytes; }

std::vector<pid_t> ShmSegment::pids() const {
  std::vector<pid_t> pids(size_);
  for (int r = 0; r < size_; ++r) pids[r] = header().pids[r].load();
  return pids;
}

absl::StatusOr<std::unique_ptr<ShmSegment>> ShmSegment::Meet(const ShmSegmentOptions& options) {
  static_assert(sizeof(Header) <= kHeaderBytes);
  if (!ValidName(options.name)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("'%s' is not a usable rendezvous name", options.name));
  }
  if (options.size < 1 || options.size > kMaxRanks || options.rank < 0 ||
      options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("rank %d of %d: a shared-memory group has 1 to %d ranks", options.rank,
                        options.size, kMaxRanks));
  }
  const absl::Time deadline = absl::Now() + options.connect_timeout;
  if (options.rank == 0) return Create(options, deadline);
  return Join(options, deadline);
}

absl::StatusOr<std::unique_ptr<ShmSegment>> ShmSegment::Create(const ShmSegmentOptions& options,
                                                               absl::Time deadline) {
  const std::string path = Path(options.name);
  const int64_t bytes = kHeaderBytes + options.payload_bytes;
  Descriptor file;
  while (true) {
    file.fd = shm_open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (file.fd >= 0) break;
    if (errno != EEXIST) {
      return absl::InternalError(
          absl::StrFormat("cannot create shared memory %s: %s", path, strerror(errno)));
    }
    // Left by a group that died while it met, or truly in use.
    Descriptor old;
    old.fd = shm_open(path.c_str(), O_RDWR | O_CLOEXEC, 0);
    if (old.fd >= 0) {
      struct stat info;
      if (fstat(old.fd, &info) == 0 && info.st_size >= kHeaderBytes) {
        void* memory = mmap(nullptr, kHeaderBytes, PROT_READ, MAP_SHARED, old.fd, 0);
        if (memory != MAP_FAILED) {
          const pid_t creator = static_cast<Header*>(memory)->pids[0].load();
          munmap(memory, kHeaderBytes);
          if (creator != 0 && ProcessAlive(creator)) {
            return absl::AlreadyExistsError(absl::StrFormat(
                "shared memory %s belongs to another group, led by process %d", path, creator));
          }
        }
      }
    }
    shm_unlink(path.c_str());
  }
  // Reserve now: writing to an overfull /dev/shm later would kill the process.
  if (const int error = posix_fallocate(file.fd, 0, bytes); error != 0) {
    shm_unlink(path.c_str());
    return absl::ResourceExhaustedError(absl::StrFormat(
        "/dev/shm has no room for %d bytes of %s: %s", bytes, path, strerror(error)));
  }
  void* memory =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0);
  if (memory == MAP_FAILED) {
    shm_unlink(path.c_str());
    return absl::InternalError(absl::StrFormat("cannot map %s: %s", path, strerror(errno)));
  }
  std::unique_ptr<ShmSegment> segment(new ShmSegment(memory, bytes, options.size));
  Header& header = segment->header();
  header.size = options.size;
  header.payload_bytes = options.payload_bytes;
  header.pids[0].store(getpid());
  header.magic.store(kMagic, std::memory_order_release);

  const absl::Status met = segment->AwaitAll(options, deadline);
  shm_unlink(path.c_str());
  if (!met.ok()) {
    header.failed.Set(std::string(met.message()));
    header.complete.WakeAll();
    return met;
  }
  header.complete.Advance(1);
  return segment;
}

// Rank 0 counts the others.
absl::Status ShmSegment::AwaitAll(const ShmSegmentOptions& options, absl::Time deadline) {
  Header& h = header();
  while (true) {
    const absl::Duration left = deadline - absl::Now();
    std::vector<int> missing;
    for (int r = 0; r < size_; ++r) {
      const pid_t pid = h.pids[r].load();
      if (pid == 0) {
        missing.push_back(r);
      } else if (pid != getpid() && !ProcessAlive(pid)) {
        return absl::UnavailableError(absl::StrFormat(
            "rank %d (process %d) died while group '%s' was meeting", r, pid, options.name));
      }
    }
    if (missing.empty()) return absl::OkStatus();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(absl::StrFormat(
          "rank %s of %d of group '%s' did not appear within %s", absl::StrJoin(missing, ", "),
          size_, options.name, absl::FormatDuration(options.connect_timeout)));
    }
    const uint32_t here = h.attached.value.load();
    bool all_but_listed = static_cast<int>(here) + 1 + static_cast<int>(missing.size()) > size_;
    if (all_but_listed) continue;  // one attached between the two looks
    WaitReached(h.attached, here + 1, h.failed, std::min(left, kLivenessSlice));
  }
}

absl::StatusOr<std::unique_ptr<ShmSegment>> ShmSegment::Join(const ShmSegmentOptions& options,
                                                             absl::Time deadline) {
  const std::string path = Path(options.name);
  const int64_t bytes = kHeaderBytes + options.payload_bytes;
  std::unique_ptr<ShmSegment> segment;
  while (segment == nullptr) {
    Descriptor file;
    file.fd = shm_open(path.c_str(), O_RDWR | O_CLOEXEC, 0);
    struct stat info;
    if (file.fd >= 0 && fstat(file.fd, &info) == 0 && info.st_size >= kHeaderBytes) {
      void* memory = mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ | PROT_WRITE,
                          MAP_SHARED, file.fd, 0);
      if (memory == MAP_FAILED) {
        return absl::InternalError(absl::StrFormat("cannot map %s: %s", path, strerror(errno)));
      }
      std::unique_ptr<ShmSegment> found(new ShmSegment(memory, info.st_size, options.size));
      const Header& header = found->header();
      if (header.magic.load(std::memory_order_acquire) == kMagic &&
          ProcessAlive(header.pids[0].load())) {
        if (header.size != options.size || info.st_size != bytes) {
          return absl::FailedPreconditionError(absl::StrFormat(
              "rank %d expects %d ranks and %d bytes in group '%s', rank 0 made %d and %d",
              options.rank, options.size, bytes, options.name, header.size, int64_t{info.st_size}));
        }
        segment = std::move(found);
        break;
      }
    } else if (file.fd < 0 && errno != ENOENT) {
      return absl::InternalError(
          absl::StrFormat("cannot open shared memory %s: %s", path, strerror(errno)));
    }
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrFormat("rank 0 of group '%s' did not appear within %s", options.name,
                          absl::FormatDuration(options.connect_timeout)));
    }
    absl::SleepFor(kRetry);
  }

  Header& header = segment->header();
  int32_t nobody = 0;
  if (!header.pids[options.rank].compare_exchange_strong(nobody, getpid())) {
    return absl::AlreadyExistsError(absl::StrFormat("rank %d of group '%s' is process %d already",
                                                    options.rank, options.name, nobody));
  }
  header.attached.value.fetch_add(1);
  header.attached.WakeAll();
  while (true) {
    switch (WaitReached(header.complete, 1, header.failed, kLivenessSlice)) {
      case WaitOutcome::kReached:
        return segment;
      case WaitOutcome::kAborted:
        return header.failed.status();
      case WaitOutcome::kTimedOut:
        break;
    }
    if (!ProcessAlive(header.pids[0].load())) {
      shm_unlink(path.c_str());
      return absl::UnavailableError(
          absl::StrFormat("rank 0 (process %d) died while group '%s' was meeting",
                          header.pids[0].load(), options.name));
    }
    // Rank 0 keeps the time; this is for one that stands still.
    if (absl::Now() >= deadline + absl::Seconds(5)) {
      return absl::DeadlineExceededError(absl::StrFormat(
          "rank 0 of group '%s' stands still while the group is meeting", options.name));
    }
  }
}

}  // namespace lapidary
