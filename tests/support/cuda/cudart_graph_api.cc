// The CUDA runtime's capture and graphs: record, instantiate, launch. Graphs are made by capture
// alone and are not changed afterwards.
#include <cuda_runtime_api.h>

#include <unordered_map>

#include "tests/support/cuda/cudart_capture.h"
#include "tests/support/cuda/cudart_device.h"
#include "tests/support/cuda/cudart_error.h"
#include "tests/support/cuda/cudart_stream.h"

namespace lapidary::standin {
namespace {

// An instantiated graph: launches of it follow one another.
struct GraphExec {
  Graph graph;
  Point last;
};

struct Graphs {
  std::mutex mu;
  std::unordered_map<cudaGraph_t, std::unique_ptr<Graph>> graphs;
  std::unordered_map<cudaGraphExec_t, std::shared_ptr<GraphExec>> execs;
};
Graphs& All() {
  static Graphs* graphs = new Graphs;
  return *graphs;
}

cudaError_t Instantiate(cudaGraphExec_t* exec, cudaGraph_t graph) {
  if (const cudaError_t e = Enter()) return e;
  std::lock_guard lock(All().mu);
  const auto it = All().graphs.find(graph);
  if (!exec || it == All().graphs.end()) return Return(cudaErrorInvalidValue);
  auto made = std::make_shared<GraphExec>();
  made->graph = *it->second;
  *exec = reinterpret_cast<cudaGraphExec_t>(made.get());
  All().execs[*exec] = std::move(made);
  return cudaSuccess;
}

}  // namespace
}  // namespace lapidary::standin

using namespace lapidary::standin;

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed) {
    return Return(cudaErrorInvalidValue);
  }
  return Return(BeginCapture(s, mode));
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  *graph = nullptr;
  std::unique_ptr<Graph> recorded;
  LAPIDARY_RETURN_IF(EndCapture(s, &recorded));
  *graph = reinterpret_cast<cudaGraph_t>(recorded.get());
  std::lock_guard lock(All().mu);
  All().graphs[*graph] = std::move(recorded);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  return cudaStreamGetCaptureInfo(handle, status, nullptr, nullptr, nullptr, nullptr, nullptr);
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(handle);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  if (graph || dependencies || edges || count) return Return(cudaErrorNotSupported);
  std::lock_guard lock(QueueMutex());
  *status = !s->capture           ? cudaStreamCaptureStatusNone
            : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  if (id && s->capture) *id = s->capture->id;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  LAPIDARY_RETURN_IF(Enter());
  *mode = ExchangeCaptureMode(*mode);
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return Instantiate(exec, graph);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph,
                                          unsigned long long) {
  return Instantiate(exec, graph);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  LAPIDARY_RETURN_IF(Enter());
  if (!FindStream(stream)) return Return(cudaErrorInvalidResourceHandle);
  std::lock_guard lock(All().mu);
  return Return(All().execs.contains(exec) ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream) {
  LAPIDARY_RETURN_IF(Enter());
  const auto s = FindStream(stream);
  if (!s) return Return(cudaErrorInvalidResourceHandle);
  std::shared_ptr<GraphExec> exec;
  {
    std::lock_guard lock(All().mu);
    const auto it = All().execs.find(handle);
    if (it == All().execs.end()) return Return(cudaErrorInvalidValue);
    exec = it->second;
  }
  {
    std::lock_guard lock(QueueMutex());
    if (s->capture) return Return(CaptureGraph(*s, exec->graph));
  }
  std::vector<Point> after;
  if (exec->last.stream) after.push_back(exec->last);
  for (const size_t n : LaunchOrder(exec->graph)) {
    const GraphNode& node = exec->graph.nodes[n];
    LAPIDARY_RETURN_IF(Push(s, {.name = node.name,
                                .make = node.make,
                                .host_function = node.host_function,
                                .urgent = node.urgent,
                                .after = std::move(after)}));
    after.clear();
  }
  exec->last = Here(s);
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  LAPIDARY_RETURN_IF(Enter());
  std::lock_guard lock(All().mu);
  const auto it = All().graphs.find(graph);
  if (nodes || !count || it == All().graphs.end()) return Return(cudaErrorInvalidValue);
  *count = it->second->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  LAPIDARY_RETURN_IF(Enter());
  std::lock_guard lock(All().mu);
  return Return(All().graphs.erase(graph) ? cudaSuccess : cudaErrorInvalidValue);
}
// Launches that are under way still finish.
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  LAPIDARY_RETURN_IF(Enter());
  std::lock_guard lock(All().mu);
  return Return(All().execs.erase(exec) ? cudaSuccess : cudaErrorInvalidValue);
}

}  // extern "C"
