#include "cli/top/metrics_text.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"

namespace lapidary {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

bool IsBlank(char c) { return c == ' ' || c == '\t'; }
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c == ':';
}
bool IsName(char c) { return IsNameStart(c) || (c >= '0' && c <= '9'); }

std::optional<double> ToNumber(std::string_view text) {
  double value = 0;
  if (!absl::SimpleAtod(absl::string_view(text.data(), text.size()), &value)) return std::nullopt;
  return value;
}

// Reads one line from the left.
class Cursor {
 public:
  explicit Cursor(std::string_view line) : rest_(line) {}

  void SkipBlanks() {
    while (!rest_.empty() && IsBlank(rest_.front())) rest_.remove_prefix(1);
  }
  bool Take(char c) {
    if (rest_.empty() || rest_.front() != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  // Empty when there is none.
  std::string_view Name() {
    size_t n = 0;
    if (!rest_.empty() && IsNameStart(rest_.front())) {
      while (n < rest_.size() && IsName(rest_[n])) ++n;
    }
    return Cut(n);
  }
  std::string_view Word() {
    size_t n = 0;
    while (n < rest_.size() && !IsBlank(rest_[n])) ++n;
    return Cut(n);
  }
  // After its opening quote. False when it does not end.
  bool Quoted(std::string* out) {
    while (!rest_.empty()) {
      const char c = rest_.front();
      rest_.remove_prefix(1);
      if (c == '"') return true;
      if (c != '\\' || rest_.empty()) {
        out->push_back(c);
        continue;
      }
      const char escaped = rest_.front();
      rest_.remove_prefix(1);
      if (escaped != 'n' && escaped != '"' && escaped != '\\') out->push_back('\\');
      out->push_back(escaped == 'n' ? '\n' : escaped);
    }
    return false;
  }
  std::string_view rest() const { return rest_; }

 private:
  std::string_view Cut(size_t n) {
    const std::string_view out = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return out;
  }
  std::string_view rest_;
};

bool ParseLabels(Cursor& cursor, std::map<std::string, std::string>* labels) {
  while (true) {
    cursor.SkipBlanks();
    if (cursor.Take('}')) return true;
    const std::string name(cursor.Name());
    cursor.SkipBlanks();
    if (name.empty() || !cursor.Take('=')) return false;
    cursor.SkipBlanks();
    std::string value;
    if (!cursor.Take('"') || !cursor.Quoted(&value)) return false;
    (*labels)[name] = std::move(value);
    cursor.SkipBlanks();
    if (cursor.Take(',')) continue;  // also after the last
    return cursor.Take('}');
  }
}

std::optional<MetricSample> ParseSample(std::string_view line) {
  Cursor cursor(line);
  MetricSample sample;
  sample.name = std::string(cursor.Name());
  if (sample.name.empty()) return std::nullopt;
  cursor.SkipBlanks();
  if (cursor.Take('{') && !ParseLabels(cursor, &sample.labels)) return std::nullopt;
  cursor.SkipBlanks();
  const std::optional<double> value = ToNumber(cursor.Word());
  if (!value) return std::nullopt;
  sample.value = *value;
  // A timestamp, and an exemplar behind '#'.
  cursor.SkipBlanks();
  const std::string_view more = cursor.rest();
  if (!more.empty() && more.front() != '#' && !ToNumber(cursor.Word())) return std::nullopt;
  return sample;
}

// "# TYPE name type" and "# HELP name text"; other comments are nothing.
void ParseComment(std::string_view line, std::map<std::string, std::string>* types,
                  std::map<std::string, std::string>* helps) {
  Cursor cursor(line.substr(1));
  cursor.SkipBlanks();
  const std::string_view kind = cursor.Word();
  if (kind != "TYPE" && kind != "HELP") return;
  cursor.SkipBlanks();
  const std::string name(cursor.Word());
  cursor.SkipBlanks();
  (kind == "TYPE" ? types : helps)->insert_or_assign(name, std::string(cursor.rest()));
}

bool HasLabels(const MetricSample& sample, const std::map<std::string, std::string>& labels) {
  return std::all_of(labels.begin(), labels.end(), [&sample](const auto& want) {
    const auto found = sample.labels.find(want.first);
    return found != sample.labels.end() && found->second == want.second;
  });
}

}  // namespace

absl::StatusOr<MetricsPage> MetricsPage::Parse(std::string_view text) {
  MetricsPage page;
  for (int number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    while (!line.empty() && IsBlank(line.front())) line.remove_prefix(1);
    if (line.empty()) continue;
    if (line.front() == '#') {
      ParseComment(line, &page.types_, &page.helps_);
      continue;
    }
    std::optional<MetricSample> sample = ParseSample(line);
    if (!sample) {
      return absl::InvalidArgumentError(
          absl::StrFormat("line %d is no metric: %s", number, std::string(line.substr(0, 80))));
    }
    page.samples_.push_back(*std::move(sample));
  }
  return page;
}

std::optional<double> MetricsPage::Sum(std::string_view name,
                                       const std::map<std::string, std::string>& labels) const {
  std::optional<double> sum;
  for (const MetricSample& sample : samples_) {
    if (sample.name != name || std::isnan(sample.value) || !HasLabels(sample, labels)) continue;
    sum = sum.value_or(0) + sample.value;
  }
  return sum;
}

std::string MetricsPage::Label(std::string_view name, const std::string& label) const {
  for (const MetricSample& sample : samples_) {
    if (sample.name != name) continue;
    const auto found = sample.labels.find(label);
    return found == sample.labels.end() ? "" : found->second;
  }
  return "";
}

MetricBuckets MetricsPage::Buckets(std::string_view name,
                                   const std::map<std::string, std::string>& labels) const {
  const std::string bucket = std::string(name) + "_bucket";
  std::map<double, double> counts;
  for (const MetricSample& sample : samples_) {
    if (sample.name != bucket || std::isnan(sample.value) || !HasLabels(sample, labels)) continue;
    const auto le = sample.labels.find("le");
    if (le == sample.labels.end()) continue;
    const std::optional<double> bound = ToNumber(le->second);
    if (bound && !std::isnan(*bound)) counts[*bound] += sample.value;
  }
  return MetricBuckets(counts.begin(), counts.end());
}

std::optional<double> QuantileOfDifference(const MetricBuckets& before, const MetricBuckets& after,
                                           double q) {
  if (after.size() < 2 || after.back().first != kInf) return std::nullopt;
  if (!before.empty() && before.size() != after.size()) return std::nullopt;
  std::vector<double> counts;
  for (size_t i = 0; i < after.size(); ++i) {
    const double earlier = before.empty() ? 0 : before[i].second;
    counts.push_back(after[i].second - earlier);
  }
  const double total = counts.back();
  if (!(total > 0)) return std::nullopt;
  const double rank = std::clamp(q, 0.0, 1.0) * total;
  size_t i = 0;
  while (i + 1 < counts.size() && counts[i] < rank) ++i;
  if (i + 1 == counts.size()) return after[i - 1].first;
  const double high = after[i].first;
  const double low = i == 0 ? std::min(0.0, high) : after[i - 1].first;
  const double below = i == 0 ? 0 : counts[i - 1];
  const double inside = counts[i] - below;
  return inside > 0 ? low + (high - low) * (rank - below) / inside : high;
}

}  // namespace lapidary
