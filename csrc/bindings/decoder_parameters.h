// The parameters and pools of a decoder in the tensors of a caller; decoder_step_layout.h has their order.
#pragma once

#include <optional>
#include <vector>

#include "../decoder_step_cpu.h"
#include "attention.h"
#include "decoder_step_layout.h"
#include "int4.h"
#include "tensors.h"

namespace bertgen {

// Takes the tensors of parts in their order. Those of a part are of one type, float32, bfloat16 or float16; beside a
// weight in 4 bits float32.
class Parameters {
 public:
  Parameters(const std::vector<Tensor>& tensors, const std::optional<Tensor>& codebook)
      : tensors_(tensors), codebook_(codebook) {}

  // [outputs, inputs], or any number of outputs for -1.
  Dense dense_part(int64_t outputs, int64_t inputs, const char* name) {
    const Tensor& weight = next(name);
    Dense part{};
    if (weight.dtype() == kTypeOf<uint8_t>) {
      const Tensor &scale = next(name), &zero = next(name);
      part.int4 = int4_weight(weight, scale, zero.numel() == 0 ? std::nullopt : std::optional<Tensor>(zero), codebook_);
      check_size(weight, 1, inputs / 2, name);
    } else {
      part.type = float_type(weight, name);
      part.weight = dense_floats(weight, part.type, {size_of(weight, 2, 0), inputs}, name);
    }
    if (outputs >= 0) check_size(weight, 0, outputs, name);
    part.outputs = weight.size(0);
    part.inputs = inputs;
    part.bias = vector_or_null(part.outputs, part.type, name);
    return part;
  }

  Norm norm_part(int64_t size, const char* name) {
    const FloatType type = next_type(name);
    const Norm part{vector_or_null(size, type, name), vector_or_null(size, type, name), type};
    BERTGEN_CHECK(part.weight != nullptr && part.shift != nullptr, name, " is empty");
    return part;
  }

  // [elements], or null for an empty tensor.
  const void* vector_or_null(int64_t size, FloatType type, const char* name) {
    const Tensor& tensor = next(name);
    return tensor.numel() == 0 ? nullptr : dense_floats(tensor, type, {size}, name);
  }

  // A table [any number of rows, columns], and its rows.
  const void* table(int64_t columns, FloatType type, int64_t* rows, const char* name) {
    const Tensor& tensor = next(name);
    *rows = size_of(tensor, 2, 0);
    return dense_floats(tensor, type, {*rows, columns}, name);
  }

  // The type of the next tensor, which is not taken.
  FloatType next_type(const char* name) {
    const FloatType type = float_type(next(name), name);
    --place_;
    return type;
  }

  // The layers without their pools.
  std::vector<DecoderLayer> layers(size_t count, int64_t hidden, bool cross) {
    std::vector<DecoderLayer> layers(count);
    for (DecoderLayer& layer : layers) {
      for (const LayerPart& part : kLayerParts) {
        if (part.cross && !cross) continue;
        if (part.dense == nullptr) {
          layer.*part.norm = norm_part(hidden, part.name);
        } else {
          const int64_t outputs = part.dense == &DecoderLayer::intermediate ? -1 : hidden;
          const int64_t inputs = part.dense == &DecoderLayer::output ? layer.intermediate.outputs : hidden;
          layer.*part.dense = dense_part(outputs, inputs, part.name);
        }
      }
    }
    return layers;
  }

  // Whether the next tensor is empty, which is then taken: it stands for a part that is absent.
  bool skip_empty() {
    const bool skips = place_ < tensors_.size() && tensors_[place_].numel() == 0;
    place_ += skips;
    return skips;
  }

  bool empty() const { return place_ == tensors_.size(); }

 private:
  const Tensor& next(const char* name) {
    BERTGEN_CHECK(place_ < tensors_.size(), "the parameters end before ", name);
    return tensors_[place_++];
  }

  const std::vector<Tensor>& tensors_;
  const std::optional<Tensor>& codebook_;
  size_t place_ = 0;
};

// Sets the pools of all layers from lists of the keys of each layer, then the values of each, all of one type; without
// sources `source_pools` is empty.
inline void set_pools(std::vector<DecoderLayer>& layers, const std::vector<Tensor>& pools,
                      const std::vector<Tensor>& source_pools, const Shape& shape) {
  const size_t count = layers.size();
  const auto pools_at = [&](const std::vector<Tensor>& list, size_t layer) {
    const Tensor &keys = list[kKeys * count + layer], &values = list[kValues * count + layer];
    return pools_of(keys, values, float_type(pools[0], kLayerPoolNames[kKeys]), shape, size_of(list[0], 3, 0),
                    kLayerPoolNames[kKeys], kLayerPoolNames[kValues]);
  };
  BERTGEN_CHECK(pools.size() == count * kLayerPools, "there are ", pools.size(), " pools, not ", kLayerPools,
                " for each of ", count, " layers");
  BERTGEN_CHECK(source_pools.empty() || source_pools.size() == pools.size(), "there are ", source_pools.size(),
                " pools of sources, not ", pools.size());
  for (size_t i = 0; i < count; ++i) {
    layers[i].pools = pools_at(pools, i);
    if (!source_pools.empty()) layers[i].source_pools = pools_at(source_pools, i);
  }
}

}  // namespace bertgen
