#include "int4_int8_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

#include "int4_product.h"

#if defined(BERTGEN_X86)
#include <immintrin.h>
#endif

namespace bertgen {
namespace {

constexpr int64_t kNearBytes = 1 << 17;  // of x that stay in the second cache while rows of the weight pass

// 64 columns of a row of x in 8 bits, in the order of the nibbles of a block of the weight: byte i of a block of the
// weight holds columns 2 i, in its low nibble, and 2 i + 1. Lane l of `sums` is the sum of bytes 4 l to 4 l + 3 of
// both.
struct alignas(32) Block {
  Words even, odd, sums;
};

struct RoundedRows {
  const Block* blocks;  // [rows, blocks]; the sums are times -8 where the weight is symmetric
  const float* scales;  // [rows]
};

using IntegerProduct = Int4Product<RoundedRows>;

// How many rows of x and of the weight a tile has, and
//
//     dot(sums, low, even, high, odd): sums[l] += sum over bytes 4 l .. 4 l + 3 of low * even + high * odd
//
// with bytes of 0 to 15 in `low` and `high` and of -127 to 127 in `even` and `odd`.
template <class Set>
struct Tile {
  static constexpr int kRows = 4, kOutputs = 2;

  static inline void dot(Words& sums, const Words& low, const Words& even, const Words& high, const Words& odd) {
    for (int byte = 0; byte < 32; byte += 8) {
      sums += ((low >> byte) & 15) * ((even << (24 - byte)) >> 24);  // up and down again: extends the sign
      sums += ((high >> byte) & 15) * ((odd << (24 - byte)) >> 24);
    }
  }
};

#if defined(BERTGEN_X86)
template <>
struct Tile<Avx2> {
  static constexpr int kRows = 4, kOutputs = 2;

  // Two products are at most 2 * 15 * 127, four are less than 2^15.
  BERTGEN_TARGET_AVX2 static inline void dot(Words& sums, const Words& low, const Words& even, const Words& high,
                                             const Words& odd) {
    const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16((__m256i)low, (__m256i)even),
                                           _mm256_maddubs_epi16((__m256i)high, (__m256i)odd));
    sums += (Words)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
  }
};

// Vectors of 256 bits: processors that compute 512 bits in two halves would gain nothing from more.
template <>
struct Tile<Avx512> {
  static constexpr int kRows = 4, kOutputs = 4;

  BERTGEN_TARGET_AVX512 static inline void dot(Words& sums, const Words& low, const Words& even, const Words& high,
                                               const Words& odd) {
    const __m256i first = _mm256_dpbusd_epi32((__m256i)sums, (__m256i)low, (__m256i)even);
    sums = (Words)_mm256_dpbusd_epi32(first, (__m256i)high, (__m256i)odd);
  }
};
#endif

// out[m, n] for kM rows of x, from m on, and kN rows of the weight, from n on.
template <class Set, bool kZero, int kM, int kN>
BERTGEN_INLINE void multiply_tile(const IntegerProduct& p, int64_t m, int64_t n) {
  const Int4& w = p.weight;
  const int64_t blocks = blocks_of(w.columns);
  const bool fetch_next = m == 0 && has_next_tile<kN>(w, n);
  Vector totals[whole_vectors(kM * kN)] = {};
  constexpr int kTogether = kM == 1 ? 1 : kN;  // rows of the weight in registers
  for (int64_t b = 0; b < blocks; ++b) {
    BERTGEN_UNROLL
    for (int first = 0; first < kN; first += kTogether) {
      Words low[kTogether], high[kTogether];
      Vector scales[kTogether], zeros[kTogether];
      for (int j = 0; j < kTogether; ++j) {
        const int64_t row = n + first + j;
        Words words;
        load_block(w, row, b * kBlock, words);
        low[j] = words & 0x0F0F0F0F;
        high[j] = (words >> 4) & 0x0F0F0F0F;
        load_groups(w, w.scale, row, b * kBlock, scales[j]);
        if (kZero) load_groups(w, w.zero, row, b * kBlock, zeros[j]);
        if (fetch_next) prefetch<kFirstCache>(packed_at(w, row + kN, b * kBlock));
      }
      for (int i = 0; i < kM; ++i) {
        const Block& x = p.x.blocks[(m + i) * blocks + b];
        for (int j = 0; j < kTogether; ++j) {
          Words sums = kZero ? Words{} : x.sums;
          Tile<Set>::dot(sums, low[j], x.even, high[j], x.odd);
          Vector values;
          to_floats(sums, values);
          if (kZero) {
            Vector row_sums;
            to_floats(x.sums, row_sums);
            values -= zeros[j] * row_sums;
          }
          totals[i * kN + first + j] += scales[j] * values;
        }
      }
    }
  }
  float sums[whole_vectors(kM * kN)];
  add_across(totals, sums);
  const float* bias = p.bias_from(n);
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      const float shift = bias == nullptr ? 0.0f : bias[j];
      p.out[(m + i) * p.stride + n + j] = std::fma(p.x.scales[m + i], sums[i * kN + j], shift);
    }
  }
}

