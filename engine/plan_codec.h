// StepPlan as bytes, for the channel from the leader to the other ranks.
//
// Little-endian, fields in declaration order, lists preceded by their length, strings absent. The
// first word names the format and its version: ranks of one group are one build, so a difference is
// a mistake in deployment and is refused.
#pragma once
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/step_plan.h"

namespace lapidary {

std::string EncodePlan(const StepPlan& plan);

// INVALID_ARGUMENT for any bytes that EncodePlan does not write: another version, a length beyond
// the end, an unknown enumerator, bytes left over. Allocates no more than a small multiple of the
// input. Whether ids and positions make sense is the executor's to check.
absl::StatusOr<StepPlan> DecodePlan(std::string_view bytes);

}  // namespace lapidary
