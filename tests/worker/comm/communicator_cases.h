// What every communicator must do, written once: run by threads and by processes.
#pragma once
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "tests/worker/inline_stream.h"
#include "worker/comm/communicator.h"

namespace lapidary {

// A value whose sum over ranks depends on the order of the additions in fp32.
inline float RankValue(int rank, int64_t i) {
  const uint32_t h = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(rank) * 40503u;
  return static_cast<float>(h >> 8) * (rank % 2 == 0 ? 1.0f : -0x1p-9f);
}

// The sum in rank order, the only right answer.
inline float RankOrderSum(int size, int64_t i) {
  float sum = RankValue(0, i);
  for (int r = 1; r < size; ++r) sum += RankValue(r, i);
  return sum;
}

// Sizes around every edge: nothing, one, odd, the small-large border, several windows.
inline std::vector<int64_t> SumSizes() {
  return {0, 1, 3, 640, 16383, 16384, 16385, 131071, 131072, 131073, 700001};
}

// Runs all collectives on one rank; a description of the first wrong element, or OK.
inline absl::Status CheckCollectives(Communicator& comm, const std::vector<int64_t>& sizes) {
  InlineStream stream;
  const int rank = comm.rank().value;
  for (const int64_t count : sizes) {
    std::vector<float> data(count);
    for (int64_t i = 0; i < count; ++i) data[i] = RankValue(rank, i);
    comm.AllReduceSum(data.data(), count, stream);
    if (absl::Status s = stream.Synchronize(); !s.ok()) return s;
    for (int64_t i = 0; i < count; ++i) {
      if (data[i] == RankOrderSum(comm.size(), i)) continue;
      return absl::InternalError(absl::StrFormat("sum of %d: element %d is %g, not %g", count, i,
                                                 data[i], RankOrderSum(comm.size(), i)));
    }
    comm.Barrier(stream);
  }
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{13}, int64_t{1} << 20}) {
    std::vector<uint8_t> all(bytes * comm.size(), 255);
    std::vector<uint8_t> own(bytes);
    for (int64_t i = 0; i < bytes; ++i) own[i] = static_cast<uint8_t>(i * 7 + rank);
    const bool in_place = bytes != 13;
    if (in_place) std::copy(own.begin(), own.end(), all.begin() + rank * bytes);
    comm.AllGather(in_place ? all.data() + rank * bytes : own.data(), bytes, all.data(), stream);
    if (absl::Status s = stream.Synchronize(); !s.ok()) return s;
    for (int r = 0; r < comm.size(); ++r) {
      for (int64_t i = 0; i < bytes; ++i) {
        if (all[r * bytes + i] == static_cast<uint8_t>(i * 7 + r)) continue;
        return absl::InternalError(
            absl::StrFormat("gather of %d bytes: byte %d of rank %d is wrong", bytes, i, r));
      }
    }
  }
  return stream.Synchronize();
}

}  // namespace lapidary
