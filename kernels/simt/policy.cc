#include "kernels/simt/policy.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace lapidary::simt {
namespace {

[[noreturn]] void Refuse(const char* name, const char* value) {
  fprintf(stderr, "[simt] %s=%s is not understood\n", name, value);
  abort();
}

Policy FromEnvironment() {
  Policy p;
  if (const char* v = getenv("SIMT_ORDER")) {
    if (!strcmp(v, "fwd")) {
      p.order = Order::kForward;
    } else if (!strcmp(v, "rev")) {
      p.order = Order::kReverse;
    } else if (!strcmp(v, "rand")) {
      p.order = Order::kRandom;
    } else {
      Refuse("SIMT_ORDER", v);
    }
  }
  if (const char* v = getenv("SIMT_SEED")) p.seed = strtoull(v, nullptr, 10);
  if (const char* v = getenv("SIMT_ASYNC")) {
    if (strcmp(v, "lazy") != 0 && strcmp(v, "eager") != 0) Refuse("SIMT_ASYNC", v);
    p.lazy = !strcmp(v, "lazy");
  }
  return p;
}

}  // namespace

Policy& CurrentPolicy() {
  static Policy policy = FromEnvironment();
  return policy;
}

}  // namespace lapidary::simt
