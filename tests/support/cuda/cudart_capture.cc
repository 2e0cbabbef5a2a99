#include "tests/support/cuda/cudart_capture.h"

#include <algorithm>
#include <set>

#include "kernels/simt/policy.h"
#include "tests/support/cuda/cudart_device.h"

namespace lapidary::standin {
namespace {

// Captures under way; guarded by the queues' mutex.
std::set<Capture*>& Captures() {
  static auto* captures = new std::set<Capture*>;
  return *captures;
}

// What this thread said of itself (cudaThreadExchangeStreamCaptureMode).
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

// Nodes that others already follow need not be named again.
void AddUnique(std::vector<size_t>* to, const std::vector<size_t>& nodes) {
  for (size_t n : nodes) {
    if (std::find(to->begin(), to->end(), n) == to->end()) to->push_back(n);
  }
}

void Leave(Capture& capture) {
  for (const auto& s : capture.streams) {
    s->capture.reset();
    s->capture_tail.clear();
  }
  Captures().erase(&capture);
}

// Whether every node comes before one of `tail`.
bool AllJoined(const Graph& graph, const std::vector<size_t>& tail) {
  std::vector<bool> reached(graph.nodes.size());
  std::vector<size_t> pending = tail;
  while (!pending.empty()) {
    const size_t n = pending.back();
    pending.pop_back();
    if (reached[n]) continue;
    reached[n] = true;
    pending.insert(pending.end(), graph.nodes[n].after.begin(), graph.nodes[n].after.end());
  }
  return std::all_of(reached.begin(), reached.end(), [](bool r) { return r; });
}

}  // namespace

cudaError_t BeginCapture(const std::shared_ptr<Stream>& stream, cudaStreamCaptureMode mode) {
  static uint64_t last_id = 0;
  std::lock_guard lock(QueueMutex());
  if (stream->legacy) return cudaErrorStreamCaptureUnsupported;
  if (stream->capture) return cudaErrorIllegalState;
  auto capture = std::make_shared<Capture>();
  capture->mode = mode;
  capture->origin = stream.get();
  capture->thread = std::this_thread::get_id();
  capture->device = stream->device;
  capture->id = ++last_id;
  capture->streams.push_back(stream);
  Captures().insert(capture.get());
  stream->capture = std::move(capture);
  stream->capture_tail.clear();
  return cudaSuccess;
}

cudaError_t EndCapture(const std::shared_ptr<Stream>& stream, std::unique_ptr<Graph>* graph) {
  std::lock_guard lock(QueueMutex());
  const std::shared_ptr<Capture> capture = stream->capture;
  if (!capture) return cudaErrorIllegalState;
  if (capture->origin != stream.get()) {
    capture->invalid = true;
    return cudaErrorStreamCaptureUnmatched;
  }
  if (capture->mode != cudaStreamCaptureModeRelaxed &&
      capture->thread != std::this_thread::get_id()) {
    return cudaErrorStreamCaptureWrongThread;
  }
  const bool joined = AllJoined(capture->graph, stream->capture_tail);
  Leave(*capture);
  if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!joined) return cudaErrorStreamCaptureUnjoined;
  *graph = std::make_unique<Graph>(std::move(capture->graph));
  return cudaSuccess;
}

cudaError_t CaptureOp(Stream& stream, Op op) {
  Capture& capture = *stream.capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  GraphNode node{op.name, std::move(op.make), op.host_function, op.urgent, stream.capture_tail};
  stream.capture_tail = {capture.graph.nodes.size()};
  capture.graph.nodes.push_back(std::move(node));
  return cudaSuccess;
}

cudaError_t CaptureGraph(Stream& stream, const Graph& graph) {
  Capture& capture = *stream.capture;
  if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
  const size_t base = capture.graph.nodes.size();
  std::vector<size_t> tail;
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    GraphNode node = graph.nodes[i];
    for (size_t& n : node.after) n += base;
    if (node.after.empty()) node.after = stream.capture_tail;
    capture.graph.nodes.push_back(std::move(node));
    tail.push_back(base + i);
  }
  if (!tail.empty()) stream.capture_tail = std::move(tail);
  return cudaSuccess;
}

void CaptureRecord(Stream& stream, Event& event) {
  event.capture = stream.capture;
  event.capture_nodes = stream.capture_tail;
}

cudaError_t CaptureWait(const std::shared_ptr<Stream>& stream, const Event& event) {
  if (!event.capture) {
    // Work outside the capture: a graph cannot wait for it.
    stream->capture->invalid = true;
    return cudaErrorStreamCaptureIsolation;
  }
  if (!Captures().contains(event.capture.get())) return cudaErrorStreamCaptureInvalidated;
  if (event.capture->invalid) return cudaErrorStreamCaptureInvalidated;
  if (!stream->capture) {
    if (stream->legacy) {
      event.capture->invalid = true;
      return cudaErrorStreamCaptureImplicit;
    }
    stream->capture = event.capture;
    stream->capture->streams.push_back(stream);
  } else if (stream->capture != event.capture) {
    stream->capture->invalid = event.capture->invalid = true;
    return cudaErrorStreamCaptureMerge;
  }
  AddUnique(&stream->capture_tail, event.capture_nodes);
  return cudaSuccess;
}

cudaError_t RefuseLegacyDuringCapture(const std::vector<std::shared_ptr<Stream>>& streams,
                                      int device) {
  for (const auto& s : streams) {
    if (s->device == device && s->capture && !(s->flags & cudaStreamNonBlocking)) {
      s->capture->invalid = true;
      return cudaErrorStreamCaptureImplicit;
    }
  }
  return cudaSuccess;
}

cudaError_t RefuseUnsafeCall() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  std::lock_guard lock(QueueMutex());
  bool refused = false;
  for (Capture* c : Captures()) {
    const bool own = c->thread == std::this_thread::get_id();
    const bool forbids = (c->mode == cudaStreamCaptureModeGlobal &&
                          (own || thread_mode == cudaStreamCaptureModeGlobal)) ||
                         (c->mode == cudaStreamCaptureModeThreadLocal && own);
    if (!forbids) continue;
    c->invalid = true;
    refused = true;
  }
  return refused ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaStreamCaptureMode ExchangeCaptureMode(cudaStreamCaptureMode mode) {
  std::swap(mode, thread_mode);
  return mode;
}

cudaError_t RefuseOnCapturing(Stream& stream) {
  std::lock_guard lock(QueueMutex());
  if (!stream.capture) return cudaSuccess;
  stream.capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

std::vector<size_t> LaunchOrder(const Graph& graph) {
  static simt::Random random(simt::CurrentPolicy().seed);
  const simt::Order policy = simt::CurrentPolicy().order;
  std::vector<size_t> missing(graph.nodes.size()), ready, order;
  std::vector<std::vector<size_t>> followers(graph.nodes.size());
  for (size_t i = 0; i < graph.nodes.size(); ++i) {
    missing[i] = graph.nodes[i].after.size();
    if (missing[i] == 0) ready.push_back(i);
    for (size_t n : graph.nodes[i].after) followers[n].push_back(i);
  }
  while (!ready.empty()) {
    auto next = std::min_element(ready.begin(), ready.end());  // as it was recorded
    if (policy == simt::Order::kReverse) next = std::max_element(ready.begin(), ready.end());
    if (policy == simt::Order::kRandom) next = ready.begin() + random.Below(ready.size());
    const size_t n = *next;
    ready.erase(next);
    order.push_back(n);
    for (size_t f : followers[n]) {
      if (--missing[f] == 0) ready.push_back(f);
    }
  }
  return order;
}

}  // namespace lapidary::standin
