// Link-time replacement of libcudart for the CPU build: the CUDA runtime API over the SIMT executor.
// Streams are lazy queues: nothing runs before something waits for it, so a missing synchronisation shows at once.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

#include "kernels/simt/failure.h"
#include "kernels/simt/launch.h"
#include "kernels/simt/monitor.h"
using lapidary::simt::monitor;
using lapidary::simt::MemoryKind;
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#define POISON(p, n) (void)0
#define UNPOISON(p, n) (void)0
#endif

struct CUevent_st { CUstream_st* stream = nullptr; uint64_t seq = 0; double t = 0; bool timing = true; bool in_capture = false; };
struct Op { std::function<void()> run; CUevent_st* wait = nullptr; uint64_t wait_seq = 0; CUstream_st* wait_stream = nullptr; CUevent_st* record = nullptr; };
struct CUstream_st { int dev = 0; std::deque<Op> q; uint64_t enq = 0, done = 0; bool capturing = false; struct CUgraph_st* graph = nullptr; };
struct CUgraph_st { std::vector<Op> ops; };
struct CUgraphExec_st { std::vector<Op> ops; };

namespace {
std::map<uintptr_t, uintptr_t>& device_allocs() { static std::map<uintptr_t, uintptr_t> m; return m; }
thread_local int t_dev = 0;
thread_local cudaError_t t_last = cudaSuccess;
struct Device {
  std::recursive_mutex mu;
  std::set<CUstream_st*> streams;
  CUstream_st null_stream;
  unsigned char* base = nullptr;
  size_t top = 0, used = 0, cap = 0;
  std::map<size_t, size_t> freelist;          // offset -> pages*4096
  std::unordered_map<void*, size_t> sizes;    // requested size
  cudaError_t sticky = cudaSuccess;
  int access = 0;
};
constexpr size_t kVa = size_t(64) << 30, kPage = 4096;
int ndev() { static int n = getenv("SIMT_DEVICES") ? atoi(getenv("SIMT_DEVICES")) : 1; return n; }
bool protect() { static bool p = !getenv("SIMT_PROTECT") || atoi(getenv("SIMT_PROTECT")); return p; }
Device& dev(int i) { static std::vector<std::unique_ptr<Device>> d = [] { std::vector<std::unique_ptr<Device>> v; for (int i = 0; i < 16; ++i) v.emplace_back(new Device); return v; }(); d[i]->null_stream.dev = i; return *d[i]; }
Device& cur() { return dev(t_dev); }
std::mutex g_host_mu;
std::map<uintptr_t, size_t> g_pinned;
struct Attr { int max_dyn = 48 * 1024; };
std::unordered_map<const void*, Attr> g_attr;

cudaError_t ret(cudaError_t e) { if (e != cudaSuccess && e != cudaErrorNotReady) t_last = e; return e; }
CUstream_st* st(cudaStream_t s) { return s && s != cudaStreamLegacy && s != cudaStreamPerThread ? s : &cur().null_stream; }

// While device work runs, device memory is readable; for plain host code it is not, as on a real machine.
struct Access {
  Device& d;
  explicit Access(Device& x) : d(x) { if (protect() && d.access++ == 0) set(PROT_READ | PROT_WRITE); }
  ~Access() { if (protect() && --d.access == 0) set(PROT_NONE); }
  void set(int p) { for (auto& [ptr, n] : d.sizes) mprotect(ptr, (n + kPage - 1) & ~(kPage - 1), p); }
};
void run_op(CUstream_st* s, Op& o) {
  Device& d = dev(s->dev);
  if (o.run) { Access a(d); o.run(); if (!lapidary::simt::TakeFailures().empty()) d.sticky = cudaErrorLaunchFailure; }
}
void step(CUstream_st* s) {
  Op& h = s->q.front();
  if (h.wait && h.wait_stream) { while (h.wait_stream->done < h.wait_seq) step(h.wait_stream); }
  Op o = std::move(s->q.front());
  s->q.pop_front();
  run_op(s, o);
  ++s->done;
}
void drain(CUstream_st* s) { while (!s->q.empty()) step(s); }
void drain_all(Device& d) { for (auto* s : d.streams) drain(s); drain(&d.null_stream); }
cudaError_t push(CUstream_st* s, Op o) {
  if (s->capturing) { s->graph->ops.push_back(std::move(o)); return cudaSuccess; }
  Device& d = dev(s->dev);
  std::lock_guard<std::recursive_mutex> l(d.mu);
  if (d.sticky) return ret(d.sticky);
  if (s == &d.null_stream) drain_all(d);  // legacy default stream waits for everything
  s->q.push_back(std::move(o)); ++s->enq;
  return cudaSuccess;
}
bool is_pinned(const void* p) { std::lock_guard<std::mutex> l(g_host_mu); auto it = g_pinned.upper_bound(uintptr_t(p)); return it != g_pinned.begin() && uintptr_t(p) < std::prev(it)->first + std::prev(it)->second; }
bool is_device(const void* p, int* which = nullptr) { for (int i = 0; i < ndev(); ++i) { Device& d = dev(i); if (d.base && p >= d.base && p < d.base + kVa) { if (which) *which = i; return true; } } return false; }
}  // namespace

