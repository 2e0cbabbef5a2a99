// Groups of options that several subcommands share, and the subcommands with a file of their own.
// Only flags*.cc see CLI11.
#pragma once
#include "cli/options.h"

namespace CLI {
class App;
}

namespace lapidary {

void AddServe(CLI::App* app, ServeFlags& flags, bool model_required);
void AddBench(CLI::App* app, BenchFlags& flags);

}  // namespace lapidary
