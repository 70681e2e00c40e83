#include "layernorm_gelu_cpu.h"

#include <algorithm>
#include <cmath>

#include "vector.h"

namespace bertgen {
namespace {

constexpr int64_t kTask = 2048;  // elements of gelu to a task

BERTGEN_INLINE float sum_of(const Vector& x) {
  float sum = 0;
  for (int j = 0; j < kLanes; ++j) sum += x[j];
  return sum;
}

BERTGEN_INLINE void norm_row(float* x, const float* residual, int64_t columns, const float* weight, const float* shift,
                             float eps) {
  Vector sums = {}, squares = {};
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) {
    Vector& part = *reinterpret_cast<Vector*>(x + k);
    part += *reinterpret_cast<const Vector*>(residual + k);
    sums += part;
  }
  float sum = sum_of(sums);
  for (int64_t i = k; i < columns; ++i) sum += x[i] += residual[i];
  const float mean = sum / static_cast<float>(columns);
  for (k = 0; k + kLanes <= columns; k += kLanes) {
    const Vector off = *reinterpret_cast<const Vector*>(x + k) - mean;
    squares += off * off;
  }
  float square = sum_of(squares);
  for (int64_t i = k; i < columns; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(square / static_cast<float>(columns) + eps);
  for (k = 0; k + kLanes <= columns; k += kLanes) {
    Vector& part = *reinterpret_cast<Vector*>(x + k);
    part = (part - mean) * scale * *reinterpret_cast<const Vector*>(weight + k) +
           *reinterpret_cast<const Vector*>(shift + k);
  }
  for (; k < columns; ++k) x[k] = (x[k] - mean) * scale * weight[k] + shift[k];
}

BERTGEN_INLINE void gelu_part(Vector& x) {
  const Vector none = {};
  Vector size = x < none ? -x : x;
  size = size > 20.0f - none ? 20.0f - none : size;  // beyond it nothing is left of erfc, and infinity times 0 is NaN
  const Vector t = 1.0f / (1.0f + 0.23164189f * size);  // 0.3275911 / sqrt(2)
  Vector y = t * 1.061405429f - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  Vector power = size * size * -0.72134752f;  // exp(-x^2 / 2) as a power of 2
  power_of_two(power);
  const Vector tail = 0.5f * size * (y * t * power);  // |x| erfc(|x| / sqrt(2)) / 2
  x = x > none ? x - tail : -tail;
}

BERTGEN_INLINE void gelu_all(float* x, int64_t count) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) gelu_part(*reinterpret_cast<Vector*>(x + k));
  if (k < count) {
    Vector rest = {};
    for (int64_t i = k; i < count; ++i) rest[i - k] = x[i];
    gelu_part(rest);
    for (int64_t i = k; i < count; ++i) x[i] = rest[i - k];
  }
}

void norm_row_anywhere(float* x, const float* r, int64_t n, const float* w, const float* s, float eps) {
  norm_row(x, r, n, w, s, eps);
}
void gelu_anywhere(float* x, int64_t count) { gelu_all(x, count); }

#if defined(BERTGEN_X86)
BERTGEN_AVX2 void norm_row_avx2(float* x, const float* r, int64_t n, const float* w, const float* s, float eps) {
  norm_row(x, r, n, w, s, eps);
}
BERTGEN_AVX2 void gelu_avx2(float* x, int64_t count) { gelu_all(x, count); }
#else
constexpr auto* norm_row_avx2 = norm_row_anywhere;
constexpr auto* gelu_avx2 = gelu_anywhere;
#endif

}  // namespace

void add_layer_norm(float* x, const float* residual, int64_t rows, int64_t columns, const float* weight,
                    const float* shift, float eps, const Threads& threads) {
  const auto norm_row_here = choose(norm_row_anywhere, norm_row_avx2);
  for_each<Nothing>(rows, rows * columns, threads, [&](int64_t r, Nothing&) {
    norm_row_here(x + r * columns, residual + r * columns, columns, weight, shift, eps);
  });
}

void gelu(float* x, int64_t count, const Threads& threads) {
  const auto gelu_here = choose(gelu_anywhere, gelu_avx2);
  for_each<Nothing>((count + kTask - 1) / kTask, 4 * count, threads, [&](int64_t i, Nothing&) {
    gelu_here(x + i * kTask, std::min(kTask, count - i * kTask));
  });
}

}  // namespace bertgen
