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

constexpr int64_t kNearBytes = 24 << 10;  // of x that stay in the first cache while rows of the weight pass

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
  static constexpr int kRows = 8, kOutputs = 2;

  // numbers[l] = scales[l] * numbers[l] + shift
  BERTGEN_TARGET_AVX2 static inline void scale(const float* scales, float shift, float* numbers) {
    const __m256 product = (__m256)vector_at(numbers).value;
    vector_at(numbers).value =
        (Vector)_mm256_fmadd_ps((__m256)vector_at(scales).value, product, _mm256_set1_ps(shift));
  }

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

// The nibbles of a block of the weight.
BERTGEN_INLINE void split(const Words& words, Words& low, Words& high) {
  low = words & 0x0F0F0F0F;
  high = (words >> 4) & 0x0F0F0F0F;
}

// Adds the product of a block of x and one of the weight.
template <class Set, bool kZero>
BERTGEN_INLINE void add_product(const Block& x, const Words& low, const Words& high, const Vector& scales,
                                const Vector& zeros, Vector& total) {
  Words sums = kZero ? Words{} : x.sums;
  Tile<Set>::dot(sums, low, x.even, high, x.odd);
  Vector values;
  to_floats(sums, values);
  if (kZero) {
    Vector row_sums;
    to_floats(x.sums, row_sums);
    values -= zeros * row_sums;
  }
  total += scales * values;
}

// Writes the products of kM rows of x, from m on, and kN rows of the weight, from n on: `totals` before they are added
// across.
template <class Set, int kM, int kN, int kCount>
BERTGEN_INLINE void store(const IntegerProduct& p, int64_t m, int64_t n, Vector (&totals)[kCount]) {
  alignas(32) float sums[kCount];
  add_across(totals, sums);
  const float* bias = p.bias_from(n);
  if constexpr (kM == kLanes && kN == 1) {
    Tile<Set>::scale(p.x.scales + m, bias == nullptr ? 0.0f : *bias, sums);
    for (int i = 0; i < kM; ++i) p.out[(m + i) * p.stride + n] = sums[i];
  } else {
    for (int i = 0; i < kM; ++i) {
      for (int j = 0; j < kN; ++j) {
        const float shift = bias == nullptr ? 0.0f : bias[j];
        p.out[(m + i) * p.stride + n + j] = std::fma(p.x.scales[m + i], sums[i * kN + j], shift);
      }
    }
  }
}

// As load_block; with kWhole all blocks are whole.
template <bool kWhole>
BERTGEN_INLINE void load_part(const Int4& w, int64_t n, int64_t k, Words& words) {
  kWhole ? load_words(packed_at(w, n, k), words) : load_block(w, n, k, words);
}

// As load_groups; with kWhole no group is smaller than a block.
template <bool kWhole>
BERTGEN_INLINE void load_numbers(const Int4& w, const float* numbers, int64_t n, int64_t k, Vector& result) {
  if (kWhole) {
    const Vector number = numbers[(n * w.columns + k) >> (5 + (w.group >> 6))] - Vector{};  // as in load_groups
    result = number;
  } else {
    load_groups(w, numbers, n, k, result);
  }
}

// out[m, n] for kM rows of x, from m on, and kN rows of the weight, from n on.
template <class Set, bool kZero, bool kWhole, int kM, int kN>
BERTGEN_INLINE void multiply_tile(const IntegerProduct& p, int64_t m, int64_t n) {
  const Int4& w = p.weight;
  const int64_t blocks = blocks_of(w.columns);
  if (m == 0 && has_next_tile<kN>(w, n)) {
    constexpr int64_t kLine = 128;  // columns in a line of the cache
    for (int j = kN; j < 2 * kN; ++j) {
      for (int64_t k = 0; k < w.columns; k += kLine) prefetch<kFirstCache>(packed_at(w, n + j, k));
    }
  }
  // Rows of the weight whose totals are in registers.
  constexpr int kTogether = Tile<Set>::kRows == kLanes && kM > 2 ? 1 : kN;
  Vector totals[whole_vectors(kM * kN)] = {};
  BERTGEN_UNROLL
  for (int first = 0; first < kN; first += kTogether) {
    Vector parts[kM * kTogether] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      const Block* x = p.x.blocks + m * blocks + b;
      Words low[kTogether], high[kTogether];
      Vector scales[kTogether], zeros[kTogether];
      for (int j = 0; j < kTogether; ++j) {
        const int64_t row = n + first + j;
        Words words;
        load_part<kWhole>(w, row, b * kBlock, words);
        split(words, low[j], high[j]);
        load_numbers<kWhole>(w, w.scale, row, b * kBlock, scales[j]);
        if (kZero) load_numbers<kWhole>(w, w.zero, row, b * kBlock, zeros[j]);
      }
      for (int i = 0; i < kM; ++i) {
        for (int j = 0; j < kTogether; ++j) {
          add_product<Set, kZero>(x[i * blocks], low[j], high[j], scales[j], zeros[j], parts[i * kTogether + j]);
        }
      }
    }
    for (int i = 0; i < kM; ++i) {
      for (int j = 0; j < kTogether; ++j) totals[i * kN + first + j] = parts[i * kTogether + j];
    }
  }
  store<Set, kM, kN>(p, m, n, totals);
}

