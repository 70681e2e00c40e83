#include "int4_cpu.h"

#include <algorithm>
#include <memory>

#include "int4_blocks.h"
#include "product.h"

namespace bertgen {
namespace {

// A mask leaves nibble j of every word of a block, the weights 8 i + j, side by side. x is put in that order once a call;
// nothing else is shuffled.
constexpr int64_t kFew = 4;    // rows of x up to which unpacking in registers is faster (bench/int4.py)
constexpr int64_t kPair = 2;   // rows of the weight that are unpacked in turns there
constexpr int64_t kTask = 48;  // rows of the weight to a task

enum Form { kSymmetric, kZero, kCodebook };

Form form_of(const Int4& w) { return w.codebook ? kCodebook : w.zero ? kZero : kSymmetric; }

struct Call {
  Int4 weight;
  const float* x;  // [rows, blocks, 8, 8] in the order of the nibbles; see arrange
  int64_t rows;
  const float* bias;
  float* out;  // its rows are `stride` apart
  int64_t stride;
};

struct Workspace {
  std::unique_ptr<float[]> rows;  // of the weight, unpacked
};

struct Tables {
  Vector halves[2];
};

template <Form kForm>
BERTGEN_INLINE void prepare(const Int4& w, Tables& tables) {
  if (kForm == kCodebook) {
    for (int i = 0; i < 2; ++i) tables.halves[i] = *reinterpret_cast<const Vector*>(w.codebook + i * kLanes);
  }
}

// What nibble j of each word means, but for the scale. A nibble whose highest bit is turned is n - 8 in two's
// complement: shifted up and down again it needs neither a mask nor a subtraction.
template <Form kForm>
BERTGEN_INLINE void unpack(const Words& words, int j, const Vector& zero, const Tables& tables, Vector& values) {
  if (kForm == kSymmetric) {
    const Words turned = words ^ static_cast<int32_t>(0x88888888);
    values = __builtin_convertvector((turned << (28 - 4 * j)) >> 28, Vector);
  } else if (kForm == kZero) {
    values = __builtin_convertvector((words >> (4 * j)) & 15, Vector) - zero;
  } else {
#if defined(__clang__)
    for (int i = 0; i < kLanes; ++i) {
      const int n = (words[i] >> (4 * j)) & 15;
      values[i] = tables.halves[n / kLanes][n % kLanes];
    }
#else
    values = __builtin_shuffle(tables.halves[0], tables.halves[1], reinterpret_cast<const Bits&>(words) >> (4 * j));
#endif
  }
}

// How many times as large what `unpack_in_place` makes of nibble j is.
constexpr float raised(int j) { return static_cast<float>(1 << 4 * (j % 4)); }

// What nibble j means, times raised(j), which x makes up for: as it lies, a nibble is put into the mantissa of 2^23,
// whose last bit is 1. That takes no conversion, and no shift but one by 16 for the `words` of nibbles 4 to 7.
template <Form kForm>
BERTGEN_INLINE void unpack_in_place(const Words& words, int j, const Vector& zero, Vector& values) {
  static_assert(kForm != kCodebook, "an entry has a number");
  constexpr float kOne = 8388608.0f;  // 2^23
  const Words bits = (words & (15 << 4 * (j % 4))) | 0x4B000000;
  if (kForm == kSymmetric) {
    values = reinterpret_cast<const Vector&>(bits) - (kOne + 8 * raised(j));
  } else {
    values = (reinterpret_cast<const Vector&>(bits) - kOne) - zero * raised(j);
  }
}

// out[m, n] for kM rows of x and kN rows of the weight, from n on; the scales multiply sums of blocks.
template <Form kForm, int kM, int kN>
BERTGEN_INLINE void in_registers(const Call& c, int64_t n) {
  const Int4& w = c.weight;
  const int64_t blocks = blocks_of(w.columns);
  const bool ahead = n + 2 * kN <= w.rows;
  Tables tables;
  prepare<kForm>(w, tables);
  Vector totals[kLanes] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    const float* x = c.x + b * kBlock;
    Words words[kN];
    Vector zeros[kN] = {}, sums[kM * kN] = {};
    for (int j = 0; j < kN; ++j) {
      load(w, n + j, b * kBlock, words[j]);
      if (ahead) __builtin_prefetch(w.packed + (((n + kN + j) * w.columns + b * kBlock) >> 1));
      if (kForm == kZero) spread(w, w.zero, n + j, b * kBlock, zeros[j]);
    }
#pragma GCC unroll 8
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
          sums[i * kN + j] += values * *reinterpret_cast<const Vector*>(x + i * blocks * kBlock + part * kLanes);
        }
      }
    }
    for (int j = 0; j < kN; ++j) {
      Vector scale;
      spread(w, w.scale, n + j, b * kBlock, scale);
      for (int i = 0; i < kM; ++i) totals[i * kN + j] += scale * sums[i * kN + j];
    }
  }
  Vector total;
  add_across(totals, total);
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      c.out[i * c.stride + n + j] = total[i * kN + j] + (c.bias == nullptr ? 0.0f : c.bias[n + j]);
    }
  }
}

