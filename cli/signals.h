// SIGINT and SIGTERM as a flag and a descriptor to poll on.
#pragma once

namespace lapidary {

// Installs the handlers; once, early in main.
void InstallStopSignals();
bool StopRequested();
// How many stop signals came: the second one means "now".
int StopSignals();
// Readable once a stop signal came.
int StopDescriptor();
// Blocks until a stop signal came.
void WaitForStop();

}  // namespace lapidary
