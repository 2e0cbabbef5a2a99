#include "cli/bench/workload.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

constexpr uint64_t kLengths = 1, kContent = 2, kPrefix = 3, kArrival = 4, kSampling = 5;
constexpr int64_t kMaxLength = int64_t{1} << 24;

// The finaliser of splitmix64: every input bit reaches every output bit.
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

template <class T>
std::optional<T> ParseNumber(std::string_view text) {
  const absl::string_view view(text.data(), text.size());
  T value{};
  if constexpr (std::is_floating_point_v<T>) {
    if (!absl::SimpleAtod(view, &value) || !std::isfinite(value)) return std::nullopt;
  } else {
    if (!absl::SimpleAtoi(view, &value)) return std::nullopt;
  }
  return value;
}

absl::StatusOr<LengthMix> ParseLogNormal(std::string_view text) {
  std::vector<double> numbers;
  for (const auto piece : absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    const auto number = ParseNumber<double>(std::string_view(piece.data(), piece.size()));
    if (!number) return absl::InvalidArgumentError("not a number");
    numbers.push_back(*number);
  }
  if (numbers.size() != 2 && numbers.size() != 4) {
    return absl::InvalidArgumentError("MEDIAN,SIGMA or MEDIAN,SIGMA,MIN,MAX expected");
  }
  LengthMix mix;
  mix.lognormal = true;
  mix.median = numbers[0];
  mix.sigma = numbers[1];
  if (mix.median < 1 || mix.median > kMaxLength || mix.sigma < 0 || mix.sigma > 10) {
    return absl::InvalidArgumentError("the median is at least 1, sigma 0 to 10");
  }
  mix.max = std::min<int64_t>(kMaxLength, std::llround(16 * mix.median));
  if (numbers.size() == 4) {
    if (std::abs(numbers[2]) > kMaxLength || std::abs(numbers[3]) > kMaxLength) {
      return absl::InvalidArgumentError("bounds are at most 2^24");
    }
    mix.min = std::llround(numbers[2]);
    mix.max = std::llround(numbers[3]);
  }
  return mix;
}

absl::StatusOr<LengthMix> ParseRange(std::string_view text) {
  LengthMix mix;
  const size_t dash = text.find('-');
  const auto low = ParseNumber<int64_t>(text.substr(0, dash));
  const auto high =
      dash == std::string_view::npos ? low : ParseNumber<int64_t>(text.substr(dash + 1));
  if (!low || !high) return absl::InvalidArgumentError("not a number");
  mix.min = *low;
  mix.max = *high;
  return mix;
}

}  // namespace

BenchRandom::BenchRandom(uint64_t seed, uint64_t purpose, uint64_t index)
    : state_(Mix(Mix(Mix(seed + 0x9e3779b97f4a7c15u) + purpose) + index)) {}

uint64_t BenchRandom::Next() { return Mix(state_ += 0x9e3779b97f4a7c15u); }

double BenchRandom::Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }

// The bias of the multiplication is below bound / 2^64.
uint64_t BenchRandom::Below(uint64_t bound) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>(Wide{Next()} * bound >> 64);
}

// Box-Muller; 1 - u keeps the logarithm finite.
double BenchRandom::Normal() {
  const double radius = std::sqrt(-2 * std::log(1 - Uniform()));
  return radius * std::cos(2 * M_PI * Uniform());
}

double BenchRandom::Exponential() { return -std::log(1 - Uniform()); }

absl::StatusOr<LengthMix> LengthMix::Parse(std::string_view text) {
  constexpr std::string_view kLogNormal = "lognormal:";
  absl::StatusOr<LengthMix> mix = text.substr(0, kLogNormal.size()) == kLogNormal
                                      ? ParseLogNormal(text.substr(kLogNormal.size()))
                                      : ParseRange(text);
  if (mix.ok() && (mix->min < 1 || mix->max < mix->min || mix->max > kMaxLength)) {
    mix = absl::InvalidArgumentError("at least 1, at most 2^24, the smaller one first");
  }
  if (!mix.ok()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("not a length: '%s' (%s); try 128, 64-256 or lognormal:200,0.8,4,1024",
                        text, mix.status().message()));
  }
  return mix;
}

