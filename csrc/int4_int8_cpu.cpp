#include "int4_int8_cpu.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "int4_blocks.h"

#if defined(BERTGEN_X86)
#include <immintrin.h>
#endif

namespace bertgen {
namespace {

constexpr int64_t kTask = 48;       // rows of the weight to a task
constexpr int64_t kNear = 1 << 17;  // bytes of x that stay in the second cache, while rows of the weight pass by

// 64 columns of a row of x in 8 bits, as the nibbles of a block of the weight lie: byte i of a weight holds columns 2 i,
// in its low nibble, and 2 i + 1. Lane l of the sums is about bytes 4 l to 4 l + 3 of both.
struct alignas(32) Block {
  Words even, odd, sums;
};

struct Call {
  Int4 weight;
  const Block* x;       // [rows, blocks]; its sums are times -8 where the weight is symmetric
  const float* scales;  // [rows]
  int64_t rows;
  const float* bias;
  float* out;  // its rows are `stride` apart
  int64_t stride;
};

// How many rows of x and of the weight a tile has, and
//
//     dot(sums, low, even, high, odd): sums[l] += sum over bytes 4 l .. 4 l + 3 of low * even + high * odd
//
// with bytes of 0 to 15 in `low` and `high` and of -127 to 127 in `even` and `odd`.
struct Anywhere {
  static constexpr int kRows = 4, kOutputs = 2;

  static inline void dot(Words& sums, const Words& low, const Words& even, const Words& high, const Words& odd) {
    const auto *l = reinterpret_cast<const int8_t*>(&low), *h = reinterpret_cast<const int8_t*>(&high);
    const auto *e = reinterpret_cast<const int8_t*>(&even), *o = reinterpret_cast<const int8_t*>(&odd);
    for (int i = 0; i < 4 * kLanes; ++i) sums[i / 4] += l[i] * e[i] + h[i] * o[i];
  }
};

#if defined(BERTGEN_X86)
struct Avx2 {
  static constexpr int kRows = 4, kOutputs = 2;

  // Two products are at most 2 * 15 * 127, four are less than 2^15.
  BERTGEN_AVX2 static inline void dot(Words& sums, const Words& low, const Words& even, const Words& high,
                                      const Words& odd) {
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16((__m256i)low, (__m256i)even),
                                           _mm256_maddubs_epi16((__m256i)high, (__m256i)odd));
    sums += (Words)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
};

// Vectors of 256 bits: on processors that compute with 512 in two halves nothing else would be faster.
struct Avx512 {
  static constexpr int kRows = 4, kOutputs = 4;

  BERTGEN_AVX512 static inline void dot(Words& sums, const Words& low, const Words& even, const Words& high,
                                        const Words& odd) {
    const __m256i first = _mm256_dpbusd_epi32((__m256i)sums, (__m256i)low, (__m256i)even);
    sums = (Words)_mm256_dpbusd_epi32(first, (__m256i)high, (__m256i)odd);
  }
};
#endif

// out[m, n] for kM rows of x, from m on, and kN rows of the weight, from n on.
template <class Machine, bool kZero, int kM, int kN>
BERTGEN_INLINE void tile(const Call& c, int64_t m, int64_t n) {
  constexpr int kTotals = (kM * kN + kLanes - 1) / kLanes * kLanes;
  const Int4& w = c.weight;
  const int64_t blocks = blocks_of(w.columns);
  const bool ahead = m == 0 && n + 2 * kN <= w.rows;
  Vector totals[kTotals] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    Words low[kN], high[kN];
    Vector scales[kN], zeros[kN];
    for (int j = 0; j < kN; ++j) {
      Words words;
      load(w, n + j, b * kBlock, words);
      low[j] = words & 0x0F0F0F0F;
      high[j] = (words >> 4) & 0x0F0F0F0F;
      spread(w, w.scale, n + j, b * kBlock, scales[j]);
      if (kZero) spread(w, w.zero, n + j, b * kBlock, zeros[j]);
      if (ahead) __builtin_prefetch(w.packed + (((n + kN + j) * w.columns + b * kBlock) >> 1));
    }
    for (int i = 0; i < kM; ++i) {
      const Block& x = c.x[(m + i) * blocks + b];
      for (int j = 0; j < kN; ++j) {
        Words sums = kZero ? Words{} : x.sums;
        Machine::dot(sums, low[j], x.even, high[j], x.odd);
        Vector values = __builtin_convertvector(sums, Vector);
        if (kZero) values -= zeros[j] * __builtin_convertvector(x.sums, Vector);
        totals[i * kN + j] += scales[j] * values;
      }
    }
  }
  float sums[kTotals];
  for (int first = 0; first < kTotals; first += kLanes) {
    Vector eight;
    add_across(reinterpret_cast<Vector(&)[kLanes]>(totals[first]), eight);
    *reinterpret_cast<Vector*>(sums + first) = eight;
  }
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      const float bias = c.bias == nullptr ? 0.0f : c.bias[n + j];
      c.out[(m + i) * c.stride + n + j] = __builtin_fmaf(c.scales[m + i], sums[i * kN + j], bias);
    }
  }
}

// Rows first .. last - 1 of x and kN rows of the weight.
template <class Machine, bool kZero, int kN>
BERTGEN_INLINE void tiles(const Call& c, int64_t first, int64_t last, int64_t n) {
  static_assert(Machine::kRows == 4, "the cases below");
  int64_t m = first;
  for (; m + 4 <= last; m += 4) tile<Machine, kZero, 4, kN>(c, m, n);
  switch (last - m) {
    case 3: return tile<Machine, kZero, 3, kN>(c, m, n);
    case 2: return tile<Machine, kZero, 2, kN>(c, m, n);
    case 1: return tile<Machine, kZero, 1, kN>(c, m, n);
  }
}

