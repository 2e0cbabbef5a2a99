// Runs a kernel without any runtime, in every order the executor has, for tests of the executor.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "kernels/gpu.h"
#include "kernels/simt/executor.h"
#include "kernels/simt/failure.h"
#include "kernels/simt/monitor.h"
#include "kernels/simt/policy.h"

namespace lapidary::simt {

// Host memory that the checker takes for device memory. 0xff until written.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n)
      : n_(n), data_(new (std::align_val_t(256)) unsigned char[n * sizeof(T)]) {
    memset(data_, 0xff, n * sizeof(T));
    if (monitor) monitor->OnAllocate(data_, n * sizeof(T), MemoryKind::kDevice);
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    memcpy(data_, values.data(), n_ * sizeof(T));
    Written();
  }
  ~Buffer() {
    if (monitor) monitor->OnFree(data_);
    operator delete[](data_, std::align_val_t(256));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void Fill(T v) {
    for (size_t i = 0; i < n_; ++i) data()[i] = v;
    Written();
  }
  T* data() const { return reinterpret_cast<T*>(data_); }
  T& operator[](size_t i) const { return data()[i]; }
  size_t size() const { return n_; }

 private:
  void Written() {
    if (monitor) monitor->OnHostWrite(data_, n_ * sizeof(T), nullptr);
  }
  const size_t n_;
  unsigned char* data_;
};

struct Shape {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
};
// What went wrong.
template <class... P, class... A>
std::vector<std::string> Failures(const Shape& shape, void (*kernel)(P...), A... arguments) {
  using Call = gpu::KernelCall<P...>;
  auto call = std::make_shared<Call>(Call{kernel, {static_cast<P>(arguments)...}});
  FailureCapture capture;
  RunGrid({.name = "test",
           .blocks = shape.blocks,
           .threads = shape.threads,
           .dynamic_bytes = shape.shared_bytes},
          {&Call::Run, call, sizeof(Call)});
  TakeFailures();
  return capture.Take();
}

// Calls f(name) under each order, lazy and eager.
template <class F>
void InEveryOrder(F f) {
  const Policy before = CurrentPolicy();
  for (bool lazy : {true, false}) {
    for (auto [order, name] : {std::pair{Order::kForward, "fwd"}, std::pair{Order::kReverse, "rev"},
                               std::pair{Order::kRandom, "rand"}}) {
      for (uint64_t seed = 1; seed <= (order == Order::kRandom ? 3 : 1); ++seed) {
        CurrentPolicy() = {order, seed, lazy};
        f(std::string(name) + (lazy ? ", lazy" : ", eager") + ", seed " + std::to_string(seed));
      }
    }
  }
  CurrentPolicy() = before;
}

}  // namespace lapidary::simt
