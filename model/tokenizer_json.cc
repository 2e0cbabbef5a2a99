// Reads Hugging Face's tokenizer.json (30 MB and 515,000 merges for Gemma) in one forward pass, and
// the small files that stand beside it.
#include <simdjson.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "model/tokenizer_parts.h"

namespace lapidary::internal {
namespace {

namespace ondemand = simdjson::ondemand;

// A larger id than any vocabulary has, so that one number cannot ask for gigabytes.
constexpr int64_t kMaxId = int64_t{1} << 24;

// What the file says, as views into the parser's memory.
struct JsonVocabulary {
  struct Entry {
    std::string_view name;
    int64_t id;
  };
  struct Added {
    std::string_view name;
    int64_t id;
    bool special;
  };
  std::vector<Entry> entries;
  std::vector<Added> added;
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  std::string_view unknown;
  bool byte_fallback = false;
};

class JsonReader {
 public:
  explicit JsonReader(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<JsonVocabulary> Read() {
    if (const auto error = simdjson::padded_string::load(path_).get(text_)) {
      return Bad("file", error);
    }
    ondemand::document document;
    ondemand::object root;
    if (const auto error = parser_.iterate(text_).get(document)) return Bad("file", error);
    if (const auto error = document.get_object().get(root)) return Bad("file", error);
    bool has_model = false;
    for (auto field : root) {
      std::string_view key;
      ondemand::value value;
      if (const auto error = field.unescaped_key().get(key)) return Bad("file", error);
      if (const auto error = field.value().get(value)) return Bad(key, error);
      if (key == "model") {
        RETURN_IF_ERROR(ReadModel(value));
        has_model = true;
      } else if (key == "added_tokens") {
        RETURN_IF_ERROR(ReadAdded(value));
      } else if (key == "normalizer") {
        RETURN_IF_ERROR(CheckNormalizer(value));
      } else if (key == "pre_tokenizer") {
        RETURN_IF_ERROR(CheckPreTokenizer(value));
      }
    }
    if (!has_model) return absl::InvalidArgumentError(path_ + ": there is no \"model\"");
    return std::move(result_);
  }

 private:
  absl::Status Bad(std::string_view where, simdjson::error_code error) const {
    const std::string message =
        absl::StrFormat("%s: %s: %s", path_, where, simdjson::error_message(error));
    if (error == simdjson::IO_ERROR) return absl::NotFoundError(message);
    return absl::InvalidArgumentError(message);
  }
  absl::Status Unsupported(std::string_view what) const {
    return absl::UnimplementedError(
        absl::StrFormat("%s: %s is not part of a Gemma tokenizer", path_, what));
  }

  absl::Status ReadModel(ondemand::value value) {
    ondemand::object model;
    if (const auto error = value.get_object().get(model)) return Bad("model", error);
    for (auto field : model) {
      std::string_view key;
      ondemand::value item;
      if (const auto error = field.unescaped_key().get(key)) return Bad("model", error);
      if (const auto error = field.value().get(item)) return Bad(key, error);
      std::string_view text;
      bool flag = false;
      if (key == "vocab") {
        RETURN_IF_ERROR(ReadVocab(item));
      } else if (key == "merges") {
        RETURN_IF_ERROR(ReadMerges(item));
      } else if (key == "type") {
        if (item.get_string().get(text) || text != "BPE") return Unsupported("a model but BPE");
      } else if (key == "unk_token") {
        if (!item.get_string().get(text)) result_.unknown = text;
      } else if (key == "byte_fallback") {
        if (!item.get_bool().get(flag)) result_.byte_fallback = flag;
      } else if (key == "ignore_merges") {
        if (!item.get_bool().get(flag) && flag) return Unsupported("model.ignore_merges");
      } else if (key == "continuing_subword_prefix" || key == "end_of_word_suffix") {
        if (!item.get_string().get(text) && !text.empty()) return Unsupported(key);
      } else if (key == "dropout") {
        if (!item.is_null().value_unsafe()) return Unsupported("model.dropout");
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadVocab(ondemand::value value) {
    ondemand::object vocab;
    if (const auto error = value.get_object().get(vocab)) return Bad("model.vocab", error);
    result_.entries.reserve(1 << 18);
    for (auto field : vocab) {
      JsonVocabulary::Entry entry;
      if (const auto error = field.unescaped_key().get(entry.name))
        return Bad("model.vocab", error);
      if (const auto error = field.value().get_int64().get(entry.id)) {
        return Bad(absl::StrFormat("model.vocab[\"%s\"]", entry.name), error);
      }
      RETURN_IF_ERROR(CheckEntry(entry.name, entry.id));
      result_.entries.push_back(entry);
    }
    return absl::OkStatus();
  }

  absl::Status CheckEntry(std::string_view name, int64_t id) const {
    if (id < 0 || id >= kMaxId) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: entry \"%s\" has id %d, ids lie in [0, %d)", path_, name, id, kMaxId));
    }
    if (name.size() > kLongestEntry) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: entry %d is %d bytes long, the limit is %d", path_, id, name.size(), kLongestEntry));
    }
    return absl::OkStatus();
  }

