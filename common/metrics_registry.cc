#include "common/metrics_registry.h"

#include <dirent.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <ctime>
#include <fstream>
#include <sstream>

namespace lapidary {
namespace {

using Bounds = prometheus::Histogram::BucketBoundaries;

prometheus::Gauge& ProcessGauge(prometheus::Registry& registry, const char* name,
                                const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

// Fields of /proc/self/stat after the command name, which may hold spaces.
struct ProcessStat {
  double cpu_seconds = 0;
  double threads = 0;
  double start_ticks = 0;
  double virtual_bytes = 0;
  double resident_bytes = 0;
};

ProcessStat ReadProcessStat() {
  ProcessStat out;
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return out;
  std::istringstream fields(line.substr(name_end + 1));
  std::string field;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  for (int number = 3; fields >> field; ++number) {  // numbered as in proc(5)
    const double value = std::strtod(field.c_str(), nullptr);
    if (number == 14 || number == 15) out.cpu_seconds += value / ticks;
    if (number == 20) out.threads = value;
    if (number == 22) out.start_ticks = value / ticks;
    if (number == 23) out.virtual_bytes = value;
    if (number == 24) out.resident_bytes = value * static_cast<double>(sysconf(_SC_PAGESIZE));
  }
  return out;
}

// Seconds between the epoch and boot.
double BootTime() {
  timespec since_boot{}, now{};
  clock_gettime(CLOCK_BOOTTIME, &since_boot);
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<double>(now.tv_sec - since_boot.tv_sec) +
         1e-9 * static_cast<double>(now.tv_nsec - since_boot.tv_nsec);
}

int CountOpenFds() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 0;
  int count = -3;  // ".", "..", and the one opendir holds
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

}  // namespace

const Bounds& TimeToFirstTokenBounds() {
  static const Bounds bounds = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
  return bounds;
}

const Bounds& InterTokenBounds() {
  static const Bounds bounds = {.002, .004, .006, .008, .01, .015, .02, .025, .03,
                                .04,  .05,  .075, .1,   .15, .2,   .3,  .4,   .5,
                                .75,  1,    2.5,  5,    7.5, 10,   20,  40,   80};
  return bounds;
}

const Bounds& RequestTimeBounds() {
  static const Bounds bounds = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
  return bounds;
}

const Bounds& TokenCountBounds() {
  static const Bounds bounds = {1,    2,    5,    10,    20,    50,    100,    200,    500,
                                1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000, 500000};
  return bounds;
}

const Bounds& StepSecondsBounds() {
  static const Bounds bounds = {.0001, .0002, .0005, .001, .002, .005, .01, .02,
                                .05,   .1,    .2,    .5,   1,    2,    5,   10};
  return bounds;
}

const Bounds& StepTokensBounds() {
  static const Bounds bounds = {1,   2,   4,    8,    16,   32,   64,   128,
                                256, 512, 1024, 2048, 4096, 8192, 16384};
  return bounds;
}

void Observe(prometheus::Histogram& histogram, double value) {
  if (std::isfinite(value)) histogram.Observe(value);
}

MetricsRegistry::MetricsRegistry()
    : registry_(std::make_shared<prometheus::Registry>()),
      cpu_seconds_(prometheus::BuildCounter()
                       .Name("process_cpu_seconds_total")
                       .Help("User and system CPU time of this process.")
                       .Register(*registry_)
                       .Add({})),
      resident_bytes_(
          ProcessGauge(*registry_, "process_resident_memory_bytes", "Resident memory.")),
      virtual_bytes_(ProcessGauge(*registry_, "process_virtual_memory_bytes", "Virtual memory.")),
      open_fds_(ProcessGauge(*registry_, "process_open_fds", "Open file descriptors.")),
      max_fds_(ProcessGauge(*registry_, "process_max_fds", "Limit of open file descriptors.")),
      threads_(ProcessGauge(*registry_, "process_threads", "Threads.")),
      start_time_(ProcessGauge(*registry_, "process_start_time_seconds",
                               "Start of the process since the epoch.")) {}

void MetricsRegistry::UpdateProcessMetrics() {
  const ProcessStat stat = ReadProcessStat();
  absl::MutexLock lock(&mu_);
  if (stat.cpu_seconds > counted_cpu_seconds_) {
    cpu_seconds_.Increment(stat.cpu_seconds - counted_cpu_seconds_);
    counted_cpu_seconds_ = stat.cpu_seconds;
  }
  threads_.Set(stat.threads);
  start_time_.Set(BootTime() + stat.start_ticks);
  virtual_bytes_.Set(stat.virtual_bytes);
  resident_bytes_.Set(stat.resident_bytes);
  open_fds_.Set(CountOpenFds());
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) max_fds_.Set(static_cast<double>(limit.rlim_cur));
}

std::string MetricsRegistry::Text() {
  UpdateProcessMetrics();
  return prometheus::TextSerializer().Serialize(registry_->Collect());
}

}  // namespace lapidary