template <class Machine, bool kZero>
BERTGEN_INLINE void any_columns(const Call& c, int64_t first, int64_t last) {
  const int64_t row = std::max<int64_t>(1, blocks_of(c.weight.columns)) * static_cast<int64_t>(sizeof(Block));
  const int64_t near = std::max<int64_t>(1, kNear / (Machine::kRows * row)) * Machine::kRows;
  for (int64_t m = 0; m < c.rows; m += near) {
    const int64_t end = std::min(c.rows, m + near);
    int64_t n = first;
    for (; n + Machine::kOutputs <= last; n += Machine::kOutputs) {
      tiles<Machine, kZero, Machine::kOutputs>(c, m, end, n);
    }
    for (; n < last; ++n) tiles<Machine, kZero, 1>(c, m, end, n);
  }
}

// Columns first .. last - 1 of the product.
template <class Machine>
BERTGEN_INLINE void columns(const Call& c, int64_t first, int64_t last) {
  c.weight.zero == nullptr ? any_columns<Machine, false>(c, first, last) : any_columns<Machine, true>(c, first, last);
}

// A row of x in 8 bits, [blocks], its sums times `factor`; returns its scale. Where that is not above zero, or not
// finite, there is nothing to round: the scale, which is NaN then, alone makes the products.
BERTGEN_INLINE float round(const float* x, int64_t columns, int32_t factor, Block* out) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the last bits of a sum with it are the other, rounded
  Words most = {};                       // absolute values as integers, among which a NaN is the largest
  for (int64_t k = 0; k < columns; k += kLanes) {
    const Words bits = *reinterpret_cast<const Words*>(x + k) & 0x7FFFFFFF;
    most = bits > most ? bits : most;
  }
  int32_t top = 0;
  for (int i = 0; i < kLanes; ++i) top = std::max(top, static_cast<int32_t>(most[i]));
  float largest;
  std::memcpy(&largest, &top, sizeof top);
  const float scale = top < 0x7F800000 ? largest / 127 : std::numeric_limits<float>::quiet_NaN();
  if (!(scale > 0)) {
    std::fill_n(out, blocks_of(columns), Block{});
    return scale;
  }
  const Vector limit = Vector{} + 127.0f;
  for (int64_t k = 0; k < columns; k += kBlock, ++out) {
    Vector parts[kLanes] = {};
    for (int64_t i = 0; i < kLanes; ++i) {
      if (i < kLanes / 2 || k + kBlock <= columns) {
        Vector value = *reinterpret_cast<const Vector*>(x + k + i * kLanes) / scale;
        value = value > limit ? limit : value;  // where the scale is so small that it has few bits itself
        parts[i] = value < -limit ? -limit : value;
      }
    }
    transpose(parts);
    Words values[kLanes], sums = {};
    for (int i = 0; i < kLanes; ++i) {
      const Vector shifted = parts[i] + kShift;
      values[i] = reinterpret_cast<const Words&>(shifted) - 0x4B400000;
      sums += values[i];
    }
    for (int i = 0; i < 2; ++i) {
      (i == 0 ? out->even : out->odd) = (values[i] & 255) | (values[i + 2] & 255) << 8 | (values[i + 4] & 255) << 16 |
                                        values[i + 6] << 24;
    }
    out->sums = sums * factor;
  }
  return scale;
}

void columns_anywhere(const Call& c, int64_t first, int64_t last) { columns<Anywhere>(c, first, last); }
float round_anywhere(const float* x, int64_t k, int32_t factor, Block* out) { return round(x, k, factor, out); }

#if defined(BERTGEN_X86)
BERTGEN_AVX2 void columns_avx2(const Call& c, int64_t first, int64_t last) { columns<Avx2>(c, first, last); }
BERTGEN_AVX2 float round_avx2(const float* x, int64_t k, int32_t factor, Block* out) { return round(x, k, factor, out); }
BERTGEN_AVX512 void columns_avx512(const Call& c, int64_t first, int64_t last) { columns<Avx512>(c, first, last); }
#else
constexpr auto* columns_avx2 = columns_anywhere;
constexpr auto* round_avx2 = round_anywhere;
constexpr auto* columns_avx512 = columns_anywhere;
#endif

}  // namespace

void int4_matmul_int8(const float* x, int64_t rows, const Int4Linear* layers, int64_t count, float* out, int64_t stride,
                      const Threads& threads) {
  const auto columns_here = choose(columns_anywhere, columns_avx2, columns_avx512);
  const auto round_here = choose(round_anywhere, round_avx2);
  if (rows == 0 || count == 0) return;
  const Int4& weight = layers[0].weight;
  const int64_t blocks = blocks_of(weight.columns);
  const std::unique_ptr<Block[]> rounded(new Block[rows * blocks]);
  const std::unique_ptr<float[]> scales(new float[rows]);
  for_each<Nothing>(rows, rows * weight.columns, threads, [&](int64_t m, Nothing&) {
    scales[m] = round_here(x + m * weight.columns, weight.columns, weight.zero == nullptr ? -8 : 1,
                           rounded.get() + m * blocks);
  });
  const int64_t tasks = (weight.rows + kTask - 1) / kTask;  // of a layer
  for_each<Nothing>(count * tasks, count * weight.rows * weight.columns / 8, threads, [&](int64_t i, Nothing&) {
    const int64_t layer = i / tasks, first = i % tasks * kTask;
    const Int4Linear& given = layers[layer];
    float* columns = out + layer * weight.rows;
    const Call call{given.weight, rounded.get(), scales.get(), rows, given.bias, columns, stride};
    columns_here(call, first, std::min(weight.rows, first + kTask));
  });
}

}  // namespace bertgen
