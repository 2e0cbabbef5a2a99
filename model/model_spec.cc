#include "model/model_spec.h"

namespace lapidary {

int ModelSpec::first_shared_layer() const {
  for (size_t i = 0; i < layers.size(); ++i) {
    if (shares_kv(static_cast<int>(i))) return static_cast<int>(i);
  }
  return static_cast<int>(layers.size());
}

int ModelSpec::owning_layers(KvFamily family) const {
  int owning = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].kind == family && !shares_kv(static_cast<int>(i))) ++owning;
  }
  return owning;
}

}  // namespace lapidary
