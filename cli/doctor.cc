// `lapidary doctor`: what this machine's GPUs, driver and libraries are, and, with --gpu, whether
// every kernel computes on them what it should.
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "nlohmann/json.hpp"
#include "worker/gpu_module.h"

namespace lapidary {
namespace {

// 13020 is CUDA 13.2.
std::string CudaVersion(int number) {
  return number == 0 ? "none" : absl::StrFormat("%d.%d", number / 1000, number % 1000 / 10);
}
// 22809 is NCCL 2.28.9.
std::string NcclVersion(int number) {
  if (number == 0) return "none";
  return absl::StrFormat("%d.%d.%d", number / 10000, number % 10000 / 100, number % 100);
}
// 130100 is cuBLASLt 13.1.0.
std::string CublasVersion(int64_t number) {
  if (number == 0) return "none";
  return absl::StrFormat("%d.%d.%d", number / 10000, number % 10000 / 100, number % 100);
}

double Gibibytes(int64_t bytes) { return static_cast<double>(bytes) / (int64_t{1} << 30); }

void PrintTable(const GpuReport& report) {
  std::printf(
      "GPU part   CUDA %s, cuBLASLt %s, NCCL %s\n", CudaVersion(report.runtime_version).c_str(),
      CublasVersion(report.cublaslt_version).c_str(), NcclVersion(report.nccl_version).c_str());
  std::printf("driver     for CUDA %s\n", CudaVersion(report.driver_version).c_str());
  for (const GpuInfo& gpu : report.gpus) {
    std::printf("GPU %-6d %s, sm_%d, %d multiprocessors, %.1f GiB (%.1f free), %s\n", gpu.index,
                gpu.name.c_str(), gpu.compute_capability, gpu.processors,
                Gibibytes(gpu.total_bytes), Gibibytes(gpu.free_bytes), gpu.pci.c_str());
    std::printf(
        "           %s\n",
        report.gpus.size() == 1 ? "alone"
        : gpu.peers.empty()
            ? "reaches no other GPU's memory: NCCL goes through the host"
            : absl::StrCat("reaches the memory of GPU ", absl::StrJoin(gpu.peers, ", ")).c_str());
    if (gpu.compute_capability < 80) {
      std::printf("           too old: compute capability 8.0 (Ampere) is the least\n");
    }
  }
}

void PrintJson(const GpuReport& report) {
  nlohmann::ordered_json json = {{"driver_version", report.driver_version},
                                 {"runtime_version", report.runtime_version},
                                 {"nccl_version", report.nccl_version},
                                 {"cublaslt_version", report.cublaslt_version},
                                 {"problem", report.problem},
                                 {"gpus", nlohmann::ordered_json::array()}};
  for (const GpuInfo& gpu : report.gpus) {
    json["gpus"].push_back({{"index", gpu.index},
                            {"name", gpu.name},
                            {"pci", gpu.pci},
                            {"compute_capability", gpu.compute_capability},
                            {"multiprocessors", gpu.processors},
                            {"total_bytes", gpu.total_bytes},
                            {"free_bytes", gpu.free_bytes},
                            {"peers", gpu.peers}});
  }
  std::printf("%s\n", json.dump(2).c_str());
}

// The tests of kernels and of the worker's parts, on the GPUs: 0 when all pass.
int RunConformance() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  int result = 0;
  for (const char* const name : {"gpu_conformance", "gpu_worker_conformance"}) {
    const std::string tests = (program.parent_path() / name).string();
    if (!std::filesystem::exists(tests, error)) {
      return Fail(absl::NotFoundError(absl::StrFormat(
          "%s is not there: it is built with the tests and a CUDA toolkit", tests)));
    }
    std::printf("\nrunning %s\n", tests.c_str());
    std::fflush(stdout);
    pid_t child = 0;
    const char* const argv[] = {tests.c_str(), nullptr};
    const int failed = posix_spawn(&child, tests.c_str(), nullptr, nullptr,
                                   const_cast<char* const*>(argv), environ);
    if (failed != 0) return Fail(absl::InternalError(absl::StrCat(tests, ": ", strerror(failed))));
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (WIFSIGNALED(status)) {
      return Fail(absl::InternalError(absl::StrCat(tests, ": ", strsignal(WTERMSIG(status)))));
    }
    if (WEXITSTATUS(status) != 0) result = WEXITSTATUS(status);
  }
  return result;
}

}  // namespace

int RunDoctor(const DoctorFlags& flags) {
  const absl::StatusOr<GpuModule*> module = OpenGpuModule(flags.cuda_library);
  if (!module.ok()) return Fail(module.status());
  const GpuReport report = (*module)->Report();
  if (flags.json) {
    PrintJson(report);
  } else {
    PrintTable(report);
  }
  if (report.gpus.empty()) {
    return Fail(absl::FailedPreconditionError(absl::StrCat("no GPU to use: ", report.problem)));
  }
  if (!flags.json) {
    std::printf("\n`lapidary serve MODEL` uses %s. `lapidary doctor --gpu` runs every kernel.\n",
                report.gpus.size() == 1 ? "it" : "all of them");
  }
  return flags.gpu ? RunConformance() : 0;
}

}  // namespace lapidary
