#include "worker/cuda/nccl_communicator.h"

#include <cuda_runtime_api.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/status_macros.h"
#include "worker/cuda/cuda_memory.h"
#include "worker/cuda/cuda_status.h"
#include "worker/cuda/cuda_stream.h"

namespace lapidary {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(1);
constexpr absl::Duration kWatchInterval = absl::Milliseconds(100);
constexpr absl::Duration kFinishTimeout = absl::Seconds(2);

cudaStream_t Raw(Stream& stream) { return static_cast<CudaStream&>(stream).raw(); }

}  // namespace

absl::StatusOr<std::string> NewNcclId() {
  ncclUniqueId id;
  if (const ncclResult_t made = ncclGetUniqueId(&id); made != ncclSuccess) {
    return NcclError("making a rendezvous", made, nullptr);
  }
  return std::string(id.internal, sizeof id.internal);
}

absl::Status NcclError(std::string_view operation, ncclResult_t result, ncclComm_t comm) {
  if (result == ncclSuccess) return absl::OkStatus();
  const char* const detail = ncclGetLastError(comm);
  const std::string message = absl::StrFormat(
      "%s: NCCL says %s%s%s", operation, ncclGetErrorString(result),
      detail != nullptr && *detail != '\0' ? ": " : "", detail != nullptr ? detail : "");
  // A peer or the way to it is gone; the rest is ours, or the device's.
  if (result == ncclRemoteError || result == ncclSystemError) {
    return absl::UnavailableError(message);
  }
  return absl::InternalError(message);
}

absl::StatusOr<std::unique_ptr<NcclCommunicator>> NcclCommunicator::Create(
    const NcclOptions& options) {
  std::unique_ptr<NcclCommunicator> comm(new NcclCommunicator(options));
  RETURN_IF_ERROR(comm->Init());
  return comm;
}

absl::Status NcclCommunicator::Init() {
  ncclUniqueId id;
  if (options_.id.size() != sizeof id.internal) {
    return absl::InternalError(absl::StrFormat("a NCCL rendezvous of %d bytes, %d are expected",
                                               options_.id.size(), sizeof id.internal));
  }
  std::memcpy(id.internal, options_.id.data(), sizeof id.internal);
  RETURN_IF_CUDA_ERROR("memory for barriers", cudaMalloc(&barrier_word_, sizeof(float)));
  RETURN_IF_CUDA_ERROR("memory for barriers", cudaMemset(barrier_word_, 0, sizeof(float)));
  RETURN_IF_CUDA_ERROR("memory for barriers",
                       cudaStreamSynchronize(nullptr));  // others do not wait for it
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  {
    absl::MutexLock lock(&mu_);
    const ncclResult_t begun =
        ncclCommInitRankConfig(&comm_, options_.size, id, options_.rank.value, &config);
    RETURN_IF_ERROR(
        Settle("meeting the other GPUs", begun, absl::Now() + options_.connect_timeout));
    met_ = true;
  }
  watch_ = std::thread([this] { Watch(); });
  return options_.one_shot && options_.size > 1 ? MeetPeers() : absl::OkStatus();
}

absl::Status NcclCommunicator::MeetPeers() {
  auto peers = OneShotPeers::Create(options_.rank, options_.size, options_.one_shot_patience,
                                    [this](const std::string& own) { return GatherOnHost(own); });
  const bool cannot = absl::IsFailedPrecondition(peers.status());
  if (!peers.ok() && !cannot) return peers.status();
  if (options_.warn) {
    options_.warn(
        cannot ? absl::StrCat("no one-shot all-reduce here, NCCL sums: ", peers.status().message())
               : "one-shot all-reduce is on; it is unproven on hardware");
  }
  absl::MutexLock lock(&mu_);
  if (!cannot) one_shot_ = *std::move(peers);
  return end_;
}

