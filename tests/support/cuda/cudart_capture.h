// Recording of streams into graphs. A node is an operation and the nodes it follows; a launch runs
// them in some order that keeps to that, chosen by SIMT_ORDER.
#pragma once
#include <driver_types.h>

#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/cuda/cudart_stream.h"

namespace lapidary::standin {

struct GraphNode {
  const char* name = "";
  WorkFactory make;
  bool host_function = false, urgent = false;
  std::vector<size_t> after;  // earlier nodes
};
struct Graph {
  std::vector<GraphNode> nodes;
};

// Guarded by the queues' mutex.
struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  const Stream* origin = nullptr;
  std::thread::id thread;
  int device = 0;
  bool invalid = false;
  uint64_t id = 0;
  Graph graph;
  std::vector<std::shared_ptr<Stream>> streams;  // that take part
};

cudaError_t BeginCapture(const std::shared_ptr<Stream>& stream, cudaStreamCaptureMode mode);
cudaError_t EndCapture(const std::shared_ptr<Stream>& stream, std::unique_ptr<Graph>* graph);

// -- Under the queues' mutex.
cudaError_t CaptureOp(Stream& stream, Op op);
// Nodes of another graph, as one step of the stream.
cudaError_t CaptureGraph(Stream& stream, const Graph& graph);
void CaptureRecord(Stream& stream, Event& event);
// A stream waits for an event: it joins the event's capture, or merges two branches of one.
cudaError_t CaptureWait(const std::shared_ptr<Stream>& stream, const Event& event);
// The legacy stream would wait for a blocking stream that is being captured.
cudaError_t RefuseLegacyDuringCapture(const std::vector<std::shared_ptr<Stream>>& streams,
                                      int device);

// A call that may synchronise behind the caller's back (cudaMalloc, cudaMemcpy ...): an error, and
// the end of the capture, while a capture forbids it.
cudaError_t RefuseUnsafeCall();
// Of the calling thread; the old one.
cudaStreamCaptureMode ExchangeCaptureMode(cudaStreamCaptureMode mode);
// A call that is never allowed on a capturing stream: the capture becomes invalid.
cudaError_t RefuseOnCapturing(Stream& stream);

// The nodes in an order that keeps to `after`.
std::vector<size_t> LaunchOrder(const Graph& graph);

}  // namespace lapidary::standin
