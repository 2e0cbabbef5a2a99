// The thread that runs what nobody waits for.
#pragma once

namespace lapidary::standin {

// Something was queued.
void StartProgress();

// One operation of each stream that has not moved for so long; whether anything is queued.
bool RunOverdue(double urgent_ms, double other_ms);

}  // namespace lapidary::standin
