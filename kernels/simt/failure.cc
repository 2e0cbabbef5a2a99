#include "kernels/simt/failure.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "kernels/simt/thread.h"

namespace lapidary::simt {
namespace {

constexpr int kPrinted = 8;  // of one launch; the rest is counted

thread_local std::vector<std::string> failures;

struct Captured {
  std::mutex mu;
  int depth = 0;
  std::vector<std::string> messages;
};
Captured& Capturing() {
  static Captured* captured = new Captured;
  return *captured;
}

}  // namespace

void Fail(Site site, const char* format, ...) {
  char what[768];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);

  char message[1024];
  const char* slash = site.file ? strrchr(site.file, '/') : nullptr;
  const char* file = slash ? slash + 1 : site.file;
  char where[256] = "";
  if (file) snprintf(where, sizeof where, " at %s:%d", file, site.line);
  if (const Thread* t = current_thread) {
    const uint3 b = t->block->index;
    snprintf(message, sizeof message, "%s%s, kernel %s, block (%u,%u,%u) thread (%u,%u,%u)", what,
             where, t->block->kernel, b.x, b.y, b.z, t->index.x, t->index.y, t->index.z);
  } else {
    snprintf(message, sizeof message, "%s%s", what, where);
  }

  Captured& captured = Capturing();
  bool print = true;
  {
    std::lock_guard lock(captured.mu);
    if (captured.depth > 0) {
      captured.messages.push_back(message);
      print = false;
    }
  }
  if (print && failures.size() < kPrinted) fprintf(stderr, "[simt] ERROR %s\n", message);
  failures.push_back(message);
}

int FailureCount() { return static_cast<int>(failures.size()); }

std::vector<std::string> TakeFailures() {
  std::vector<std::string> taken;
  taken.swap(failures);
  return taken;
}

FailureCapture::FailureCapture() {
  std::lock_guard lock(Capturing().mu);
  if (Capturing().depth++ == 0) Capturing().messages.clear();
}

FailureCapture::~FailureCapture() {
  std::lock_guard lock(Capturing().mu);
  --Capturing().depth;
}

std::vector<std::string> FailureCapture::Take() {
  std::lock_guard lock(Capturing().mu);
  std::vector<std::string> taken;
  taken.swap(Capturing().messages);
  return taken;
}

}  // namespace lapidary::simt
