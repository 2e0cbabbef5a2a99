// What every reader of a spec needs: the rules that both kinds of files share, and the limits that
// keep any later product of sizes within 64 bits.
#pragma once
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "model/model_spec.h"

namespace lapidary {

// Far above any model of the family; a config beyond them is damaged or hostile.
inline constexpr int64_t kMaxLayers = 1024;
inline constexpr int64_t kMaxHidden = 1 << 18;
inline constexpr int64_t kMaxVocab = 1 << 26;
inline constexpr int64_t kMaxHeads = 4096;
inline constexpr int64_t kMaxHeadDim = 4096;
inline constexpr int64_t kMaxWidth = 1 << 22;
inline constexpr int64_t kMaxExperts = 4096;
inline constexpr int64_t kMaxPleDim = 1 << 14;
inline constexpr int64_t kMaxPositions = (int64_t{1} << 31) - 1;
inline constexpr double kMaxParameters = 0x1p44;  // of the whole model: bytes stay below 2^46

// The last `shared` layers read the pages of the last layer before them of their own kind.
// INVALID_ARGUMENT when a kind has none. `where` begins the message ("config.json: ").
absl::Status AssignKvOwners(ModelSpec& spec, int64_t shared, const std::string& where);

// Sizes within the limits, heads that divide, an even head size, experts that make sense.
absl::Status ValidateSpec(const ModelSpec& spec, const std::string& where);

// "Gemma 4 31B" where the shape is a released one, else the model type.
std::string DisplayName(const ModelSpec& spec);

}  // namespace lapidary