absl::StatusOr<std::string> NcclCommunicator::GatherOnHost(const std::string& own) {
  const auto bytes = static_cast<int64_t>(own.size());
  ASSIGN_OR_RETURN(const auto stream, CudaStream::Create());
  ASSIGN_OR_RETURN(const DeviceBuffer all, DeviceBuffer::Allocate(size() * bytes, "a rendezvous"));
  uint8_t* const part = all.data() + rank().value * bytes;
  RETURN_IF_CUDA_ERROR("a rendezvous", cudaMemcpyAsync(part, own.data(), own.size(),
                                                       cudaMemcpyHostToDevice, stream->raw()));
  AllGather(part, bytes, all.data(), *stream);
  // Nobody has this communicator yet who could abort it.
  const absl::Time deadline = absl::Now() + options_.connect_timeout;
  while (cudaStreamQuery(stream->raw()) == cudaErrorNotReady) {
    absl::Status waiting = options_.ended ? options_.ended() : absl::OkStatus();
    if (waiting.ok() && absl::Now() > deadline) {
      waiting = absl::DeadlineExceededError("meeting the other GPUs: not all ranks go on");
    }
    if (!waiting.ok()) {
      Abort(std::string(waiting.message()));
      return waiting;
    }
    absl::SleepFor(kPoll);
  }
  RETURN_IF_ERROR(stream->Synchronize());
  RETURN_IF_ERROR(Ended());
  std::string gathered(static_cast<size_t>(all.bytes()), '\0');
  RETURN_IF_CUDA_ERROR("a rendezvous", cudaMemcpy(gathered.data(), all.data(), gathered.size(),
                                                  cudaMemcpyDeviceToHost));
  return gathered;
}

absl::Status NcclCommunicator::Settle(std::string_view operation, ncclResult_t result,
                                      absl::Time deadline) {
  while (result == ncclInProgress) {
    // Others may abort while this waits, with the lock held that `ended` takes.
    mu_.Unlock();
    const absl::Status ended = options_.ended ? options_.ended() : absl::OkStatus();
    if (ended.ok()) absl::SleepFor(kPoll);
    mu_.Lock();
    RETURN_IF_ERROR(end_);
    RETURN_IF_ERROR(ended);
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrFormat("%s: not all of %d ranks have come", operation, options_.size));
    }
    if (const ncclResult_t asked = ncclCommGetAsyncError(comm_, &result); asked != ncclSuccess) {
      return NcclError(operation, asked, comm_);
    }
  }
  return NcclError(operation, result, comm_);
}

NcclCommunicator::~NcclCommunicator() {
  stop_watching_.Notify();
  if (watch_.joinable()) watch_.join();
  {
    absl::MutexLock lock(&mu_);
    if (one_shot_ != nullptr) one_shot_->CloseOthers();
    if (Finish() && one_shot_ != nullptr) one_shot_->AllHaveClosed();
  }
  if (barrier_word_ != nullptr) (void)cudaFree(barrier_word_);
}

bool NcclCommunicator::Finish() {
  if (comm_ == nullptr) return false;
  const absl::Status drained =
      met_ ? Settle("finishing", ncclCommFinalize(comm_), absl::Now() + kFinishTimeout)
           : absl::CancelledError();
  if (comm_ == nullptr) return false;  // aborted meanwhile
  (void)(drained.ok() ? ncclCommDestroy(comm_) : ncclCommAbort(comm_));
  comm_ = nullptr;
  return drained.ok();
}

absl::Status NcclCommunicator::Ended() const {
  absl::MutexLock lock(&mu_);
  return end_.ok() && one_shot_ != nullptr ? one_shot_->Failed() : end_;
}

void NcclCommunicator::Watch() {
  while (!stop_watching_.WaitForNotificationWithTimeout(kWatchInterval)) {
    absl::Status lost;
    {
      absl::MutexLock lock(&mu_);
      if (comm_ == nullptr) return;
      ncclResult_t state = ncclSuccess;
      if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess) continue;
      if (state == ncclSuccess || state == ncclInProgress) continue;
      lost = NcclError("the GPUs' communicator", state, comm_);
    }
    if (options_.on_lost) options_.on_lost(lost);
    Abort(std::string(lost.message()));
    return;
  }
}

