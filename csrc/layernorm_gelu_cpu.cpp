#include "layernorm_gelu_cpu.h"

#include <algorithm>
#include <cmath>

#include "vector.h"

namespace bertgen {
namespace {

constexpr int64_t kTaskElements = 2048;  // of gelu

BERTGEN_INLINE float sum_lanes(const Vector& x) {
  float sum = 0;
  for (int j = 0; j < kLanes; ++j) sum += x[j];
  return sum;
}

template <class Set>
BERTGEN_INLINE void add_norm_row(float* x, const float* residual, int64_t columns, const float* weight,
                                 const float* shift, float eps) {
  Vector sums = {}, squares = {};
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) {
    Vector part = vector_at(x + k).value;
    if (residual != nullptr) vector_at(x + k).value = part += vector_at(residual + k).value;
    sums += part;
  }
  float sum = sum_lanes(sums);
  for (int64_t i = k; i < columns; ++i) sum += residual == nullptr ? x[i] : x[i] += residual[i];
  const float mean = sum / static_cast<float>(columns);
  for (k = 0; k + kLanes <= columns; k += kLanes) {
    const Vector centered = vector_at(x + k).value - mean;
    squares += centered * centered;
  }
  float square = sum_lanes(squares);
  for (int64_t i = k; i < columns; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(square / static_cast<float>(columns) + eps);
  for (k = 0; k + kLanes <= columns; k += kLanes) {
    const Vector centered = vector_at(x + k).value - mean;
    vector_at(x + k).value = centered * scale * vector_at(weight + k).value + vector_at(shift + k).value;
  }
  for (; k < columns; ++k) x[k] = (x[k] - mean) * scale * weight[k] + shift[k];
}

BERTGEN_INLINE void gelu_vector(Vector& x) {
  const Vector zeros = {}, most = 20.0f - zeros;
  Vector size = BERTGEN_SELECT(x < zeros, -x, x);
  size = BERTGEN_SELECT(size > most, most, size);  // above it erfc is 0, and infinity times 0 would be NaN
  const Vector t = 1.0f / (1.0f + 0.23164189f * size);  // 0.3275911 / sqrt(2)
  Vector y = t * 1.061405429f - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  Vector power = size * size * -0.72134752f;  // exp(-x^2 / 2) as a power of 2
  power_of_two(power);
  const Vector tail = 0.5f * size * (y * t * power);  // |x| erfc(|x| / sqrt(2)) / 2
  x = BERTGEN_SELECT(x > zeros, x - tail, -tail);
}

template <class Set>
BERTGEN_INLINE void gelu_elements(float* x, int64_t count) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    Vector part = vector_at(x + k).value;
    gelu_vector(part);
    vector_at(x + k).value = part;
  }
  if (k < count) {
    Vector rest = {};
    for (int64_t i = k; i < count; ++i) rest[i - k] = x[i];
    gelu_vector(rest);
    for (int64_t i = k; i < count; ++i) x[i] = rest[i - k];
  }
}

}  // namespace

void add_layer_norm(float* x, const float* residual, int64_t rows, int64_t columns, const float* weight,
                    const float* shift, float eps, const Threads& threads) {
  const auto add_norm = BERTGEN_DISPATCH_UP_TO(Avx2, add_norm_row);
  for_each<NoWorkspace>(rows, rows * columns, threads, [&](int64_t r, NoWorkspace&) {
    add_norm(x + r * columns, residual == nullptr ? nullptr : residual + r * columns, columns, weight, shift, eps);
  });
}

void gelu(float* x, int64_t count, const Threads& threads) {
  const auto gelu_task = BERTGEN_DISPATCH_UP_TO(Avx2, gelu_elements);
  for_each<NoWorkspace>((count + kTaskElements - 1) / kTaskElements, 4 * count, threads, [&](int64_t i, NoWorkspace&) {
    gelu_task(x + i * kTaskElements, std::min(kTaskElements, count - i * kTaskElements));
  });
}

}  // namespace bertgen