template <Form kForm, int kM>
BERTGEN_INLINE void few(const Call& c, int64_t first, int64_t last) {
  int64_t n = first;
  for (; n + kPair <= last; n += kPair) in_registers<kForm, kM, kPair>(c, n);
  for (; n < last; ++n) in_registers<kForm, kM, 1>(c, n);
}

template <Form kForm>
BERTGEN_INLINE void any_few(const Call& c, int64_t first, int64_t last) {
  switch (c.rows) {
    case 1: return few<kForm, 1>(c, first, last);
    case 2: return few<kForm, 2>(c, first, last);
    case 3: return few<kForm, 3>(c, first, last);
    case 4: return few<kForm, 4>(c, first, last);
  }
  static_assert(kFew == 4, "the cases above");
}

// Row n of the weight in floats: [blocks, 8, 8] in the order of the nibbles, or [columns] as it is defined.
template <Form kForm, bool kInOrder>
BERTGEN_INLINE void unpack_row(const Int4& w, int64_t n, float* out) {
  Tables tables;
  prepare<kForm>(w, tables);
  for (int64_t k = 0; k < w.columns; k += kBlock) {
    Words words;
    Vector scale, zero = {}, values[kLanes];
    load(w, n, k, words);
    spread(w, w.scale, n, k, scale);
    if (kForm == kZero) spread(w, w.zero, n, k, zero);
#pragma GCC unroll 8
    for (int part = 0; part < kLanes; ++part) {
      unpack<kForm>(words, part, zero, tables, values[part]);
      values[part] *= scale;
    }
    if (kInOrder) transpose(values);
    const bool whole = !kInOrder || k + kBlock <= w.columns;
    for (int64_t i = 0; i < kLanes; ++i) {
      if (whole || i < kLanes / 2) *reinterpret_cast<Vector*>(out + k + i * kLanes) = values[i];
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

// Columns first .. last - 1 of the product; for more than a few rows of x kN at a time.
template <int kN>
BERTGEN_INLINE void columns(const Call& c, int64_t first, int64_t last, Workspace& workspace) {
  if (c.rows <= kFew) {
    switch (form_of(c.weight)) {
      case kSymmetric: return any_few<kSymmetric>(c, first, last);
      case kZero: return any_few<kZero>(c, first, last);
      case kCodebook: return any_few<kCodebook>(c, first, last);
    }
  }
  const int64_t width = blocks_of(c.weight.columns) * kBlock;
  if (workspace.rows == nullptr) workspace.rows.reset(new float[kN * width]);
  for (int64_t n = first; n < last; n += kN) {
    const int64_t count = std::min<int64_t>(kN, last - n);
    for (int64_t j = 0; j < count; ++j) unpack_any_row<false>(c.weight, n + j, workspace.rows.get() + j * width);
    const float* bias = c.bias == nullptr ? nullptr : c.bias + n;
    multiply<kN>({c.x, c.rows, width, workspace.rows.get(), count, bias, c.out + n, c.stride}, 0, count);
  }
}

BERTGEN_INLINE void rows(const Int4& w, int64_t first, int64_t last, float* out) {
  for (int64_t n = first; n < last; ++n) unpack_any_row<true>(w, n, out + n * w.columns);
}

// x [rows, columns] -> [rows, blocks, 8, 8], as Call has it; `lowered`: over what `unpack_in_place` multiplies by.
BERTGEN_INLINE void arrange(const float* x, int64_t count, int64_t columns, bool lowered, float* out) {
  for (int64_t m = 0; m < count; ++m) {
    for (int64_t k = 0; k < columns; k += kBlock, out += kBlock) {
      Vector parts[kLanes] = {};
      const float* part = x + m * columns + k;
      for (int64_t i = 0; i < kLanes; ++i) {
        if (i < kLanes / 2 || k + kBlock <= columns) parts[i] = *reinterpret_cast<const Vector*>(part + i * kLanes);
      }
      transpose(parts);
      for (int i = 0; i < kLanes; ++i) {
        *reinterpret_cast<Vector*>(out + i * kLanes) = lowered ? parts[i] * (1 / raised(i)) : parts[i];
      }
    }
  }
}

void columns_anywhere(const Call& c, int64_t first, int64_t last, Workspace& w) {
  columns<kOutputs>(c, first, last, w);
}
void rows_anywhere(const Int4& w, int64_t first, int64_t last, float* out) { rows(w, first, last, out); }
void arrange_anywhere(const float* x, int64_t m, int64_t k, bool low, float* out) { arrange(x, m, k, low, out); }

#if defined(BERTGEN_X86)
BERTGEN_AVX2 void columns_avx2(const Call& c, int64_t first, int64_t last, Workspace& w) {
  columns<kOutputs>(c, first, last, w);
}
BERTGEN_AVX512 void columns_avx512(const Call& c, int64_t first, int64_t last, Workspace& w) {
  columns<kOutputsAvx512>(c, first, last, w);
}
BERTGEN_AVX2 void rows_avx2(const Int4& w, int64_t first, int64_t last, float* out) { rows(w, first, last, out); }
BERTGEN_AVX2 void arrange_avx2(const float* x, int64_t m, int64_t k, bool low, float* out) {
  arrange(x, m, k, low, out);
}
#else
constexpr auto *columns_avx2 = columns_anywhere, *columns_avx512 = columns_anywhere;
constexpr auto* rows_avx2 = rows_anywhere;
constexpr auto* arrange_avx2 = arrange_anywhere;
#endif

}  // namespace

void int4_matmul(const float* x, int64_t rows, const Int4Linear* layers, int64_t count, float* out, int64_t stride,
                 const Threads& threads) {
  const auto columns_here = choose(columns_anywhere, columns_avx2, columns_avx512);
  const auto arrange_here = choose(arrange_anywhere, arrange_avx2);
  if (rows == 0 || count == 0) return;
  const Int4& weight = layers[0].weight;
  const std::unique_ptr<float[]> arranged(new float[rows * blocks_of(weight.columns) * kBlock]);
  const bool in_place = rows <= kFew && form_of(weight) != kCodebook;
  arrange_here(x, rows, weight.columns, in_place, arranged.get());
  const int64_t tasks = (weight.rows + kTask - 1) / kTask;  // of a layer
  const auto task = [&](int64_t i, Workspace& workspace) {
    const int64_t layer = i / tasks, first = i % tasks * kTask;
    const Int4Linear& given = layers[layer];
    const Call call{given.weight, arranged.get(), rows, given.bias, out + layer * weight.rows, stride};
    columns_here(call, first, std::min(weight.rows, first + kTask), workspace);
  };
  for_each<Workspace>(count * tasks, count * weight.rows * weight.columns / 8, threads, task);
}

void int4_dequantize(const Int4& weight, float* out, const Threads& threads) {
  const auto rows_here = choose(rows_anywhere, rows_avx2);
  const auto task = [&](int64_t i, Nothing&) {
    rows_here(weight, i * kTask, std::min(weight.rows, (i + 1) * kTask), out);
  };
  for_each<Nothing>((weight.rows + kTask - 1) / kTask, weight.rows * weight.columns, threads, task);
}

}  // namespace bertgen