  // Either "left right" or ["left", "right"].
  absl::Status ReadMerges(ondemand::value value) {
    ondemand::array merges;
    if (const auto error = value.get_array().get(merges)) return Bad("model.merges", error);
    result_.merges.reserve(1 << 19);
    for (auto element : merges) {
      ondemand::value merge;
      ondemand::json_type type;
      if (const auto error = element.get(merge)) return Bad("model.merges", error);
      if (const auto error = merge.type().get(type)) return Bad("model.merges", error);
      std::string_view parts[2];
      if (type == ondemand::json_type::string) {
        std::string_view line;
        if (const auto error = merge.get_string().get(line)) return Bad("model.merges", error);
        if (line.substr(0, 8) == "#version") continue;
        const size_t space = line.find(' ');
        if (space == std::string_view::npos || space + 1 == line.size() || space == 0) {
          return absl::InvalidArgumentError(absl::StrFormat(
              "%s: merge %d, \"%s\", is not two pieces", path_, result_.merges.size(), line));
        }
        parts[0] = line.substr(0, space);
        parts[1] = line.substr(space + 1);
      } else {
        ondemand::array pair;
        size_t count = 0;
        if (const auto error = merge.get_array().get(pair)) return Bad("model.merges", error);
        for (auto part : pair) {
          std::string_view piece;
          if (const auto error = part.get_string().get(piece)) return Bad("model.merges", error);
          if (count < 2) parts[count] = piece;
          ++count;
        }
        if (count != 2) {
          return absl::InvalidArgumentError(absl::StrFormat("%s: merge %d has %d pieces, not two",
                                                            path_, result_.merges.size(), count));
        }
      }
      result_.merges.emplace_back(parts[0], parts[1]);
    }
    return absl::OkStatus();
  }