// Rows first .. last - 1 of x and kN rows of the weight.
template <class Set, bool kZero, bool kWhole, int kN>
BERTGEN_INLINE void multiply_rows(const IntegerProduct& p, int64_t first, int64_t last, int64_t n) {
  int64_t m = first;
  if constexpr (Tile<Set>::kRows == kLanes) {  // eight totals, and the next row of the weight
    for (; m + kLanes <= last; m += kLanes) {
      for (int j = 0; j < kN; ++j) multiply_tile<Set, kZero, kWhole, kLanes, 1>(p, m, n + j);
    }
  }
  for (; m + 4 <= last; m += 4) multiply_tile<Set, kZero, kWhole, 4, kN>(p, m, n);
  switch (last - m) {
    case 3: return multiply_tile<Set, kZero, kWhole, 3, kN>(p, m, n);
    case 2: return multiply_tile<Set, kZero, kWhole, 2, kN>(p, m, n);
    case 1: return multiply_tile<Set, kZero, kWhole, 1, kN>(p, m, n);
  }
}

template <class Set, bool kZero, bool kWhole>
BERTGEN_INLINE void multiply_several_rows(const IntegerProduct& p, int64_t first, int64_t last) {
  constexpr int kM = Tile<Set>::kRows, kN = Tile<Set>::kOutputs;
  const int64_t row = std::max<int64_t>(1, blocks_of(p.weight.columns)) * static_cast<int64_t>(sizeof(Block));
  const int64_t near = std::max<int64_t>(1, kNearBytes / (kM * row)) * kM;
  for (int64_t m = 0; m < p.rows; m += near) {
    const int64_t end = std::min(p.rows, m + near);
    int64_t n = first;
    for (; n + kN <= last; n += kN) multiply_rows<Set, kZero, kWhole, kN>(p, m, end, n);
    for (; n < last; ++n) multiply_rows<Set, kZero, kWhole, 1>(p, m, end, n);
  }
}

// out[0, n] for one row of x and kN rows of the weight, whose blocks are loaded in turns: the next block of a row waits
// for nothing.
template <class Set, bool kZero, int kN>
BERTGEN_INLINE void multiply_one_row_tile(const IntegerProduct& p, int64_t n) {
  const Int4& w = p.weight;
  const int64_t blocks = blocks_of(w.columns);
  const bool fetch_next = has_next_tile<kN>(w, n);
  Vector totals[whole_vectors(kN)] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    BERTGEN_UNROLL
    for (int j = 0; j < kN; ++j) {
      Words words, low, high;
      Vector scales, zeros;
      load_block(w, n + j, b * kBlock, words);
      split(words, low, high);
      load_groups(w, w.scale, n + j, b * kBlock, scales);
      if (kZero) load_groups(w, w.zero, n + j, b * kBlock, zeros);
      if (fetch_next) prefetch<kFirstCache>(packed_at(w, n + j + kN, b * kBlock));
      add_product<Set, kZero>(p.x.blocks[b], low, high, scales, zeros, totals[j]);
    }
  }
  store<Set, 1, kN>(p, 0, n, totals);
}

// One row of x: sums are added across eight at a time, so a tile has as many.
template <class Set, bool kZero>
BERTGEN_INLINE void multiply_one_row(const IntegerProduct& p, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + kLanes <= last; n += kLanes) multiply_one_row_tile<Set, kZero, kLanes>(p, n);
  for (; n < last; ++n) multiply_one_row_tile<Set, kZero, 1>(p, n);
}

// Columns first .. last - 1 of the product, for one row of x.
template <class Set>
BERTGEN_INLINE void multiply_one(const IntegerProduct& p, int64_t first, int64_t last) {
  p.weight.zero == nullptr ? multiply_one_row<Set, false>(p, first, last) : multiply_one_row<Set, true>(p, first, last);
}

// Columns first .. last - 1 of the product, with whole blocks and no group smaller than a block.
template <class Set>
BERTGEN_INLINE void multiply_whole(const IntegerProduct& p, int64_t first, int64_t last) {
  p.weight.zero == nullptr ? multiply_several_rows<Set, false, true>(p, first, last)
                           : multiply_several_rows<Set, true, true>(p, first, last);
}

// Columns first .. last - 1 of the product.
template <class Set>
BERTGEN_INLINE void multiply_any(const IntegerProduct& p, int64_t first, int64_t last) {
  p.weight.zero == nullptr ? multiply_several_rows<Set, false, false>(p, first, last)
                           : multiply_several_rows<Set, true, false>(p, first, last);
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
  // Separate functions: in a larger one compilers keep less in registers.
  const bool whole = weight.columns % kBlock == 0 && weight.group >= kBlock;
  const auto multiply = rows == 1 ? BERTGEN_DISPATCH(multiply_one)
                        : whole   ? BERTGEN_DISPATCH(multiply_whole)
                                  : BERTGEN_DISPATCH(multiply_any);
  for_each_columns<NoWorkspace>(
      RoundedRows{rounded.get(), scales.get()}, rows, layers, count, out, stride, threads,
      [&](const IntegerProduct& p, int64_t first, int64_t last, NoWorkspace&) { multiply(p, first, last); });
}

}  // namespace bertgen