// Rows first .. last - 1 of x and kN rows of the weight.
template <class Set, bool kZero, int kN>
BERTGEN_INLINE void multiply_rows(const IntegerProduct& p, int64_t first, int64_t last, int64_t n) {
  static_assert(Tile<Set>::kRows == 4, "the cases below");
  int64_t m = first;
  for (; m + 4 <= last; m += 4) multiply_tile<Set, kZero, 4, kN>(p, m, n);
  switch (last - m) {
    case 3: return multiply_tile<Set, kZero, 3, kN>(p, m, n);
    case 2: return multiply_tile<Set, kZero, 2, kN>(p, m, n);
    case 1: return multiply_tile<Set, kZero, 1, kN>(p, m, n);
  }
}

// One row of x: sums are added across eight at a time, so a tile has as many.
template <class Set, bool kZero>
BERTGEN_INLINE void multiply_one_row(const IntegerProduct& p, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + kLanes <= last; n += kLanes) multiply_tile<Set, kZero, 1, kLanes>(p, 0, n);
  for (; n < last; ++n) multiply_tile<Set, kZero, 1, 1>(p, 0, n);
}

template <class Set, bool kZero>
BERTGEN_INLINE void multiply_any_columns(const IntegerProduct& p, int64_t first, int64_t last) {
  if (p.rows == 1) return multiply_one_row<Set, kZero>(p, first, last);
  constexpr int kM = Tile<Set>::kRows, kN = Tile<Set>::kOutputs;
  const int64_t row = std::max<int64_t>(1, blocks_of(p.weight.columns)) * static_cast<int64_t>(sizeof(Block));
  const int64_t near = std::max<int64_t>(1, kNearBytes / (kM * row)) * kM;
  for (int64_t m = 0; m < p.rows; m += near) {
    const int64_t end = std::min(p.rows, m + near);
    int64_t n = first;
    for (; n + kN <= last; n += kN) multiply_rows<Set, kZero, kN>(p, m, end, n);
    for (; n < last; ++n) multiply_rows<Set, kZero, 1>(p, m, end, n);
  }
}

// Columns first .. last - 1 of the product.
template <class Set>
BERTGEN_INLINE void multiply_columns(const IntegerProduct& p, int64_t first, int64_t last) {
  p.weight.zero == nullptr ? multiply_any_columns<Set, false>(p, first, last)
                           : multiply_any_columns<Set, true>(p, first, last);
}

// Rounds a row of x to 8 bits: [blocks], with sums times `factor`. Returns its scale. Where the scale is zero or not
// finite (then it is NaN) the blocks are zeros, and the scale alone decides the products.
template <class Set>
BERTGEN_INLINE float round_row(const float* x, int64_t columns, int32_t factor, Block* out) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the last bits of a sum with it are the other term, rounded
  Words most = {};                       // absolute values compared as integers, among which NaN is the largest
  for (int64_t k = 0; k < columns; k += kLanes) {
    Words bits;
    std::memcpy(&bits, x + k, sizeof bits);
    bits &= 0x7FFFFFFF;
    most = BERTGEN_SELECT(bits > most, bits, most);
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
    Vector parts[kLanes];
    Words values[kLanes], sums = {};
    gather_block(x, columns, k, parts);
    for (int i = 0; i < kLanes; ++i) {
      Vector value = parts[i] / scale;
      value = BERTGEN_SELECT(value > limit, limit, value);  // for scales so small that they have few bits themselves
      value = BERTGEN_SELECT(value < -limit, -limit, value);
      const Vector shifted = value + kShift;
      std::memcpy(&values[i], &shifted, sizeof values[i]);
      values[i] -= 0x4B400000;
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

}  // namespace

void int4_matmul_int8(const float* x, int64_t rows, const Int4Linear* layers, int64_t count, float* out, int64_t stride,
                      const Threads& threads) {
  if (rows == 0 || count == 0) return;
  const Int4& weight = layers[0].weight;
  const int64_t blocks = blocks_of(weight.columns);
  const int32_t factor = weight.zero == nullptr ? -8 : 1;
  const std::unique_ptr<Block[]> rounded(new Block[rows * blocks]);
  const std::unique_ptr<float[]> scales(new float[rows]);
  const auto round = BERTGEN_DISPATCH_UP_TO(Avx2, round_row);
  for_each<NoWorkspace>(rows, rows * weight.columns, threads, [&](int64_t m, NoWorkspace&) {
    scales[m] = round(x + m * weight.columns, weight.columns, factor, rounded.get() + m * blocks);
  });
  const auto multiply = BERTGEN_DISPATCH(multiply_columns);
  for_each_columns<NoWorkspace>(
      RoundedRows{rounded.get(), scales.get()}, rows, layers, count, out, stride, threads,
      [&](const IntegerProduct& p, int64_t first, int64_t last, NoWorkspace&) { multiply(p, first, last); });
}

}  // namespace bertgen
