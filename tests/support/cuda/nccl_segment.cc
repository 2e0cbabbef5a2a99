#include "tests/support/cuda/nccl_segment.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

namespace lapidary::standin {
namespace {

constexpr char kPrefix[] = "lapidary_nccl_";

// Segments of this process that still have a name.
struct Named {
  std::mutex mu;
  std::set<std::string> names;
};
Named& AllNamed() {
  static Named* named = [] {
    atexit([] {
      std::lock_guard lock(AllNamed().mu);
      for (const std::string& name : AllNamed().names) shm_unlink(name.c_str());
    });
    return new Named;
  }();
  return *named;
}

// What processes left behind that were killed before all ranks had joined.
void UnlinkOrphans() {
  DIR* directory = opendir("/dev/shm");
  if (!directory) return;
  while (const dirent* entry = readdir(directory)) {
    int pid = 0;
    if (strncmp(entry->d_name, kPrefix, sizeof kPrefix - 1) != 0 ||
        sscanf(entry->d_name + sizeof kPrefix - 1, "%d", &pid) != 1) {
      continue;
    }
    if (kill(pid, 0) != 0 && errno == ESRCH) {
      shm_unlink((std::string("/") + entry->d_name).c_str());
    }
  }
  closedir(directory);
}

struct flock ByteOf(int rank, short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

}  // namespace

SegmentFile::~SegmentFile() {
  if (segment_) munmap(segment_, sizeof(Segment));
  if (fd_ >= 0) close(fd_);  // and with it the lock
}

bool SegmentFile::Open(const char* name) {
  fd_ = shm_open(name, O_RDWR | O_CLOEXEC, 0600);
  if (fd_ < 0) return false;
  void* p = mmap(nullptr, sizeof(Segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (p == MAP_FAILED) return false;
  segment_ = static_cast<Segment*>(p);
  return true;
}

bool SegmentFile::Lock(int rank) {
  struct flock lock = ByteOf(rank, F_WRLCK);
  return fcntl(fd_, F_OFD_SETLK, &lock) == 0;
}

bool SegmentFile::IsHeld(int rank) const {
  struct flock lock = ByteOf(rank, F_WRLCK);
  return fcntl(fd_, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

bool CreateSegment(char* name, size_t size) {
  static std::atomic<int> count{0};
  UnlinkOrphans();
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  snprintf(name, size, "/%s%d_%d_%llx", kPrefix, getpid(), count++,
           static_cast<unsigned long long>(now));
  const int fd = shm_open(name, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  const bool sized = ftruncate(fd, sizeof(Segment)) == 0;  // zeros
  close(fd);
  std::lock_guard lock(AllNamed().mu);
  AllNamed().names.insert(name);
  return sized;
}

void UnlinkSegment(const char* name) {
  shm_unlink(name);
  std::lock_guard lock(AllNamed().mu);
  AllNamed().names.erase(name);
}

}  // namespace lapidary::standin
