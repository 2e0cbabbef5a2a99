// A worker process from dialling to its end: what `lapidary worker` runs.
#pragma once
#include <string>

#include "absl/status/status.h"
#include "worker/config.h"
#include "worker/model_loader.h"

namespace lapidary {

// Dials the coordinator, takes its assignment, meets the other ranks, loads, serves. Returns OK
// when drained (`stop_descriptor` has become readable, or the coordinator asked), else what ended
// it: the coordinator or another rank is gone, or this rank could not go on. The process should
// then exit with another code than 0. A stop_descriptor of -1 never asks.
//
// The calling thread becomes the engine thread. Every thread started is joined.
absl::Status RunWorker(const WorkerConfig& config, int stop_descriptor);

// Whether the GPU part can be loaded and finds a device. `library` as in WorkerConfig.
bool HasGpu(const std::string& library);

// For tests: with another model.
absl::Status RunWorker(const WorkerConfig& config, int stop_descriptor, const ModelLoader& load);

}  // namespace lapidary
