// Mistakes of kernels. A mistake is printed, remembered, and ends the launch with a sticky
// cudaErrorLaunchFailure, as a GPU would; a test that plants one captures it instead.
#pragma once
#include <string>
#include <vector>

#include "kernels/simt/site.h"

namespace lapidary::simt {

// "file.cu:12". No destructor: it may stand where a block is abandoned.
struct SiteText {
  char text[80];
};
SiteText At(Site site);

// Records a mistake of the thread that runs (or of the block, when none does).
void Fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Mistakes of this OS thread since the last TakeFailures: what the runtime stand-in asks after each
// operation.
int FailureCount();
std::vector<std::string> TakeFailures();

// While one lives, mistakes of all threads go into it: nothing is printed.
class FailureCapture {
 public:
  FailureCapture();
  ~FailureCapture();
  FailureCapture(const FailureCapture&) = delete;
  FailureCapture& operator=(const FailureCapture&) = delete;

  std::vector<std::string> Take();
};

}  // namespace lapidary::simt
