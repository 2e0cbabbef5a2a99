// Element types and reductions of the NCCL stand-in.
#pragma once
#include <nccl.h>

#include <cstddef>

namespace lapidary::standin {

// 0: not supported.
size_t NcclTypeBytes(ncclDataType_t type);
bool NcclReduces(ncclDataType_t type, ncclRedOp_t op);
// to[i] = to[i] op from[i], rounded to the type after each step, as a ring of ranks does.
void NcclReduceInto(ncclDataType_t type, ncclRedOp_t op, void* to, const void* from, size_t count);
// The average's division, at the end.
void NcclDivide(ncclDataType_t type, void* values, size_t count, int by);

}  // namespace lapidary::standin