namespace lapidary::simt {
cudaError_t EnqueueKernel(const void* fn, const Grid& grid, cudaStream_t stream, KernelBody body) {
  const dim3 g = grid.blocks, b = grid.threads;
  const uint64_t n = uint64_t(b.x) * b.y * b.z;
  if (!n || n > 1024 || b.z > 64 || !g.x || !g.y || !g.z || g.y > 65535 || g.z > 65535) return ret(cudaErrorInvalidConfiguration);
  if (grid.dynamic_bytes > size_t(g_attr[fn].max_dyn)) return ret(cudaErrorInvalidValue);
  return push(st(stream), Op{[=] { RunGrid(grid, body); }});
}
}  // namespace lapidary::simt

extern "C" {
cudaError_t cudaGetDeviceCount(int* n) { *n = ndev(); return *n ? cudaSuccess : ret(cudaErrorNoDevice); }
cudaError_t cudaSetDevice(int i) { if (i < 0 || i >= ndev()) return ret(cudaErrorInvalidDevice); t_dev = i; return cudaSuccess; }
cudaError_t cudaGetDevice(int* i) { *i = t_dev; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  switch (a) {
    case cudaDevAttrMultiProcessorCount: *v = 132; break;
    case cudaDevAttrComputeCapabilityMajor: *v = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 227 * 1024; break;
    default: *v = 0;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  memset(p, 0, sizeof *p); strcpy(p->name, "SIMT executor (CPU)");
  p->major = 9; p->multiProcessorCount = 132; p->sharedMemPerBlockOptin = 227 * 1024; p->sharedMemPerBlock = 48 * 1024; p->warpSize = 32; p->totalGlobalMem = size_t(2) << 30;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { auto e = t_last; t_last = cudaSuccess; return e; }
cudaError_t cudaPeekAtLastError() { return t_last; }
const char* cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "cudaError"; }
const char* cudaGetErrorString(cudaError_t e) { static thread_local char b[32]; snprintf(b, sizeof b, "cuda error %d", int(e)); return b; }
cudaError_t cudaMemGetInfo(size_t* f, size_t* t) { Device& d = cur(); *t = size_t(2) << 30; *f = *t - d.used; return cudaSuccess; }

cudaError_t cudaMalloc(void** p, size_t n) {
  Device& d = cur(); std::lock_guard<std::recursive_mutex> l(d.mu);
  if (!d.base) { d.base = static_cast<unsigned char*>(mmap(nullptr, kVa, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)); d.cap = getenv("SIMT_DEVICE_MEM_MB") ? strtoull(getenv("SIMT_DEVICE_MEM_MB"), nullptr, 10) << 20 : size_t(2) << 30; }
  if (!n) { *p = nullptr; return cudaSuccess; }
  const size_t pages = (n + kPage - 1) & ~(kPage - 1);
  if (d.used + pages > d.cap) return ret(cudaErrorMemoryAllocation);
  const size_t off = d.top; d.top += pages + kPage;      // one guard page between allocations; addresses are not reused
  d.used += pages;
  unsigned char* q = d.base + off;
  mprotect(q, pages, PROT_READ | PROT_WRITE);
  memset(q, 0xFF, pages);                                // NaN in every float format
  POISON(q + n, pages - n);
  if (protect() && d.access == 0) mprotect(q, pages, PROT_NONE);
  d.sizes[q] = n;
  device_allocs()[uintptr_t(q)] = uintptr_t(q) + n;
  if (monitor) monitor->OnAllocate(q, n, MemoryKind::kDevice);
  *p = q;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (!p) return cudaSuccess;
  int w = 0; if (!is_device(p, &w)) return ret(cudaErrorInvalidValue);
  Device& d = dev(w); std::lock_guard<std::recursive_mutex> l(d.mu);
  drain_all(d);
  auto it = d.sizes.find(p); if (it == d.sizes.end()) return ret(cudaErrorInvalidValue);
  const size_t pages = (it->second + kPage - 1) & ~(kPage - 1);
  madvise(p, pages, MADV_DONTNEED); mprotect(p, pages, PROT_NONE);  // use after free faults
  d.used -= pages; d.sizes.erase(it); device_allocs().erase(uintptr_t(p)); if (monitor) monitor->OnFree(p);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** p, size_t n) { *p = aligned_alloc(4096, (n + 4095) & ~size_t(4095)); memset(*p, 0xFF, n); std::lock_guard<std::mutex> l(g_host_mu); g_pinned[uintptr_t(*p)] = n; if (monitor) monitor->OnAllocate(*p, n, MemoryKind::kMappedHost); return cudaSuccess; }
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) { return cudaMallocHost(p, n); }
cudaError_t cudaFreeHost(void* p) { { std::lock_guard<std::mutex> l(g_host_mu); g_pinned.erase(uintptr_t(p)); if (monitor) monitor->OnFree(p); } free(p); return cudaSuccess; }

static cudaError_t check_range(const void* p, size_t n) {  // device range must lie in one allocation
  int w; if (!is_device(p, &w)) return cudaSuccess;
  auto& m = device_allocs(); auto it = m.upper_bound(uintptr_t(p));
  return it != m.begin() && uintptr_t(p) + n <= std::prev(it)->second ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind k, cudaStream_t stream) {
  if (check_range(d, n) || check_range(s, n)) return ret(cudaErrorInvalidValue);
  const bool dd = is_device(d), sd = is_device(s);
  if ((k == cudaMemcpyHostToDevice && (sd || !dd)) || (k == cudaMemcpyDeviceToHost && (!sd || dd)) || (k == cudaMemcpyDeviceToDevice && !(sd && dd))) return ret(cudaErrorInvalidValue);
  if (!sd && !is_pinned(s) && !st(stream)->capturing) {  // pageable source: staged before the call returns
    auto tmp = std::make_shared<std::vector<unsigned char>>(static_cast<const unsigned char*>(s), static_cast<const unsigned char*>(s) + n);
    return push(st(stream), Op{[=] { memcpy(d, tmp->data(), n); if (monitor) monitor->OnHostWrite(d, n, nullptr); }});
  }
  return push(st(stream), Op{[=] { memcpy(d, s, n); if (monitor && is_device(d)) monitor->OnHostWrite(d, n, s); }});
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  CUstream_st* x = st(s); Device& d = dev(x->dev); std::lock_guard<std::recursive_mutex> l(d.mu);
  if (x->capturing) return ret(cudaErrorStreamCaptureUnsupported);
  drain(x); return ret(d.sticky);
}
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind k) { if (auto e = cudaMemcpyAsync(d, s, n, k, nullptr)) return e; return cudaStreamSynchronize(nullptr); }
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t s) { if (!is_device(p) || check_range(p, n)) return ret(cudaErrorInvalidValue); return push(st(s), Op{[=] { memset(p, v, n); if (monitor) monitor->OnHostWrite(p, n, nullptr); }}); }
cudaError_t cudaMemset(void* p, int v, size_t n) { return cudaMemsetAsync(p, v, n, nullptr); }
cudaError_t cudaDeviceSynchronize() { Device& d = cur(); std::lock_guard<std::recursive_mutex> l(d.mu); drain_all(d); return ret(d.sticky); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { Device& d = cur(); std::lock_guard<std::recursive_mutex> l(d.mu); *s = new CUstream_st; (*s)->dev = t_dev; d.streams.insert(*s); return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithFlags(s, 0); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned f, int) { return cudaStreamCreateWithFlags(s, f); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { Device& d = dev(s->dev); std::lock_guard<std::recursive_mutex> l(d.mu); drain(s); d.streams.erase(s); delete s; return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t s) { CUstream_st* x = st(s); Device& d = dev(x->dev); std::lock_guard<std::recursive_mutex> l(d.mu); if (x->q.empty()) return cudaSuccess; step(x); return x->q.empty() ? cudaSuccess : cudaErrorNotReady; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned f) { *e = new CUevent_st; (*e)->timing = !(f & cudaEventDisableTiming); return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  CUstream_st* x = st(s);
  if (x->capturing) { e->in_capture = true; e->stream = x; return cudaSuccess; }  // order of capture is a valid linearisation
  e->in_capture = false;
  auto r = push(x, Op{[e] { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); e->t = double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6; }});
  e->stream = x; e->seq = x->enq;
  return r;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  CUstream_st* x = st(s);
  if (e->in_capture) { if (!x->capturing) { x->capturing = true; x->graph = e->stream->graph; } return cudaSuccess; }
  if (!e->stream) return cudaSuccess;
  Op o; o.wait = e; o.wait_seq = e->seq; o.wait_stream = e->stream;
  return push(x, std::move(o));
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) { if (!e->stream) return cudaSuccess; Device& d = dev(e->stream->dev); std::lock_guard<std::recursive_mutex> l(d.mu); while (e->stream->done < e->seq) step(e->stream); return ret(d.sticky); }
cudaError_t cudaEventQuery(cudaEvent_t e) { if (!e->stream) return cudaSuccess; Device& d = dev(e->stream->dev); std::lock_guard<std::recursive_mutex> l(d.mu); if (e->stream->done < e->seq) step(e->stream); return e->stream->done < e->seq ? cudaErrorNotReady : cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) { *ms = float(b->t - a->t); return cudaSuccess; }
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void* u) { return push(st(s), Op{[=] { f(u); }}); }
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) {
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) { if (v > 227 * 1024) return ret(cudaErrorInvalidValue); g_attr[f].max_dyn = v; }
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) { if (!s) return ret(cudaErrorStreamCaptureUnsupported); s->capturing = true; s->graph = new CUgraph_st; return cudaSuccess; }
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* g) { *g = s->graph; for (auto* x : dev(s->dev).streams) if (x->graph == *g) { x->capturing = false; x->graph = nullptr; } return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus* c) { *c = st(s)->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone; return cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* e, cudaGraph_t g, unsigned long long) { *e = new CUgraphExec_st{g->ops}; return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { for (auto& o : e->ops) if (auto r = push(st(s), o)) return r; return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { delete e; return cudaSuccess; }
}
