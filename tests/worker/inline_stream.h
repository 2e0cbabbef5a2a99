// A stream that runs its work at once on the caller's thread.
#pragma once
#include <functional>
#include <utility>

#include "worker/stream.h"

namespace lapidary {

class InlineStream final : public Stream {
 public:
  void Enqueue(std::function<absl::Status()> fn) override {
    if (status_.ok()) status_ = fn();
  }
  absl::Status Synchronize() override { return std::exchange(status_, absl::OkStatus()); }

 private:
  absl::Status status_;
};

}  // namespace lapidary
