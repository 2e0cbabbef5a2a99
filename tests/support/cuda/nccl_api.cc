// The functions of nccl.h that a tensor-parallel worker uses.
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "tests/support/cuda/cudart_stream.h"
#include "tests/support/cuda/nccl_comm.h"
#include "tests/support/cuda/nccl_reduce.h"
#include "tests/support/cuda/nccl_work.h"

namespace lapidary::standin {
namespace {

struct Comms {
  std::mutex mu;
  std::unordered_map<ncclComm_t, std::shared_ptr<Comm>> handles;
};
Comms& All() {
  static Comms* comms = new Comms;
  return *comms;
}

std::shared_ptr<Comm> Find(ncclComm_t handle) {
  std::lock_guard lock(All().mu);
  const auto it = All().handles.find(handle);
  return it == All().handles.end() ? nullptr : it->second;
}

std::shared_ptr<Comm> Remove(ncclComm_t handle) {
  std::lock_guard lock(All().mu);
  const auto it = All().handles.find(handle);
  if (it == All().handles.end()) return nullptr;
  auto comm = std::move(it->second);
  All().handles.erase(it);
  return comm;
}

thread_local std::string last_error;
ncclResult_t Refuse(ncclResult_t result, const std::string& why) {
  last_error = why;
  return result;
}

// What a thread has called between ncclGroupStart and ncclGroupEnd.
struct Group {
  struct Call {
    cudaStream_t stream;
    CollectiveCall collective;  // comm null: messages
    std::shared_ptr<Comm> comm;
    std::vector<Message> messages;
  };
  int depth = 0;
  ncclResult_t error = ncclSuccess;  // the first of the group
  std::vector<Call> calls;
  std::vector<std::shared_ptr<Comm>> joining;
};
thread_local Group group;

ncclResult_t Queue(const Group::Call& call) {
  const bool messages = !call.messages.empty();
  const std::shared_ptr<Comm>& comm = call.comm;
  WorkFactory make = messages ? MakeMessages(comm, call.messages) : MakeCollective(call.collective);
  const cudaError_t e =
      Enqueue(call.stream, messages ? "messages" : NameOf(call.collective.kind), std::move(make));
  if (e != cudaSuccess) return Refuse(ncclUnhandledCudaError, cudaGetErrorString(e));
  if (comm->blocking()) return ncclSuccess;
  comm->answers_in_progress = 1;
  return ncclInProgress;
}

ncclResult_t EndGroup() {
  Group ended;
  std::swap(ended, group);
  if (ended.error != ncclSuccess) return ended.error;
  ncclResult_t result = ncclSuccess;
  for (const auto& comm : ended.joining) {
    if (!comm->blocking()) {
      comm->WaitForAllInBackground();
      result = ncclInProgress;
    } else if (const ncclResult_t r = comm->WaitForAll(); r != ncclSuccess) {
      return Refuse(r, comm->last_error());
    }
  }
  for (const auto& call : ended.calls) {
    const ncclResult_t r = Queue(call);
    if (r != ncclSuccess && r != ncclInProgress) return r;
    if (r == ncclInProgress) result = r;
  }
  return result;
}

// Ends the group that a single call is.
ncclResult_t AfterCall(ncclResult_t error) {
  if (error != ncclSuccess && group.error == ncclSuccess) group.error = error;
  if (group.depth > 0) return error;
  return EndGroup();
}

ncclResult_t CheckComm(const std::shared_ptr<Comm>& comm) {
  if (!comm) return Refuse(ncclInvalidArgument, "no such communicator");
  const ncclResult_t state = comm->state();
  if (state == ncclInProgress) {
    return Refuse(ncclInvalidUsage, "the communicator is still being set up");
  }
  return state == ncclSuccess ? ncclSuccess : Refuse(state, comm->last_error());
}

ncclResult_t AddCollective(CollectiveKind kind, const void* from, void* to, size_t count,
                           ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t handle,
                           cudaStream_t stream) {
  const auto comm = Find(handle);
  if (const ncclResult_t r = CheckComm(comm)) return r;
  const size_t element = NcclTypeBytes(type);
  if (element == 0) return Refuse(ncclInvalidArgument, "unknown element type");
  const bool reduces = kind == CollectiveKind::kAllReduce || kind == CollectiveKind::kReduce ||
                       kind == CollectiveKind::kReduceScatter;
  if (reduces && !NcclReduces(type, op)) {
    return Refuse(ncclInvalidArgument, "this type cannot be reduced so");
  }
  if (root < 0 || root >= comm->ranks()) return Refuse(ncclInvalidArgument, "no such root");
  if (count == 0) return ncclSuccess;
  const size_t all = count * static_cast<size_t>(comm->ranks());
  const size_t given = kind == CollectiveKind::kReduceScatter ? all : count;
  const size_t taken = kind == CollectiveKind::kAllGather ? all : count;
  const bool gives = kind != CollectiveKind::kBroadcast || comm->rank() == root;
  const bool takes = kind != CollectiveKind::kReduce || comm->rank() == root;
  if ((gives && !IsDeviceUsable(from, given * element)) ||
      (takes && !IsDeviceUsable(to, taken * element))) {
    return Refuse(ncclInvalidArgument, "a buffer is not (all) device memory");
  }
  group.calls.push_back({stream, {comm, kind, from, to, count, type, op, root}, comm, {}});
  return ncclSuccess;
}

ncclResult_t AddMessage(bool send, const void* data, size_t count, ncclDataType_t type, int peer,
                        ncclComm_t handle, cudaStream_t stream) {
  const auto comm = Find(handle);
  if (const ncclResult_t r = CheckComm(comm)) return r;
  const size_t bytes = count * NcclTypeBytes(type);
  if (NcclTypeBytes(type) == 0) return Refuse(ncclInvalidArgument, "unknown element type");
  if (peer < 0 || peer >= comm->ranks()) return Refuse(ncclInvalidArgument, "no such peer");
  if (bytes == 0) return ncclSuccess;
  if (!IsDeviceUsable(data, bytes)) {
    return Refuse(ncclInvalidArgument, "a buffer is not (all) device memory");
  }
  const Message m{send, static_cast<unsigned char*>(const_cast<void*>(data)), bytes, peer};
  for (auto& call : group.calls) {
    if (!call.messages.empty() && call.comm == comm && call.stream == stream) {
      call.messages.push_back(m);
      return ncclSuccess;
    }
  }
  group.calls.push_back({stream, {}, comm, {m}});
  return ncclSuccess;
}

ncclResult_t Init(ncclComm_t* handle, int ranks, const ncclUniqueId& id, int rank,
                  const ncclConfig_t* config) {
  if (!handle || ranks < 1 || ranks > kMostRanks || rank < 0 || rank >= ranks) {
    return Refuse(ncclInvalidArgument, "rank " + std::to_string(rank) + " of " +
                                           std::to_string(ranks) + ", at most " +
                                           std::to_string(kMostRanks));
  }
  bool blocking = true;
  if (config) {
    const ncclConfig_t initial = NCCL_CONFIG_INITIALIZER;
    if (config->magic != initial.magic || config->size != initial.size) {
      return Refuse(ncclInvalidArgument, "the config is not from NCCL_CONFIG_INITIALIZER");
    }
    if (config->blocking != NCCL_CONFIG_UNDEF_INT) blocking = config->blocking != 0;
  }
  int device = 0;
  if (const cudaError_t e = cudaGetDevice(&device)) {
    return Refuse(ncclUnhandledCudaError, cudaGetErrorString(e));
  }
  auto comm = std::make_shared<Comm>(ranks, rank, device, blocking);
  *handle = reinterpret_cast<ncclComm_t>(comm.get());
  {
    std::lock_guard lock(All().mu);
    All().handles[*handle] = comm;
  }
  if (const ncclResult_t r = comm->Join(id)) return Refuse(r, comm->last_error());
  group.joining.push_back(std::move(comm));
  return ncclSuccess;
}

}  // namespace
}  // namespace lapidary::standin

