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

SiteText At(Site site) {
  SiteText t;
  const char* slash = site.file ? strrchr(site.file, '/') : nullptr;
  snprintf(t.text, sizeof t.text, "%s:%d",
           slash       ? slash + 1
           : site.file ? site.file
                       : "?",
           site.line);
  return t;
}

void Fail(Site site, const char* format, ...) {
  char what[1500];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);

  std::string message = what;
  char where[200];
  if (site.file) message += std::string(" at ") + At(site).text;
  if (const Thread* t = current_thread) {
    const uint3 b = t->block->index;
    snprintf(where, sizeof where, ", block (%u,%u,%u) thread (%u,%u,%u)", b.x, b.y, b.z, t->index.x,
             t->index.y, t->index.z);
    message += std::string(", kernel ") + t->block->kernel + where;
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
  if (print && failures.size() < kPrinted) fprintf(stderr, "[simt] ERROR %s\n", message.c_str());
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