void NcclCommunicator::Abort(const std::string& reason) {
  absl::MutexLock lock(&mu_);
  if (end_.ok()) end_ = absl::UnavailableError(reason);
  // Kernels that wait for other ranks end; the stream's work behind them is worthless.
  if (one_shot_ != nullptr) one_shot_->Stop();
  if (comm_ != nullptr) (void)ncclCommAbort(comm_);
  comm_ = nullptr;
}

void NcclCommunicator::Run(std::string_view operation, Stream& stream,
                           const std::function<ncclResult_t()>& calls) {
  auto& cuda = static_cast<CudaStream&>(stream);
  absl::MutexLock lock(&mu_);
  if (comm_ == nullptr) {
    cuda.Fail(end_.ok() ? absl::UnavailableError("the GPUs' communicator is gone") : end_);
    return;
  }
  if (absl::Status s = Settle(operation, calls(), absl::Now() + options_.connect_timeout);
      !s.ok()) {
    cuda.Fail(std::move(s));
  }
}

void NcclCommunicator::Sum(void* data, int64_t count, bool bf16, Stream& stream) {
  if (size() == 1 || count == 0) return;
  Run("all-reduce", stream, [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (one_shot_ != nullptr && OneShotTakes(count * (bf16 ? 2 : 4))) {
      one_shot_->Sum(data, count, bf16, static_cast<CudaStream&>(stream));
      return ncclSuccess;
    }
    return ncclAllReduce(data, data, static_cast<size_t>(count), bf16 ? ncclBfloat16 : ncclFloat32,
                         ncclSum, comm_, Raw(stream));
  });
}

void NcclCommunicator::AllReduceSum(float* data, int64_t count, Stream& stream) {
  Sum(data, count, /*bf16=*/false, stream);
}

void NcclCommunicator::AllReduceSumBf16(void* data, int64_t count, Stream& stream) {
  Sum(data, count, /*bf16=*/true, stream);
}

void NcclCommunicator::AllGather(const void* send, int64_t bytes, void* recv, Stream& stream) {
  if (bytes == 0) return;
  Run("all-gather", stream, [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    return ncclAllGather(send, recv, static_cast<size_t>(bytes), ncclUint8, comm_, Raw(stream));
  });
}

void NcclCommunicator::Barrier(Stream& stream) {
  if (size() > 1) AllReduceSum(barrier_word_, 1, stream);
}

void NcclCommunicator::AllToAll(const void* send, const std::vector<int64_t>& send_bytes,
                                void* recv, const std::vector<int64_t>& recv_bytes,
                                Stream& stream) {
  Run("all-to-all", stream, [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (const ncclResult_t r = ncclGroupStart(); r != ncclSuccess) return r;
    ncclResult_t result = ncclSuccess;
    const auto keep = [&result](ncclResult_t r) {
      if (result == ncclSuccess && r != ncclInProgress) result = r;
    };
    const auto* from = static_cast<const uint8_t*>(send);
    auto* to = static_cast<uint8_t*>(recv);
    for (int r = 0; r < size(); ++r) {
      if (send_bytes[r] > 0) {
        keep(ncclSend(from, static_cast<size_t>(send_bytes[r]), ncclUint8, r, comm_, Raw(stream)));
      }
      if (recv_bytes[r] > 0) {
        keep(ncclRecv(to, static_cast<size_t>(recv_bytes[r]), ncclUint8, r, comm_, Raw(stream)));
      }
      from += send_bytes[r];
      to += recv_bytes[r];
    }
    const ncclResult_t ended = ncclGroupEnd();
    return result != ncclSuccess ? result : ended;
  });
}

}  // namespace lapidary
