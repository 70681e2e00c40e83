#include "int4_cpu.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "int4_product.h"
#include "product.h"

namespace bertgen {
namespace {

// Nibble j of the eight words of a block are the weights 8 i + j. They are unpacked together, by one mask and without a
// shuffle; x is brought into the same order once a call (`gather_rows`).
constexpr int64_t kRegisterRows = 4;  // rows of x up to which unpacking in registers is faster (bench/int4.py)
constexpr int64_t kPair = 2;          // rows of the weight unpacked together there

enum Form { kSymmetric, kZero, kCodebook };

Form form_of(const Int4& w) { return w.codebook ? kCodebook : w.zero ? kZero : kSymmetric; }

using FloatProduct = Int4Product<const float*>;  // x is [rows, blocks, 8, 8], as `gather_rows` writes it

struct Workspace {
  std::unique_ptr<float[]> rows;  // of the weight, unpacked
};

struct Tables {
  Vector halves[2];  // of the codebook
};

template <Form kForm>
BERTGEN_INLINE void load_tables(const Int4& w, Tables& tables) {
  if (kForm == kCodebook) {
    for (int i = 0; i < 2; ++i) tables.halves[i] = vector_at(w.codebook + i * kLanes).value;
  }
}

// values[i] = the value of nibble j of word i, before the scale. For the symmetric form: inverting the highest bit of a
// nibble n gives n - 8 in two's complement, and shifting it up and down extends its sign, without mask or subtraction.
template <Form kForm>
BERTGEN_INLINE void unpack(const Words& words, int j, const Vector& zero, const Tables& tables, Vector& values) {
  if (kForm == kSymmetric) {
    const Words inverted = words ^ static_cast<int32_t>(0x88888888);
    to_floats((inverted << (28 - 4 * j)) >> 28, values);
  } else if (kForm == kZero) {
    to_floats((words >> (4 * j)) & 15, values);
    values -= zero;
  } else {
    look_up(tables.halves, words >> (4 * j), values);
  }
}

// Scale left by unpack_in_place: 16^(j mod 4).
constexpr float left_scale(int j) { return static_cast<float>(1 << 4 * (j % 4)); }

// The values of nibble j times left_scale(j), which `gather_rows` divides x by. The nibble is put where it is into the
// mantissa of 2^23, whose last bit is worth 1. That takes no conversion, and no shift except one by 16 of `words`
// before nibbles 4 to 7.
template <Form kForm>
BERTGEN_INLINE void unpack_in_place(const Words& words, int j, const Vector& zero, Vector& values) {
  static_assert(kForm != kCodebook, "a codebook needs the index itself");
  constexpr float kOne = 8388608.0f;  // 2^23
  const Words bits = (words & (15 << 4 * (j % 4))) | 0x4B000000;
  std::memcpy(&values, &bits, sizeof values);
  if (kForm == kSymmetric) {
    values -= kOne + 8 * left_scale(j);
  } else {
    values = (values - kOne) - zero * left_scale(j);
  }
}

// out[m, n] for all kM rows of x and kN rows of the weight, from n on; the scales multiply the sums of blocks.
template <Form kForm, int kM, int kN>
BERTGEN_INLINE void multiply_in_registers(const FloatProduct& p, int64_t n) {
  static_assert(kM * kN <= kLanes, "the sums are added across together");
  const Int4& w = p.weight;
  const int64_t blocks = blocks_of(w.columns);
  const bool fetch_next = has_next_tile<kN>(w, n);
  Tables tables;
  load_tables<kForm>(w, tables);
  Vector totals[kLanes] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    const float* x = p.x + b * kBlock;
    Words words[kN];
    Vector zeros[kN] = {}, sums[kM * kN] = {};
    for (int j = 0; j < kN; ++j) {
      load_block(w, n + j, b * kBlock, words[j]);
      if (fetch_next) prefetch<kFirstCache>(packed_at(w, n + kN + j, b * kBlock));
      if (kForm == kZero) load_groups(w, w.zero, n + j, b * kBlock, zeros[j]);
    }
    BERTGEN_UNROLL
    for (int part = 0; part < kLanes; ++part) {
      for (int j = 0; j < kN; ++j) {
        Vector values;
        if constexpr (kForm == kCodebook) {
          unpack<kForm>(words[j], part, zeros[j], tables, values);
        } else {
          if (part == kLanes / 2) words[j] >>= 16;
          unpack_in_place<kForm>(words[j], part, zeros[j], values);
        }
        for (int i = 0; i < kM; ++i) {
          sums[i * kN + j] += values * vector_at(x + i * blocks * kBlock + part * kLanes).value;
        }
      }
    }
    for (int j = 0; j < kN; ++j) {
      Vector scale;
      load_groups(w, w.scale, n + j, b * kBlock, scale);
      for (int i = 0; i < kM; ++i) totals[i * kN + j] += scale * sums[i * kN + j];
    }
  }
  float sums[kLanes];
  add_across(totals, sums);
  store_sums<kM, kN>(sums, p.bias_from(n), p.out + n, p.stride);
}

template <Form kForm, int kM>
BERTGEN_INLINE void multiply_few(const FloatProduct& p, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + kPair <= last; n += kPair) multiply_in_registers<kForm, kM, kPair>(p, n);
  for (; n < last; ++n) multiply_in_registers<kForm, kM, 1>(p, n);
}

