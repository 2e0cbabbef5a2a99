// Collectives and point-to-point messages as work of a stream: state machines that do what they can
// and come back later, so that a rank that waits holds up nobody else.
#pragma once
#include <nccl.h>

#include <memory>
#include <vector>

#include "tests/support/cuda/nccl_comm.h"
#include "tests/support/cuda/runtime.h"

namespace lapidary::standin {

enum class CollectiveKind : uint32_t {
  kAllReduce = 1,
  kReduce,
  kBroadcast,
  kAllGather,
  kReduceScatter
};
const char* NameOf(CollectiveKind kind);

struct CollectiveCall {
  std::shared_ptr<Comm> comm;
  CollectiveKind kind = CollectiveKind::kAllReduce;
  const void* from = nullptr;
  void* to = nullptr;
  size_t count = 0;  // as the caller gives it
  ncclDataType_t type = ncclFloat32;
  ncclRedOp_t op = ncclSum;
  int root = 0;
};
WorkFactory MakeCollective(CollectiveCall call);

struct Message {
  bool send = false;
  unsigned char* data = nullptr;
  size_t bytes = 0;
  int peer = 0;
};
// All messages of a group go on together.
WorkFactory MakeMessages(std::shared_ptr<Comm> comm, std::vector<Message> messages);

}  // namespace lapidary::standin