  absl::Status ReadAdded(ondemand::value value) {
    ondemand::array added;
    if (const auto error = value.get_array().get(added)) return Bad("added_tokens", error);
    for (auto element : added) {
      ondemand::object token;
      if (const auto error = element.get_object().get(token)) return Bad("added_tokens", error);
      JsonVocabulary::Added entry = {{}, -1, false};
      for (auto field : token) {
        std::string_view key;
        ondemand::value item;
        simdjson::error_code error = field.unescaped_key().get(key);
        if (!error) error = field.value().get(item);
        bool flag = false;
        if (!error && key == "id") error = item.get_int64().get(entry.id);
        if (!error && key == "content") error = item.get_string().get(entry.name);
        if (!error && key == "special") error = item.get_bool().get(entry.special);
        if (!error && (key == "lstrip" || key == "rstrip" || key == "single_word")) {
          error = item.get_bool().get(flag);
          if (flag) return Unsupported(absl::StrFormat("added_tokens.%s", key));
        }
        if (error) return Bad("added_tokens", error);
      }
      RETURN_IF_ERROR(CheckEntry(entry.name, entry.id));
      if (entry.name.empty()) {
        return absl::InvalidArgumentError(
            absl::StrFormat("%s: added token %d has no content", path_, entry.id));
      }
      result_.added.push_back(entry);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<nlohmann::json> Small(ondemand::value value, std::string_view where) const {
    std::string_view raw;
    if (const auto error = simdjson::to_json_string(value).get(raw)) return Bad(where, error);
    nlohmann::json parsed = nlohmann::json::parse(raw, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_discarded()) return Bad(where, simdjson::TAPE_ERROR);
    return parsed;
  }

  // Spaces become U+2581 and nothing else changes.
  absl::Status CheckNormalizer(ondemand::value value) const {
    ASSIGN_OR_RETURN(const nlohmann::json normalizer, Small(value, "normalizer"));
    const nlohmann::json wanted = {
        {"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\xE2\x96\x81"}};
    const nlohmann::json in_list = {{"type", "Sequence"}, {"normalizers", {wanted}}};
    if (normalizer == wanted || normalizer == in_list) return absl::OkStatus();
    return Unsupported(absl::StrFormat("the normalizer %s", normalizer.dump()));
  }

  // None, or a split at spaces: the normalizer leaves none, so that it does nothing.
  absl::Status CheckPreTokenizer(ondemand::value value) const {
    ASSIGN_OR_RETURN(const nlohmann::json split, Small(value, "pre_tokenizer"));
    if (split.is_null()) return absl::OkStatus();
    if (split.is_object() && split.value("type", nlohmann::json()) == "Split" &&
        split.value("pattern", nlohmann::json()) == nlohmann::json{{"String", " "}}) {
      return absl::OkStatus();
    }
    return Unsupported(absl::StrFormat("the pre_tokenizer %s", split.dump()));
  }

  const std::string path_;
  simdjson::padded_string text_;
  ondemand::parser parser_;
  JsonVocabulary result_;
};

// Vocabulary, and the entries matched whole.
absl::Status AddEntries(const std::string& path, const JsonVocabulary& json,
                        TokenizerParts* parts) {
  int64_t size = 0, bytes = 0;
  for (const auto& entry : json.entries) size = std::max(size, entry.id + 1);
  for (const auto& entry : json.added) size = std::max(size, entry.id + 1);
  struct Slot {
    std::string_view name;
    TokenKind kind = TokenKind::kUnused;
  };
  std::vector<Slot> slots(size);
  const auto place = [&](std::string_view name, int64_t id, TokenKind kind) {
    Slot& slot = slots[id];
    if (!slot.name.empty() && slot.name != name) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: \"%s\" and \"%s\" share the id %d", path, slot.name, name, id));
    }
    slot = {name, kind};
    bytes += static_cast<int64_t>(name.size());
    return absl::OkStatus();
  };
  for (const auto& entry : json.entries) {
    // Vocabulary::Add keeps this kind only for a name that is one.
    const bool byte = json.byte_fallback && entry.name.size() == 6 && entry.name[0] == '<' &&
                      entry.name[1] == '0' && entry.name[2] == 'x' && entry.name[5] == '>';
    const bool unknown = entry.name == json.unknown;
    RETURN_IF_ERROR(place(entry.name, entry.id,
                          byte      ? TokenKind::kByte
                          : unknown ? TokenKind::kControl
                                    : TokenKind::kNormal));
  }
  for (const auto& entry : json.added) {
    RETURN_IF_ERROR(
        place(entry.name, entry.id, entry.special ? TokenKind::kControl : TokenKind::kUserDefined));
    auto& list = entry.special ? parts->markers : parts->runs;
    list.push_back({std::string(entry.name), static_cast<TokenId>(entry.id)});
  }
  parts->vocab = std::make_unique<Vocabulary>();
  parts->vocab->Reserve(size, bytes);
  for (const Slot& slot : slots) parts->vocab->Add(slot.name, slot.kind);
  parts->vocab->Seal(/*merge_user_defined=*/true);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Bpe::Pair>> ResolveMerges(const std::string& path,
                                                     const JsonVocabulary& json,
                                                     const Vocabulary& vocab) {
  std::vector<Bpe::Pair> pairs;
  pairs.reserve(json.merges.size());
  std::string joined, last_joined;
  std::optional<TokenId> merged;  // of last_joined: all ways to split a piece stand together
  for (const auto& [left, right] : json.merges) {
    joined.assign(left).append(right);
    if (joined != last_joined) {
      merged = vocab.Find(joined);
      last_joined = joined;
    }
    const std::optional<TokenId> ids[] = {vocab.Find(left), vocab.Find(right), merged};
    if (!ids[0] || !ids[1] || !ids[2]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: merge %d of \"%s\" and \"%s\": \"%s\" is not in the vocabulary",
                          path, pairs.size(), left, right,
                          !ids[0]   ? left
                          : !ids[1] ? right
                                    : std::string_view(joined)));
    }
    pairs.push_back({*ids[0], *ids[1], *ids[2]});
  }
  return pairs;
}

