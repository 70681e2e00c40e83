#include "decode_attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "vector.h"

namespace bertgen {
namespace {

struct Task {
  Shape shape;
  int64_t first_row, rows;    // these share the keys
  int64_t first_head, heads;  // these it computes
  Heads q;
  float* out;                  // [rows of all tasks, shape.heads, shape.width]
  const float* const* keys;    // of each slot, at first_head
  const float* const* values;
  int64_t length;
};

int64_t rounded(int64_t length) { return (length + kLanes - 1) / kLanes * kLanes; }

// scores[j] = q . keys[j] for one head, j < 8
template <int64_t kWidth>
BERTGEN_INLINE void dots(const float* q, const float* const* keys, int64_t offset, int64_t any_width, float* scores) {
  const int64_t width = kWidth ? kWidth : any_width;
  Vector sums[kLanes] = {}, result;
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    const Vector part = *reinterpret_cast<const Vector*>(q + d);
    for (int j = 0; j < kLanes; ++j) sums[j] += part * *reinterpret_cast<const Vector*>(keys[j] + offset + d);
  }
  add_across(sums, result);
  *reinterpret_cast<Vector*>(scores) = result;
  for (; d < width; ++d) {
    for (int j = 0; j < kLanes; ++j) scores[j] += q[d] * keys[j][offset + d];
  }
}

// out += sum_j weights[j] values[j] for one head, j < count
template <int64_t kWidth>
BERTGEN_INLINE void accumulate(const float* weights, const float* const* values, int64_t count, int64_t offset,
                               int64_t any_width, float* out) {
  const int64_t width = kWidth ? kWidth : any_width;
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    Vector sum = *reinterpret_cast<Vector*>(out + d);
    if (count == kLanes) {
      for (int j = 0; j < kLanes; ++j) sum += weights[j] * *reinterpret_cast<const Vector*>(values[j] + offset + d);
    } else {
      for (int64_t j = 0; j < count; ++j) sum += weights[j] * *reinterpret_cast<const Vector*>(values[j] + offset + d);
    }
    *reinterpret_cast<Vector*>(out + d) = sum;
  }
  for (; d < width; ++d) {
    for (int64_t j = 0; j < count; ++j) out[d] += weights[j] * values[j][offset + d];
  }
}

// scores -> 2^(scores - top), in place; returns their sum. A NaN comes through. There is room up to rounded(length).
BERTGEN_INLINE float exponentials(float* scores, int64_t length) {
  const int64_t padded = rounded(length);
  for (int64_t t = length; t < padded; ++t) scores[t] = -INFINITY;
  Vector best = *reinterpret_cast<Vector*>(scores), sums = {};
  for (int64_t t = kLanes; t < padded; t += kLanes) {
    const Vector x = *reinterpret_cast<Vector*>(scores + t);
    best = x > best ? x : best;
  }
  float top = best[0], sum = 0;
  for (int j = 1; j < kLanes; ++j) top = best[j] > top ? best[j] : top;
  for (int64_t t = 0; t < padded; t += kLanes) {
    Vector x = *reinterpret_cast<Vector*>(scores + t) - top;
    power_of_two(x);
    sums += x;
    *reinterpret_cast<Vector*>(scores + t) = x;
  }
  for (int j = 0; j < kLanes; ++j) sum += sums[j];
  return sum;
}

