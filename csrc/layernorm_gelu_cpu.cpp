#include "layernorm_gelu_cpu.h"

#include <algorithm>
#include <cmath>

#include "float_types.h"
#include "vector.h"

namespace bertgen {
namespace {

constexpr int64_t kTaskElements = 2048;  // of gelu

// A sum in several parts, so that no addition waits for the one before.
struct Sum {
  static constexpr int64_t kParts = 4;
  Vector parts[kParts] = {};

  BERTGEN_INLINE float total() const {
    const Vector sums = (parts[0] + parts[1]) + (parts[2] + parts[3]);
    float sum = 0;
    for (int64_t j = 0; j < kLanes; ++j) sum += sums[j];
    return sum;
  }
};

// x -> LayerNorm(x) weight + shift in `out`, which may be x; `total` is the sum of x.
//
// The mean is made twice: what remains of it after the first subtraction is subtracted, too. So a row of equal numbers
// gives exactly `shift`, and small differences on a large mean keep their precision.
template <class Set, class T>
BERTGEN_INLINE void norm_row(const float* x, float total, int64_t columns, const T* weight, const T* shift, float eps,
                             float* out) {
  const float count = static_cast<float>(columns), first_mean = total / count;
  Sum sums, squares;
  int64_t k = 0;
  for (; k + Sum::kParts * kLanes <= columns; k += Sum::kParts * kLanes) {
    for (int64_t j = 0; j < Sum::kParts; ++j) {
      const Vector centered = vector_at(x + k + j * kLanes).value - first_mean;
      sums.parts[j] += centered;
      squares.parts[j] += centered * centered;
    }
  }
  total = sums.total();
  float square = squares.total();
  for (; k < columns; ++k) {
    const float centered = x[k] - first_mean;
    total += centered;
    square += centered * centered;
  }
  const float mean = total / count, variance = square / count - mean * mean;
  const float scale = 1.0f / std::sqrt((variance < 0 ? 0.0f : variance) + eps);
  for (k = 0; k + kLanes <= columns; k += kLanes) {
    const Vector centered = vector_at(x + k).value - first_mean - mean;
    Vector factors, shifts;
    load<Set>(weight + k, factors);
    load<Set>(shift + k, shifts);
    vector_at(out + k).value = centered * scale * factors + shifts;
  }
  for (; k < columns; ++k) {
    out[k] = (x[k] - first_mean - mean) * scale * to_float(weight[k]) + to_float(shift[k]);
  }
}

template <class Set, class T>
BERTGEN_INLINE void add_norm_row(const float* x, const float* residual, int64_t columns, const T* weight,
                                 const T* shift, float eps, float* out) {
  Sum sums;
  int64_t k = 0;
  for (; k + Sum::kParts * kLanes <= columns; k += Sum::kParts * kLanes) {
    for (int64_t i = k, j = 0; j < Sum::kParts; i += kLanes, ++j) {
      const Vector part = vector_at(x + i).value + vector_at(residual + i).value;
      vector_at(out + i).value = part;
      sums.parts[j] += part;
    }
  }
  float total = sums.total();
  for (; k < columns; ++k) total += out[k] = x[k] + residual[k];
  norm_row<Set>(out, total, columns, weight, shift, eps, out);
}

template <class Set, class T>
BERTGEN_INLINE void plain_norm_row(const float* x, int64_t columns, const T* weight, const T* shift, float eps,
                                   float* out) {
  Sum sums;
  int64_t k = 0;
  for (; k + Sum::kParts * kLanes <= columns; k += Sum::kParts * kLanes) {
    for (int64_t j = 0; j < Sum::kParts; ++j) sums.parts[j] += vector_at(x + k + j * kLanes).value;
  }
  float total = sums.total();
  for (; k < columns; ++k) total += x[k];
  norm_row<Set>(x, total, columns, weight, shift, eps, out);
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
BERTGEN_INLINE void gelu_elements(const float* x, int64_t count, float* out) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    Vector part = vector_at(x + k).value;
    gelu_vector(part);
    vector_at(out + k).value = part;
  }
  if (k < count) {
    Vector rest = {};
    for (int64_t i = k; i < count; ++i) rest[i - k] = x[i];
    gelu_vector(rest);
    for (int64_t i = k; i < count; ++i) out[i] = rest[i - k];
  }
}

// Rows with parameters of a type.
template <class T>
struct NormRows {
  const T *weight, *shift;
  int64_t columns;
  float eps;

  NormRows(const Norm& norm, int64_t width, float small)
      : weight(static_cast<const T*>(norm.weight)), shift(static_cast<const T*>(norm.shift)), columns(width), eps(small) {}

  template <class Set>
  static BERTGEN_INLINE void add_norm(const NormRows& rows, const float* x, const float* residual, float* out) {
    add_norm_row<Set>(x, residual, rows.columns, rows.weight, rows.shift, rows.eps, out);
  }
  template <class Set>
  static BERTGEN_INLINE void plain_norm(const NormRows& rows, const float* x, float* out) {
    plain_norm_row<Set>(x, rows.columns, rows.weight, rows.shift, rows.eps, out);
  }
  template <class Set>
  static BERTGEN_INLINE void gelu_norm(const NormRows& rows, const float* x, float* out) {
    gelu_elements<Set>(x, rows.columns, out);
    plain_norm_row<Set>(out, rows.columns, rows.weight, rows.shift, rows.eps, out);
  }
};

}  // namespace

void add_layer_norm(float* x, const float* residual, int64_t rows, int64_t columns, const Norm& norm, float eps,
                    const Threads& threads) {
  add_layer_norm(x, residual, rows, columns, norm, eps, x, threads);
}

void add_layer_norm(const float* x, const float* residual, int64_t rows, int64_t columns, const Norm& norm, float eps,
                    float* out, const Threads& threads) {
  dispatch_type(norm.type, [&](auto number) {
    using Rows = NormRows<decltype(number)>;
    const Rows of(norm, columns, eps);
    const auto add_norm = BERTGEN_DISPATCH_UP_TO(Avx2, Rows::template add_norm);
    const auto plain_norm = BERTGEN_DISPATCH_UP_TO(Avx2, Rows::template plain_norm);
    for_each<NoWorkspace>(rows, rows * columns, threads, [&](int64_t r, NoWorkspace&) {
      const int64_t first = r * columns;
      if (residual == nullptr) {
        plain_norm(of, x + first, out + first);
      } else {
        add_norm(of, x + first, residual + first, out + first);
      }
    });
  });
}

void gelu_layer_norm(const float* x, int64_t rows, int64_t columns, const Norm& norm, float eps, float* out,
                     const Threads& threads) {
  dispatch_type(norm.type, [&](auto number) {
    using Rows = NormRows<decltype(number)>;
    const Rows of(norm, columns, eps);
    const auto gelu_norm = BERTGEN_DISPATCH_UP_TO(Avx2, Rows::template gelu_norm);
    for_each<NoWorkspace>(rows, 4 * rows * columns, threads, [&](int64_t r, NoWorkspace&) {
      gelu_norm(of, x + r * columns, out + r * columns);
    });
  });
}

void gelu(float* x, int64_t count, const Threads& threads) {
  const auto gelu_task = BERTGEN_DISPATCH_UP_TO(Avx2, gelu_elements);
  for_each<NoWorkspace>((count + kTaskElements - 1) / kTaskElements, 4 * count, threads, [&](int64_t i, NoWorkspace&) {
    gelu_task(x + i * kTaskElements, std::min(kTaskElements, count - i * kTaskElements), x + i * kTaskElements);
  });
}

}  // namespace bertgen