int64_t LengthMix::Draw(BenchRandom& random) const {
  if (!lognormal) return min + static_cast<int64_t>(random.Below(max - min + 1));
  const double drawn = median * std::exp(sigma * random.Normal());
  return std::llround(std::clamp(drawn, static_cast<double>(min), static_cast<double>(max)));
}

std::string LengthMix::ToString() const {
  if (lognormal) return absl::StrFormat("lognormal:%g,%g,%d,%d", median, sigma, min, max);
  return min == max ? absl::StrFormat("%d", min) : absl::StrFormat("%d-%d", min, max);
}

absl::StatusOr<Workload> Workload::Create(WorkloadOptions options) {
  if (options.text.empty() && options.vocabulary == 0) {
    return absl::InvalidArgumentError("the size of the vocabulary is not known: give --vocab");
  }
  if (options.shared_prefix_tokens < 0 || options.prefix_groups < 1) {
    return absl::InvalidArgumentError("shared prefixes need a length of 0 or more and one group");
  }
  if (options.bos >= 0 && options.vocabulary != 0 && options.bos >= options.vocabulary) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the first token %d is outside the vocabulary of %d entries", options.bos,
                        options.vocabulary));
  }
  return Workload(std::move(options));
}

// Control tokens and bytes are at the bottom of Gemma's vocabularies, image tokens at the top.
Workload::Workload(WorkloadOptions options) : options_(std::move(options)) {
  const uint32_t v = options_.vocabulary;
  first_id_ = std::min<uint32_t>(1000, v / 4);
  ids_ = std::max<uint32_t>(1, v / 4 * 3 - first_id_);
}

void Workload::Append(BenchRandom& random, int64_t count, std::vector<uint32_t>* prompt) const {
  if (options_.text.empty()) {
    for (int64_t i = 0; i < count; ++i) {
      prompt->push_back(first_id_ + static_cast<uint32_t>(random.Below(ids_)));
    }
    return;
  }
  size_t at = random.Below(options_.text.size());  // a short text starts over
  for (int64_t i = 0; i < count; ++i) {
    prompt->push_back(options_.text[at]);
    if (++at == options_.text.size()) at = 0;
  }
}

BenchRequest Workload::Make(int64_t index) const {
  const auto key = static_cast<uint64_t>(index);
  BenchRandom lengths(options_.seed, kLengths, key);
  BenchRandom content(options_.seed, kContent, key);
  BenchRequest request;
  request.index = index;
  const int64_t own = options_.prompt_tokens.Draw(lengths);
  request.output_tokens = static_cast<uint32_t>(options_.output_tokens.Draw(lengths));
  request.sampling_seed = BenchRandom(options_.seed, kSampling, key).Next();
  // The first token counts: it takes the place of one of the prefix, else of one of its own.
  const int64_t first = options_.bos >= 0 ? 1 : 0;
  request.prompt.reserve(static_cast<size_t>(options_.shared_prefix_tokens + own));
  if (first > 0) request.prompt.push_back(static_cast<uint32_t>(options_.bos));
  if (options_.shared_prefix_tokens > 0) {
    const uint64_t group = content.Below(static_cast<uint64_t>(options_.prefix_groups));
    BenchRandom shared(options_.seed, kPrefix, group);
    Append(shared, options_.shared_prefix_tokens - first, &request.prompt);
  }
  Append(content, options_.shared_prefix_tokens + own - std::ssize(request.prompt),
         &request.prompt);
  return request;
}

double Workload::SecondsBefore(int64_t index) const {
  return BenchRandom(options_.seed, kArrival, static_cast<uint64_t>(index)).Exponential() /
         options_.rate;
}

int64_t Workload::max_prompt_tokens() const {
  return options_.shared_prefix_tokens + options_.prompt_tokens.max;
}

int64_t Workload::max_total_tokens() const {
  return max_prompt_tokens() + options_.output_tokens.max;
}

}  // namespace lapidary
