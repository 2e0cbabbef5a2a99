#include "kernels/attention/kv_page.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "common/base/half.h"

namespace lapidary {
namespace {

// Element of key column c of a token: c and c + 1 are a pair.
int KeyPlace(KvType type, int c, int slot) {
  return type == KvType::kBf16 ? (c / 2 * kPageTokens + slot) * 2 + c % 2 : c * kPageTokens + slot;
}

// Element of a row of values that holds place p: in bf16 p and p + 16 of each 32 share a lane.
int RowPlace(KvType type, int p) {
  return type == KvType::kBf16 ? p / 32 * 32 + p % 16 * 2 + p % 32 / 16 : p;
}

// Column of k at place i of a folded page's keys.
int KeyColumn(const KvLayout& layout, int i) {
  if (layout.format == KvFormat::kSplit || i < layout.rotated_pairs) return i;
  return layout.head_dim / 2 + i - layout.rotated_pairs;
}

int StoredKeys(const KvLayout& layout) {
  return layout.format == KvFormat::kSplit ? layout.head_dim : layout.key_columns();
}

// code = round(x / scale), scale = largest / 127. Tiny rows (below 1e-30) are zero.
struct Quantizer {
  void See(float x) {
    const float size = std::fabs(x);
    if (size > largest) largest = size;
    finite = finite && size <= std::numeric_limits<float>::max();
  }
  float scale() const {
    if (!finite) return std::numeric_limits<float>::quiet_NaN();
    return largest < 1e-30f ? 0.0f : largest / 127.0f;
  }
  float inverse() const { return !finite || largest < 1e-30f ? 0.0f : 127.0f / largest; }

  float largest = 0;
  bool finite = true;
};

int8_t Code(float x, float inverse) {
  return inverse == 0.0f ? int8_t{0} : static_cast<int8_t>(std::lrint(x * inverse));
}

float* KeyScales(const KvLayout& layout, uint8_t* head) {
  return reinterpret_cast<float*>(head + layout.key_bytes() + layout.value_bytes());
}
float* ValueScales(const KvLayout& layout, uint8_t* head) {
  return KeyScales(layout, head) + (layout.key_columns() > 0 ? kPageTokens : 0);
}

void Put(KvType type, uint8_t* elements, int64_t place, float x, float inverse) {
  if (type == KvType::kFp32) {
    reinterpret_cast<float*>(elements)[place] = x;
  } else if (type == KvType::kBf16) {
    reinterpret_cast<uint16_t*>(elements)[place] = ToBf16(x);
  } else {
    reinterpret_cast<int8_t*>(elements)[place] = Code(x, inverse);
  }
}
float Get(KvType type, const uint8_t* elements, int64_t place, float scale) {
  if (type == KvType::kFp32) return reinterpret_cast<const float*>(elements)[place];
  if (type == KvType::kBf16) return FromBf16(reinterpret_cast<const uint16_t*>(elements)[place]);
  return static_cast<float>(reinterpret_cast<const int8_t*>(elements)[place]) * scale;
}

}  // namespace

void WriteKv(const KvLayout& layout, uint8_t* head, int slot, const float* key,
             const float* value) {
  const KvType type = layout.type;
  const int keys = StoredKeys(layout), dim = layout.head_dim;
  Quantizer of_key, of_value;
  if (type == KvType::kInt8) {
    for (int i = 0; i < keys; ++i) of_key.See(key[KeyColumn(layout, i)]);
    for (int c = 0; c < dim; ++c) of_value.See(value[c]);
    if (keys > 0) KeyScales(layout, head)[slot] = of_key.scale();
    ValueScales(layout, head)[slot] = of_value.scale();
  }
  for (int i = 0; i < keys; ++i) {
    Put(type, head, KeyPlace(type, i, slot), key[KeyColumn(layout, i)], of_key.inverse());
  }
  uint8_t* row =
      head + layout.key_bytes() + int64_t{slot} * layout.value_columns() * layout.element_bytes();
  for (int c = 0; c < dim; ++c) {
    Put(type, row, RowPlace(type, layout.ValuePlace(c)), value[c], of_value.inverse());
  }
}

void ReadKv(const KvLayout& layout, const uint8_t* head, int slot, float* key, float* value) {
  const KvType type = layout.type;
  const int keys = StoredKeys(layout), dim = layout.head_dim;
  float key_scale = 1, value_scale = 1;
  if (type == KvType::kInt8) {
    auto* writable = const_cast<uint8_t*>(head);
    if (keys > 0) key_scale = KeyScales(layout, writable)[slot];
    value_scale = ValueScales(layout, writable)[slot];
  }
  std::memset(key, 0, sizeof(float) * dim);
  for (int i = 0; i < keys; ++i) {
    key[KeyColumn(layout, i)] = Get(type, head, KeyPlace(type, i, slot), key_scale);
  }
  const uint8_t* row =
      head + layout.key_bytes() + int64_t{slot} * layout.value_columns() * layout.element_bytes();
  for (int c = 0; c < dim; ++c) {
    value[c] = Get(type, row, RowPlace(type, layout.ValuePlace(c)), value_scale);
  }
}

}  // namespace lapidary