// `scratch` holds the scores [rows, heads, rounded(length)] and the scaled queries [rows, heads, width].
template <int64_t kWidth>
BERTGEN_INLINE void attend(const Task& task, float* scratch) {
  const int64_t width = kWidth ? kWidth : task.shape.width, pairs = task.rows * task.heads;
  const int64_t stride = rounded(task.length);
  float* queries = scratch + pairs * stride;
  // Scores are wanted in powers of 2.
  const float scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(width)));
  for (int64_t w = 0; w < task.rows; ++w) {
    for (int64_t h = 0; h < task.heads; ++h) {
      const float* q = task.q.data + (task.first_row + w) * task.q.row + (task.first_head + h) * task.q.head;
      for (int64_t d = 0; d < width; ++d) queries[(w * task.heads + h) * width + d] = q[d] * scale;
    }
  }
  const float* block[kLanes];
  for (int64_t t = 0; t < task.length; t += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) block[j] = task.keys[std::min(t + j, task.length - 1)];
    for (int64_t h = 0; h < task.heads; ++h) {
      for (int64_t w = 0; w < task.rows; ++w) {
        const int64_t pair = w * task.heads + h;
        dots<kWidth>(queries + pair * width, block, h * width, width, scratch + pair * stride + t);
      }
    }
  }
  float* out = task.out + (task.first_row * task.shape.heads + task.first_head) * width;
  float* sums = queries;  // the queries have done their part
  for (int64_t pair = 0; pair < pairs; ++pair) sums[pair] = exponentials(scratch + pair * stride, task.length);
  for (int64_t w = 0; w < task.rows; ++w) {
    std::fill_n(out + w * task.shape.heads * width, task.heads * width, 0.0f);
  }
  for (int64_t t = 0; t < task.length; t += kLanes) {
    const int64_t count = std::min(kLanes, task.length - t);
    for (int64_t h = 0; h < task.heads; ++h) {
      for (int64_t w = 0; w < task.rows; ++w) {
        accumulate<kWidth>(scratch + (w * task.heads + h) * stride + t, task.values + t, count, h * width, width,
                           out + (w * task.shape.heads + h) * width);
      }
    }
  }
  for (int64_t w = 0; w < task.rows; ++w) {
    for (int64_t h = 0; h < task.heads; ++h) {
      float* head = out + (w * task.shape.heads + h) * width;
      for (int64_t d = 0; d < width; ++d) head[d] /= sums[w * task.heads + h];
    }
  }
}

void attend_anywhere(const Task& task, float* scratch) {
  task.shape.width == 64 ? attend<64>(task, scratch) : attend<0>(task, scratch);
}

#if defined(BERTGEN_X86)
BERTGEN_AVX2 void attend_avx2(const Task& task, float* scratch) {
  task.shape.width == 64 ? attend<64>(task, scratch) : attend<0>(task, scratch);
}
#else
constexpr auto* attend_avx2 = attend_anywhere;
#endif

void attend_here(const Task& task, float* scratch) {
  const auto best = choose(attend_anywhere, attend_avx2);
  best(task, scratch);
}

// What one thread works in; it grows to the largest task.
struct Workspace {
  std::vector<float> floats;
  std::vector<const float*> keys, values;
};

float* room(std::vector<float>& floats, int64_t size) {
  if (static_cast<int64_t>(floats.size()) < size) floats.resize(size);
  return floats.data();
}

// How many heads go into one task: all, unless there are fewer groups of rows than threads to share them, or the
// scores of `rows` rows, `length` long, would not stay in the second cache.
int64_t heads_per_task(int64_t groups, int64_t heads, int64_t rows, int64_t length, const Threads& threads) {
  constexpr int64_t kScores = 1 << 16;
  const int64_t cuts = std::max<int64_t>(1, 2 * threads.count / std::max<int64_t>(1, groups));
  const int64_t shared = (heads + cuts - 1) / cuts;
  return std::max<int64_t>(1, std::min(shared, kScores / std::max<int64_t>(1, rows * length)));
}

}  // namespace