template <Form kForm>
BERTGEN_INLINE void multiply_any_few(const FloatProduct& p, int64_t first, int64_t last) {
  switch (p.rows) {
    case 1: return multiply_few<kForm, 1>(p, first, last);
    case 2: return multiply_few<kForm, 2>(p, first, last);
    case 3: return multiply_few<kForm, 3>(p, first, last);
    case 4: return multiply_few<kForm, 4>(p, first, last);
  }
  static_assert(kRegisterRows == 4, "the cases above");
}

// Row n of the weight in floats: [blocks, 8, 8] in the order of the nibbles, or with kInOrder [columns].
template <Form kForm, bool kInOrder>
BERTGEN_INLINE void unpack_row(const Int4& w, int64_t n, float* out) {
  Tables tables;
  load_tables<kForm>(w, tables);
  for (int64_t k = 0; k < w.columns; k += kBlock) {
    Words words;
    Vector scale, zero = {}, values[kLanes];
    load_block(w, n, k, words);
    load_groups(w, w.scale, n, k, scale);
    if (kForm == kZero) load_groups(w, w.zero, n, k, zero);
    BERTGEN_UNROLL
    for (int part = 0; part < kLanes; ++part) {
      unpack<kForm>(words, part, zero, tables, values[part]);
      values[part] *= scale;
    }
    if (kInOrder) transpose(values);
    const bool whole = !kInOrder || k + kBlock <= w.columns;
    for (int64_t i = 0; i < kLanes; ++i) {
      if (whole || i < kLanes / 2) vector_at(out + k + i * kLanes).value = values[i];
    }
  }
}

template <bool kInOrder>
BERTGEN_INLINE void unpack_any_row(const Int4& w, int64_t n, float* out) {
  switch (form_of(w)) {
    case kSymmetric: return unpack_row<kSymmetric, kInOrder>(w, n, out);
    case kZero: return unpack_row<kZero, kInOrder>(w, n, out);
    case kCodebook: return unpack_row<kCodebook, kInOrder>(w, n, out);
  }
}

// Columns first .. last - 1 of the product.
template <class Set>
BERTGEN_INLINE void multiply_columns(const FloatProduct& p, int64_t first, int64_t last, Workspace& workspace) {
  if (p.rows <= kRegisterRows) {
    switch (form_of(p.weight)) {
      case kSymmetric: return multiply_any_few<kSymmetric>(p, first, last);
      case kZero: return multiply_any_few<kZero>(p, first, last);
      case kCodebook: return multiply_any_few<kCodebook>(p, first, last);
    }
  }
  constexpr int kN = kTileOutputs<Set>;
  const int64_t width = blocks_of(p.weight.columns) * kBlock;
  if (workspace.rows == nullptr) workspace.rows.reset(new float[kN * width]);
  for (int64_t n = first; n < last; n += kN) {
    const int64_t count = std::min<int64_t>(kN, last - n);
    for (int64_t j = 0; j < count; ++j) unpack_any_row<false>(p.weight, n + j, workspace.rows.get() + j * width);
    const float* weight = workspace.rows.get();
    multiply<Set>(Product<float>{p.x, p.rows, width, weight, count, p.bias_from(n), p.out + n, p.stride}, 0, count);
  }
}

// Rows first .. last - 1 of the weight in floats.
template <class Set>
BERTGEN_INLINE void unpack_rows(const Int4& w, int64_t first, int64_t last, float* out) {
  for (int64_t n = first; n < last; ++n) unpack_any_row<true>(w, n, out + n * w.columns);
}

// x [rows, columns] -> [rows, blocks, 8, 8] in the order of the nibbles; with `in_place` over the scales that
// `unpack_in_place` leaves.
template <class Set>
BERTGEN_INLINE void gather_rows(const float* x, int64_t rows, int64_t columns, bool in_place, float* out) {
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < columns; k += kBlock, out += kBlock) {
      Vector parts[kLanes];
      gather_block(x + m * columns, columns, k, parts);
      for (int j = 0; j < kLanes; ++j) {
        vector_at(out + j * kLanes).value = in_place ? parts[j] * (1 / left_scale(j)) : parts[j];
      }
    }
  }
}

}  // namespace

void int4_matmul(const float* x, int64_t rows, const Int4Linear* layers, int64_t count, float* out, int64_t stride,
                 const Threads& threads) {
  if (rows == 0 || count == 0) return;
  const Int4& weight = layers[0].weight;
  const std::unique_ptr<float[]> gathered(new float[rows * blocks_of(weight.columns) * kBlock]);
  const bool in_place = rows <= kRegisterRows && form_of(weight) != kCodebook;
  BERTGEN_DISPATCH_UP_TO(Avx2, gather_rows)(x, rows, weight.columns, in_place, gathered.get());
  const auto multiply = BERTGEN_DISPATCH(multiply_columns);
  for_each_columns<Workspace>(static_cast<const float*>(gathered.get()), rows, layers, count, out, stride, threads,
                              multiply);
}

void int4_dequantize(const Int4& weight, float* out, const Threads& threads) {
  const auto unpack = BERTGEN_DISPATCH_UP_TO(Avx2, unpack_rows);
  const int64_t tasks = (weight.rows + kInt4TaskRows - 1) / kInt4TaskRows;
  for_each<NoWorkspace>(tasks, weight.rows * weight.columns, threads, [&](int64_t i, NoWorkspace&) {
    unpack(weight, i * kInt4TaskRows, std::min(weight.rows, (i + 1) * kInt4TaskRows), out);
  });
}

}  // namespace bertgen