using namespace lapidary::standin;

extern "C" {

ncclResult_t ncclGetVersion(int* version) {
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  *id = {};
  return CreateSegment(id->internal, sizeof id->internal)
             ? ncclSuccess
             : Refuse(ncclSystemError, "no shared memory");
}
const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError:
      return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError:
      return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument:
      return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage:
      return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}
const char* ncclGetLastError(ncclComm_t handle) {
  static thread_local std::string text;
  const auto comm = handle ? Find(handle) : nullptr;
  text = comm ? comm->last_error() : last_error;
  if (text.empty()) text = last_error;
  return text.c_str();
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  return AfterCall(Init(comm, ranks, id, rank, config));
}
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  return AfterCall(Init(comm, ranks, id, rank, nullptr));
}
ncclResult_t ncclCommInitAll(ncclComm_t* comms, int devices, const int* list) {
  ncclUniqueId id;
  if (const ncclResult_t r = ncclGetUniqueId(&id)) return r;
  int before = 0;
  cudaGetDevice(&before);
  ncclGroupStart();
  for (int i = 0; i < devices; ++i) {
    cudaSetDevice(list ? list[i] : i);
    ncclCommInitRank(&comms[i], devices, id, i);
  }
  cudaSetDevice(before);
  return ncclGroupEnd();
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  const auto comm = Find(handle);
  if (!comm || !error) return Refuse(ncclInvalidArgument, "no such communicator");
  if (comm->state() == ncclSuccess) comm->FindLoss(false);
  *error = comm->state();
  int one = 1;
  if (*error == ncclSuccess && comm->answers_in_progress.compare_exchange_strong(one, 0)) {
    *error = ncclInProgress;
  }
  return ncclSuccess;
}
// From any thread: operations that hang come to an end.
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const auto comm = Remove(handle);
  if (!comm) return Refuse(ncclInvalidArgument, "no such communicator");
  comm->Abort();
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t handle) {
  const auto comm = Find(handle);
  if (const ncclResult_t r = CheckComm(comm)) return r;
  if (comm->blocking()) {
    RunDevice(comm->device());
    return comm->state();
  }
  comm->answers_in_progress = 1;
  return ncclInProgress;
}
ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  const auto comm = Remove(handle);
  if (!comm) return Refuse(ncclInvalidArgument, "no such communicator");
  comm->Leave();
  return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t handle, int* ranks) {
  const auto comm = Find(handle);
  if (!comm) return Refuse(ncclInvalidArgument, "no such communicator");
  *ranks = comm->ranks();
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  const auto comm = Find(handle);
  if (!comm) return Refuse(ncclInvalidArgument, "no such communicator");
  *rank = comm->rank();
  return ncclSuccess;
}
ncclResult_t ncclCommCuDevice(const ncclComm_t handle, int* device) {
  const auto comm = Find(handle);
  if (!comm) return Refuse(ncclInvalidArgument, "no such communicator");
  *device = comm->device();
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group.depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (group.depth == 0) return Refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  return --group.depth > 0 ? ncclSuccess : EndGroup();
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return AfterCall(
      AddCollective(CollectiveKind::kAllReduce, from, to, count, type, op, 0, comm, stream));
}
ncclResult_t ncclReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return AfterCall(
      AddCollective(CollectiveKind::kReduce, from, to, count, type, op, root, comm, stream));
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return AfterCall(AddCollective(CollectiveKind::kBroadcast, from, to, count, type, ncclSum, root,
                                 comm, stream));
}
ncclResult_t ncclBcast(void* data, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                       cudaStream_t stream) {
  return ncclBroadcast(data, data, count, type, root, comm, stream);
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return AfterCall(
      AddCollective(CollectiveKind::kAllGather, from, to, count, type, ncclSum, 0, comm, stream));
}
ncclResult_t ncclReduceScatter(const void* from, void* to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return AfterCall(
      AddCollective(CollectiveKind::kReduceScatter, from, to, count, type, op, 0, comm, stream));
}
ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return AfterCall(AddMessage(true, data, count, type, peer, comm, stream));
}
ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return AfterCall(AddMessage(false, data, count, type, peer, comm, stream));
}

}  // extern "C"
