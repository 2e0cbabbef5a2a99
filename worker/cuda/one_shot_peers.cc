#include "worker/cuda/one_shot_peers.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_status.h"

namespace lapidary {
namespace {

constexpr size_t kProblemBytes = 160;

template <size_t kBytes>
void CopyText(const std::string& text, char (&to)[kBytes]) {
  std::memcpy(to, text.data(), std::min(text.size(), kBytes - 1));
}

// The same for all processes of a running machine.
std::string MachineId() {
  std::string id;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> id;
  return id;
}

// Whether the current GPU reaches the memory of the one with this bus id.
absl::Status CheckReach(const char* pci) {
  int own = 0, other = 0, reaches = 0;
  RETURN_IF_CUDA_ERROR("the current GPU", cudaGetDevice(&own));
  if (cudaDeviceGetByPCIBusId(&other, pci) != cudaSuccess) {
    (void)cudaGetLastError();
    return absl::FailedPreconditionError(
        absl::StrFormat("GPU %s is hidden from this process (CUDA_VISIBLE_DEVICES)", pci));
  }
  if (other == own) return absl::OkStatus();
  RETURN_IF_CUDA_ERROR("asking for peer access", cudaDeviceCanAccessPeer(&reaches, own, other));
  if (reaches != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("GPU %d does not reach the memory of GPU %d", own, other));
}

}  // namespace

// What a rank tells the others. Not text: all ranks are of one build.
struct OneShotPeers::Introduction {
  cudaIpcMemHandle_t mailbox;
  char machine[40];
  char pci[24];
  char problem[kProblemBytes];  // empty: none
};

OneShotPeers::OneShotPeers(RankId rank, int size, absl::Duration patience)
    : rank_(rank), patience_(patience) {
  params_.rank = rank.value;
  params_.size = size;
  params_.patience_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(patience));
}

absl::StatusOr<std::unique_ptr<OneShotPeers>> OneShotPeers::Create(RankId rank, int size,
                                                                   absl::Duration patience,
                                                                   const Gather& gather) {
  if (size > kOneShotRanks) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%d ranks, %d are the most", size, kOneShotRanks));
  }
  std::unique_ptr<OneShotPeers> peers(new OneShotPeers(rank, size, patience));
  // Whoever finds a problem says so to all: they sum in one way.
  const auto text_of = [rank](const absl::Status& status) {
    return status.ok() ? "" : absl::StrFormat("rank %d: %s", rank.value, status.message());
  };
  Introduction own{};
  CopyText(text_of(peers->MakeOwn(&own)), own.problem);
  ASSIGN_OR_RETURN(const std::string all,
                   gather(std::string(reinterpret_cast<const char*>(&own), sizeof own)));
  char problem[kProblemBytes] = {};
  CopyText(text_of(peers->OpenOthers(all)), problem);
  ASSIGN_OR_RETURN(const std::string problems, gather(std::string(problem, sizeof problem)));
  for (int r = 0; r < size; ++r) {
    const std::string text = problems.c_str() + r * kProblemBytes;
    if (!text.empty()) return absl::FailedPreconditionError(text);
  }
  return absl::StatusOr<std::unique_ptr<OneShotPeers>>(std::move(peers));
}

absl::Status OneShotPeers::MakeOwn(Introduction* own) {
  int device = 0;
  RETURN_IF_CUDA_ERROR("the current GPU", cudaGetDevice(&device));
  RETURN_IF_CUDA_ERROR("asking the GPU", cudaDeviceGetPCIBusId(own->pci, sizeof own->pci, device));
  CopyText(MachineId(), own->machine);
  ASSIGN_OR_RETURN(control_,
                   PinnedBuffer::Allocate(sizeof(OneShotControl), "words of one-shot sums"));
  std::memset(control_.data(), 0, sizeof(OneShotControl));
  params_.control = control_.device_data<OneShotControl>();
  void* mailbox = nullptr;
  RETURN_IF_CUDA_ERROR("a mailbox", cudaMalloc(&mailbox, sizeof(OneShotMailbox)));
  params_.mailbox[rank_.value] = static_cast<OneShotMailbox*>(mailbox);
  RETURN_IF_CUDA_ERROR("a mailbox", cudaMemset(mailbox, 0, sizeof(OneShotMailbox)));
  RETURN_IF_CUDA_ERROR("a mailbox", cudaDeviceSynchronize());  // before others hear of it
  return CudaError("offering a mailbox", cudaIpcGetMemHandle(&own->mailbox, mailbox));
}

absl::Status OneShotPeers::OpenOthers(const std::string& all) {
  std::vector<Introduction> others(static_cast<size_t>(params_.size));
  if (all.size() != others.size() * sizeof(Introduction)) {
    return absl::InternalError("introductions of another size");
  }
  std::memcpy(others.data(), all.data(), all.size());
  const Introduction& own = others[static_cast<size_t>(rank_.value)];
  for (int r = 0; r < params_.size; ++r) {
    if (r == rank_.value) continue;
    const Introduction& other = others[static_cast<size_t>(r)];
    if (other.problem[0] != '\0') return absl::FailedPreconditionError(other.problem);
    if (std::strcmp(other.machine, own.machine) != 0) {
      return absl::FailedPreconditionError(absl::StrFormat("rank %d is on another machine", r));
    }
    RETURN_IF_ERROR(CheckReach(other.pci));
    void* mapped = nullptr;
    const cudaError_t error =
        cudaIpcOpenMemHandle(&mapped, other.mailbox, cudaIpcMemLazyEnablePeerAccess);
    (void)cudaGetLastError();
    RETURN_IF_CUDA_ERROR(absl::StrFormat("opening the mailbox of rank %d", r), error);
    params_.mailbox[r] = static_cast<OneShotMailbox*>(mapped);
  }
  return absl::OkStatus();
}

OneShotPeers::~OneShotPeers() {
  CloseOthers();
  // Somebody who was lost may still map it: then it goes with the process.
  if (all_have_closed_) (void)cudaFree(params_.mailbox[rank_.value]);
}

void OneShotPeers::CloseOthers() {
  for (int r = 0; r < params_.size; ++r) {
    if (r == rank_.value || params_.mailbox[r] == nullptr) continue;
    (void)cudaIpcCloseMemHandle(std::exchange(params_.mailbox[r], nullptr));
  }
}

void OneShotPeers::Sum(void* data, int64_t count, bool bf16, CudaStream& stream) {
  OneShotParams p = params_;
  p.data = data;
  p.count = count;
  p.bf16 = bf16;
  stream.Check("one-shot all-reduce", LaunchOneShotAllReduce(p, stream.raw()));
}

void OneShotPeers::Stop() {
  std::atomic_ref<uint32_t>(control_.data<OneShotControl>()->stop).store(1);
}

absl::Status OneShotPeers::Failed() const {
  const uint32_t silent = std::atomic_ref<uint32_t>(control_.data<OneShotControl>()->silent).load();
  if (silent == 0) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrFormat("one-shot all-reduce: rank %d has not answered for %s", silent - 1,
                      absl::FormatDuration(patience_)));
}

}  // namespace lapidary