void decode_attention(const Shape& shape, const Heads& q, const Heads& k, const Heads& v, float* key_pool,
                      float* value_pool, const int64_t* slots, const int32_t* table, int64_t table_stride,
                      const int32_t* lengths, float* out, const Threads& threads) {
  const int64_t slot_size = shape.heads * shape.width;
  int64_t total = 0, longest = 0;
  for (int64_t r = 0; r < shape.rows; ++r) {
    total += lengths[r] + 1;
    longest = std::max<int64_t>(longest, lengths[r] + 1);
  }
  const int64_t each = heads_per_task(shape.rows, shape.heads, 1, longest, threads);
  const int64_t cuts = (shape.heads + each - 1) / each;
  for_each<Workspace>(shape.rows * cuts, 2 * total * slot_size, threads, [&](int64_t i, Workspace& workspace) {
    const int64_t r = i / cuts, first = i % cuts * each, heads = std::min(each, shape.heads - first);
    const int64_t length = lengths[r] + 1, floats = heads * shape.width, scores = heads * rounded(length);
    float* scratch = room(workspace.floats, scores + 3 * floats);
    // The new key and value as dense heads. They are read from here and not from the pool: another row may be writing
    // the same slot, if nobody is to read it.
    float *key = scratch + scores + floats, *value = key + floats;
    for (int64_t h = 0; h < heads; ++h) {
      std::memcpy(key + h * shape.width, k.data + r * k.row + (first + h) * k.head, 4 * shape.width);
      std::memcpy(value + h * shape.width, v.data + r * v.row + (first + h) * v.head, 4 * shape.width);
    }
    const int64_t offset = first * shape.width;
    std::memcpy(key_pool + slots[r] * slot_size + offset, key, 4 * floats);
    std::memcpy(value_pool + slots[r] * slot_size + offset, value, 4 * floats);
    workspace.keys.resize(length);
    workspace.values.resize(length);
    for (int64_t t = 0; t + 1 < length; ++t) {
      workspace.keys[t] = key_pool + table[r * table_stride + t] * slot_size + offset;
      workspace.values[t] = value_pool + table[r * table_stride + t] * slot_size + offset;
    }
    workspace.keys[length - 1] = key;
    workspace.values[length - 1] = value;
    attend_here({shape, r, 1, first, heads, q, out, workspace.keys.data(), workspace.values.data(), length}, scratch);
  });
}

void cross_decode_attention(const Shape& shape, const Heads& q, const float* key_pool, const float* value_pool,
                            const int32_t* table, int64_t table_stride, const int32_t* lengths,
                            const int32_t* cu_rows, int64_t sources, float* out, const Threads& threads) {
  const int64_t slot_size = shape.heads * shape.width;
  int64_t total = 0, longest = 0, widest = 0;
  for (int64_t b = 0; b < sources; ++b) {
    total += lengths[b];
    longest = std::max<int64_t>(longest, lengths[b]);
    widest = std::max<int64_t>(widest, cu_rows[b + 1] - cu_rows[b]);
  }
  const int64_t each = heads_per_task(sources, shape.heads, widest, longest, threads);
  const int64_t cuts = (shape.heads + each - 1) / each;
  for_each<Workspace>(sources * cuts, 2 * total * slot_size, threads, [&](int64_t i, Workspace& workspace) {
    const int64_t b = i / cuts, first = i % cuts * each, heads = std::min(each, shape.heads - first);
    const int64_t length = lengths[b], first_row = cu_rows[b], rows = cu_rows[b + 1] - first_row;
    const int64_t offset = first * shape.width;
    if (rows == 0) return;
    if (length == 0) {
      for (int64_t r = first_row; r < first_row + rows; ++r) {
        std::fill_n(out + r * slot_size + offset, heads * shape.width, 0.0f);
      }
      return;
    }
    workspace.keys.resize(length);
    workspace.values.resize(length);
    for (int64_t t = 0; t < length; ++t) {
      workspace.keys[t] = key_pool + table[b * table_stride + t] * slot_size + offset;
      workspace.values[t] = value_pool + table[b * table_stride + t] * slot_size + offset;
    }
    float* scratch = room(workspace.floats, rows * heads * (rounded(length) + shape.width));
    attend_here({shape, first_row, rows, first, heads, q, out, workspace.keys.data(), workspace.values.data(), length},
                scratch);
  });
}

}  // namespace bertgen
