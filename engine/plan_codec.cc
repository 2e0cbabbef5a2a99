#include "engine/plan_codec.h"

#include <bit>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace lapidary {

namespace {

static_assert(std::endian::native == std::endian::little);
constexpr uint32_t kFormat = 0x4c505002;  // "LPP", version 2

// One description of each struct serves both directions: Visit(codec, value) names the fields once,
// in order, and the codec writes or reads them.
class Encoder {
 public:
  template <class T>
  requires(std::is_arithmetic_v<T> || std::is_enum_v<T>) void Field(const T& value,
                                                                    int /*enumerators*/ = 0) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void Field(const bool& value) { Field(static_cast<uint8_t>(value)); }
  template <class Tag, class Int>
  void Field(const StrongId<Tag, Int>& id) {
    Field(id.value);
  }
  template <class T, class Element>
  void List(const std::vector<T>& list, Element element) {
    Field(static_cast<uint32_t>(list.size()));
    for (const T& value : list) element(*this, value);
  }

  std::string TakeBytes() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Decoder {
 public:
  explicit Decoder(std::string_view bytes) : bytes_(bytes) {}

  template <class T>
  requires(std::is_arithmetic_v<T>) void Field(T& value) {
    if (bytes_.size() - at_ < sizeof(T)) return Fail("ends in the middle of a field");
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
  }
  void Field(bool& value) {
    uint8_t byte = 0;
    Field(byte);
    if (byte > 1) return Fail("has a boolean that is neither 0 nor 1");
    value = byte != 0;
  }
  template <class T>
  requires(std::is_enum_v<T>) void Field(T& value, int enumerators) {
    std::underlying_type_t<T> number = 0;
    Field(number);
    if (number >= enumerators) return Fail("has an unknown enumerator");
    value = static_cast<T>(number);
  }
  template <class Tag, class Int>
  void Field(StrongId<Tag, Int>& id) {
    Field(id.value);
  }
  // Grows as elements are read: a wrong length cannot allocate more than the bytes that are there.
  template <class T, class Element>
  void List(std::vector<T>& list, Element element) {
    uint32_t size = 0;
    Field(size);
    if (size > bytes_.size() - at_) return Fail("has a list longer than itself");
    list.clear();
    for (uint32_t i = 0; i < size && ok(); ++i) {
      T value{};
      element(*this, value);
      list.push_back(std::move(value));
    }
  }

  void Fail(const char* what) {
    if (problem_ == nullptr) problem_ = what;
    at_ = bytes_.size();
  }
  bool ok() const { return problem_ == nullptr; }
  bool at_end() const { return at_ == bytes_.size(); }
  absl::Status status() const {
    if (ok()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrFormat("a step plan of %d bytes %s", bytes_.size(), problem_));
  }

 private:
  const std::string_view bytes_;
  size_t at_ = 0;
  const char* problem_ = nullptr;
};

constexpr auto kElement = [](auto& codec, auto& value) { codec.Field(value); };

template <class Codec, class Params>
void VisitSampling(Codec& codec, Params& p) {
  codec.Field(p.temperature);
  codec.Field(p.top_k);
  codec.Field(p.top_p);
  codec.Field(p.min_p);
  codec.Field(p.repetition_penalty);
  codec.Field(p.presence_penalty);
  codec.Field(p.frequency_penalty);
  codec.List(p.logit_bias, [](auto& c, auto& bias) {
    c.Field(bias.first);
    c.Field(bias.second);
  });
  codec.List(p.suppressed, kElement);
  codec.Field(p.seed);
  codec.List(p.stop_ids, kElement);
  codec.Field(p.ignore_eos);
  codec.Field(p.min_tokens);
  codec.Field(p.max_tokens);
  codec.Field(p.logprobs);
  codec.Field(p.prompt_logprobs);
}

template <class Codec, class Sequence>
void VisitSequence(Codec& codec, Sequence& sequence) {
  codec.Field(sequence.id);
  codec.Field(sequence.choice);
  codec.List(sequence.tokens, kElement);
  codec.Field(sequence.prompt_len);
  codec.Field(sequence.cached_len);
  codec.Field(sequence.needs_host_mask);
  VisitSampling(codec, sequence.sampling);
}

template <class Codec, class Row>
void VisitRow(Codec& codec, Row& row) {
  codec.Field(row.seq);
  codec.Field(row.start);
  codec.Field(row.len);
  codec.Field(row.source, 2);
  codec.Field(row.source_step);
  codec.Field(row.source_row);
  codec.Field(row.logits, 3);
  codec.Field(row.samples);
  codec.Field(row.needs_host_mask);
  for (auto& pages : row.pages_added) codec.List(pages, kElement);
}

template <class Codec, class Plan>
void VisitPlan(Codec& codec, Plan& plan) {
  codec.Field(plan.epoch);
  codec.Field(plan.step);
  codec.List(plan.added, [](auto& c, auto& sequence) { VisitSequence(c, sequence); });
  codec.List(plan.rows, [](auto& c, auto& row) { VisitRow(c, row); });
  codec.List(plan.finished, kElement);
  codec.Field(plan.shutdown);
}

}  // namespace

std::string EncodePlan(const StepPlan& plan) {
  Encoder encoder;
  encoder.Field(kFormat);
  VisitPlan(encoder, plan);
  return encoder.TakeBytes();
}

absl::StatusOr<StepPlan> DecodePlan(std::string_view bytes) {
  Decoder decoder(bytes);
  uint32_t format = 0;
  decoder.Field(format);
  if (decoder.ok() && format != kFormat) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "a step plan begins with %08x instead of %08x: another version", format, kFormat));
  }
  StepPlan plan;
  VisitPlan(decoder, plan);
  if (!decoder.ok()) return decoder.status();
  if (!decoder.at_end()) {
    decoder.Fail("has bytes after its end");
    return decoder.status();
  }
  return plan;
}

}  // namespace lapidary