// A small JSON file; null when there is none. A broken one is an error: half a chat format is
// worse.
absl::StatusOr<nlohmann::json> ReadSmallJson(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return nlohmann::json();
  nlohmann::json parsed = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is not JSON", path.string()));
  }
  return parsed;
}

// "text", or {"content": "text"}, or [{"name": "default", "template": "text"}].
std::string TextOf(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content")) return TextOf(value["content"]);
  if (!value.is_array()) return {};
  for (const nlohmann::json& item : value) {
    if (item.is_object() && item.value("name", nlohmann::json()) == "default") {
      return TextOf(item.value("template", nlohmann::json()));
    }
  }
  return {};
}

absl::Status ReadNeighbours(const std::filesystem::path& directory, TokenizerParts* parts) {
  ASSIGN_OR_RETURN(nlohmann::json config, ReadSmallJson(directory / "tokenizer_config.json"));
  if (!config.is_object()) config = nlohmann::json::object();
  std::string bos = TextOf(config.value("bos_token", nlohmann::json()));
  if (bos.empty()) bos = "<bos>";
  parts->bos = parts->vocab->Find(bos).value_or(kNoToken);

  std::ifstream jinja(directory / "chat_template.jinja", std::ios::binary);
  if (jinja) {
    parts->chat_template.assign(std::istreambuf_iterator<char>(jinja), {});
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const nlohmann::json file, ReadSmallJson(directory / "chat_template.json"));
  if (file.is_object()) {
    parts->chat_template = TextOf(file.value("chat_template", nlohmann::json()));
  }
  if (parts->chat_template.empty()) {
    parts->chat_template = TextOf(config.value("chat_template", nlohmann::json()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerParts> ReadTokenizerJson(const std::string& directory) {
  const std::string path = (std::filesystem::path(directory) / "tokenizer.json").string();
  JsonReader reader(path);
  ASSIGN_OR_RETURN(const JsonVocabulary json, reader.Read());
  TokenizerParts parts;
  RETURN_IF_ERROR(AddEntries(path, json, &parts));
  ASSIGN_OR_RETURN(const std::vector<Bpe::Pair> merges, ResolveMerges(path, json, *parts.vocab));
  const TokenId unknown = parts.vocab->Find(json.unknown).value_or(kNoToken);
  parts.bpe = std::make_unique<Bpe>(*parts.vocab, merges, unknown);
  RETURN_IF_ERROR(ReadNeighbours(directory, &parts));
  return parts;
}

}  // namespace lapidary::internal
