#include "decode_attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "vector.h"

namespace bertgen {
namespace {

// Some heads of rows that share their keys. T is how the pools store a number.
template <class T>
struct Task {
  Shape shape;
  int64_t first_row, rows;
  int64_t first_head, heads;
  Heads q;
  float* out;              // [rows of all tasks, shape.heads, shape.width]
  const T* const* keys;    // [length], of each slot from first_head on
  const T* const* values;
  int64_t length;
};

int64_t padded_length(int64_t length) { return (length + kLanes - 1) / kLanes * kLanes; }

// Begins to bring `width` numbers of each of these slots, from `offset` on, into the cache.
template <class T>
BERTGEN_INLINE void fetch(const T* const* slots, int64_t count, int64_t offset, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t d = 0; d < width; d += kLine) prefetch<kFirstCache>(slots[j] + offset + d);
  }
}

// scores[i][j] = queries[i] . keys[j] for one head, j < 8. The sums of kRows rows and 8 / kRows keys stay in registers.
template <class Set, int kRows, int64_t kWidth, class T>
BERTGEN_INLINE void dots(const float* const* queries, const T* const* keys, int64_t any_width, float* const* scores) {
  constexpr int kKeys = static_cast<int>(kLanes) / kRows;
  const int64_t width = kWidth ? kWidth : any_width;
  for (int first = 0; first < kLanes; first += kKeys) {
    Vector sums[kLanes] = {}, key, all;
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) {
      for (int j = 0; j < kKeys; ++j) {
        load<Set>(keys[first + j] + d, key);
        for (int i = 0; i < kRows; ++i) sums[i * kKeys + j] += vector_at(queries[i] + d).value * key;
      }
    }
    add_across(sums, all);
    float numbers[kLanes];
    vector_at(numbers).value = all;
    for (int i = 0; i < kRows; ++i) std::memcpy(scores[i] + first, numbers + i * kKeys, 4 * kKeys);
    for (; d < width; ++d) {
      for (int j = 0; j < kKeys; ++j) {
        const float number = to_float(keys[first + j][d]);
        for (int i = 0; i < kRows; ++i) scores[i][first + j] += queries[i][d] * number;
      }
    }
  }
}

// out[i] += sum_j weights[i][j] values[j] for kVectors vectors of kRows rows, j < count; the sums stay in registers.
template <class Set, int kRows, int kVectors, class T>
BERTGEN_INLINE void accumulate_vectors(const float* const* weights, const T* const* values, int64_t count, int64_t d,
                                       float* const* out) {
  Vector sums[kRows][kVectors], value;
  for (int i = 0; i < kRows; ++i) {
    for (int n = 0; n < kVectors; ++n) sums[i][n] = vector_at(out[i] + d + n * kLanes).value;
  }
  for (int64_t j = 0; j < count; ++j) {
    for (int n = 0; n < kVectors; ++n) {
      load<Set>(values[j] + d + n * kLanes, value);
      for (int i = 0; i < kRows; ++i) sums[i][n] += weights[i][j] * value;
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int n = 0; n < kVectors; ++n) vector_at(out[i] + d + n * kLanes).value = sums[i][n];
  }
}

// out[i] += sum_j weights[i][j] values[j] for one head of kRows rows, j < count
template <class Set, int kRows, int64_t kWidth, class T>
BERTGEN_INLINE void accumulate(const float* const* weights, const T* const* values, int64_t count, int64_t any_width,
                               float* const* out) {
  constexpr int kVectors = static_cast<int>(kLanes) / kRows;
  const int64_t width = kWidth ? kWidth : any_width;
  int64_t d = 0;
  for (; d + kVectors * kLanes <= width; d += kVectors * kLanes) {
    accumulate_vectors<Set, kRows, kVectors>(weights, values, count, d, out);
  }
  for (; d + kLanes <= width; d += kLanes) accumulate_vectors<Set, kRows, 1>(weights, values, count, d, out);
  for (; d < width; ++d) {
    for (int64_t j = 0; j < count; ++j) {
      const float number = to_float(values[j][d]);
      for (int i = 0; i < kRows; ++i) out[i][d] += weights[i][j] * number;
    }
  }
}

// scores -> 2^(scores - top), in place; returns their sum. NaN stays NaN. There is room for padded_length(length)
// scores.
BERTGEN_INLINE float exponentials(float* scores, int64_t length) {
  const int64_t padded = padded_length(length);
  for (int64_t t = length; t < padded; ++t) scores[t] = -INFINITY;
  Vector best = vector_at(scores).value, sums = {};
  for (int64_t t = kLanes; t < padded; t += kLanes) {
    const Vector x = vector_at(scores + t).value;
    best = BERTGEN_SELECT(x > best, x, best);
  }
  float top = best[0], sum = 0;
  for (int j = 1; j < kLanes; ++j) top = best[j] > top ? best[j] : top;
  for (int64_t t = 0; t < padded; t += kLanes) {
    Vector x = vector_at(scores + t).value - top;
    power_of_two(x);
    sums += x;
    vector_at(scores + t).value = x;
  }
  for (int j = 0; j < kLanes; ++j) sum += sums[j];
  return sum;
}

// The rows of a task: `scratch` has room for the scores [rows, heads, padded_length(length)] and the scaled queries
// [rows, heads, width]. kWidth is the width, or 0 for any.
template <class Set, int64_t kWidth, class T>
class Attention {
 public:
  BERTGEN_INLINE Attention(const Task<T>& task, float* scratch)
      : task_(task),
        width_(kWidth ? kWidth : task.shape.width),
        stride_(padded_length(task.length)),
        scores_(scratch),
        queries_(scratch + task.rows * task.heads * stride_),
        out_(task.out + (task.first_row * task.shape.heads + task.first_head) * width_) {}

  BERTGEN_INLINE void run() {
    scale_queries();
    // The processor itself reads ahead in long slots, as fast as one row is computed.
    const bool fetches = sizeof(T) < sizeof(float) || task_.rows > 1;
    if (fetches) fetch(task_.keys, std::min(kLanes, task_.length), 0, task_.heads * width_);
    const T* block[kLanes];
    for (int64_t t = 0; t < task_.length; t += kLanes) {
      const int64_t next = t + kLanes, left = task_.length - next;
      for (int64_t h = 0; h < task_.heads; ++h) {
        for (int64_t j = 0; j < kLanes; ++j) block[j] = task_.keys[std::min(t + j, task_.length - 1)] + h * width_;
        if (fetches && left > 0) fetch(task_.keys + next, std::min(kLanes, left), h * width_, width_);
        if (fetches && left <= 0) fetch(task_.values, std::min(kLanes, task_.length), h * width_, width_);
        int64_t w = 0;
        for (; w + 4 <= task_.rows; w += 4) score<4>(w, h, t, block);
        for (; w + 2 <= task_.rows; w += 2) score<2>(w, h, t, block);
        for (; w < task_.rows; ++w) score<1>(w, h, t, block);
      }
    }
    float* sums = queries_;  // which are not read any more
    for (int64_t w = 0; w < task_.rows; ++w) {
      for (int64_t h = 0; h < task_.heads; ++h) *sums++ = exponentials(scores(w, h), task_.length);
      std::fill_n(out(w, 0), task_.heads * width_, 0.0f);
    }
    for (int64_t t = 0; t < task_.length; t += kLanes) {
      const int64_t next = t + kLanes, left = task_.length - next, count = std::min(kLanes, task_.length - t);
      for (int64_t h = 0; h < task_.heads; ++h) {
        for (int64_t j = 0; j < count; ++j) block[j] = task_.values[t + j] + h * width_;
        if (fetches && left > 0) fetch(task_.values + next, std::min(kLanes, left), h * width_, width_);
        int64_t w = 0;
        for (; w + 4 <= task_.rows; w += 4) add_values<4>(w, h, t, count, block);
        for (; w + 2 <= task_.rows; w += 2) add_values<2>(w, h, t, count, block);
        for (; w < task_.rows; ++w) add_values<1>(w, h, t, count, block);
      }
    }
    for (int64_t w = 0; w < task_.rows; ++w) {
      for (int64_t h = 0; h < task_.heads; ++h) {
        float* head = out(w, h);
        for (int64_t d = 0; d < width_; ++d) head[d] /= queries_[w * task_.heads + h];
      }
    }
  }

 private:
  BERTGEN_INLINE float* scores(int64_t w, int64_t h) { return scores_ + (w * task_.heads + h) * stride_; }
  BERTGEN_INLINE float* query(int64_t w, int64_t h) { return queries_ + (w * task_.heads + h) * width_; }
  BERTGEN_INLINE float* out(int64_t w, int64_t h) { return out_ + (w * task_.shape.heads + h) * width_; }

  // Scores are in units of ln 2: the softmax takes powers of 2.
  BERTGEN_INLINE void scale_queries() {
    const float scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(width_)));
    for (int64_t w = 0; w < task_.rows; ++w) {
      for (int64_t h = 0; h < task_.heads; ++h) {
        const float* q = task_.q.data + (task_.first_row + w) * task_.q.row + (task_.first_head + h) * task_.q.head;
        for (int64_t d = 0; d < width_; ++d) query(w, h)[d] = q[d] * scale;
      }
    }
  }

  template <int kRows>
  BERTGEN_INLINE void score(int64_t w, int64_t h, int64_t t, const T* const* keys) {
    const float* from[kRows];
    float* to[kRows];
    for (int i = 0; i < kRows; ++i) {
      from[i] = query(w + i, h);
      to[i] = scores(w + i, h) + t;
    }
    dots<Set, kRows, kWidth>(from, keys, width_, to);
  }

  template <int kRows>
  BERTGEN_INLINE void add_values(int64_t w, int64_t h, int64_t t, int64_t count, const T* const* values) {
    const float* weights[kRows];
    float* to[kRows];
    for (int i = 0; i < kRows; ++i) {
      weights[i] = scores(w + i, h) + t;
      to[i] = out(w + i, h);
    }
    accumulate<Set, kRows, kWidth>(weights, values, count, width_, to);
  }

  const Task<T>& task_;
  const int64_t width_, stride_;
  float *const scores_, *const queries_, *const out_;
};

// from [heads, width], `head` apart, as T, dense.
template <class Set, class T>
BERTGEN_INLINE void round_heads(const float* from, int64_t head, int64_t heads, int64_t width, T* to) {
  for (int64_t h = 0; h < heads; ++h, from += head, to += width) {
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) store<Set>(vector_at(from + d).value, to + d);
    for (; d < width; ++d) to[d] = from_float<T>(from[d]);
  }
}

// The kernels over pools of T.
template <class T>
struct Kernels {
  template <class Set>
  static BERTGEN_INLINE void attend(const Task<T>& task, float* scratch) {
    task.shape.width == 64 ? Attention<Set, 64, T>(task, scratch).run() : Attention<Set, 0, T>(task, scratch).run();
  }
  template <class Set>
  static BERTGEN_INLINE void round(const float* from, int64_t head, int64_t heads, int64_t width, T* to) {
    round_heads<Set>(from, head, heads, width, to);
  }
};

// The memory of one thread; it grows to the largest task.
template <class T>
struct Workspace {
  std::vector<float> floats;
  std::vector<T> appended;              // the new key and value of a task
  std::vector<const T*> keys, values;  // of each slot

  float* reserve_floats(int64_t size) {
    if (static_cast<int64_t>(floats.size()) < size) floats.resize(size);
    return floats.data();
  }

  // Keys and values of `count` slots, from `offset` on in a slot of `slot_size` numbers.
  void point_at(const int32_t* slots, int64_t count, const Pools& pools, int64_t slot_size, int64_t offset) {
    const T *all_keys = static_cast<const T*>(pools.keys), *all_values = static_cast<const T*>(pools.values);
    keys.resize(count);
    values.resize(count);
    for (int64_t t = 0; t < count; ++t) {
      keys[t] = all_keys + slots[t] * slot_size + offset;
      values[t] = all_values + slots[t] * slot_size + offset;
    }
  }
};

// The division of `groups` groups of rows, each with its own keys, into tasks: all heads of a group in one task, unless
// there are fewer groups than threads, or the scores of `rows` rows of `length` keys would not stay in the second
// cache.
class HeadTasks {
 public:
  HeadTasks(int64_t groups, int64_t heads, int64_t rows, int64_t length, const Threads& threads)
      : heads_(heads), groups_(groups) {
    constexpr int64_t kScores = 1 << 16;
    const int64_t parts = std::max<int64_t>(1, 2 * threads.count / std::max<int64_t>(1, groups));
    const int64_t share = (heads + parts - 1) / parts;
    size_ = std::max<int64_t>(1, std::min(share, kScores / std::max<int64_t>(1, rows * length)));
    parts_ = (heads + size_ - 1) / size_;
  }

  int64_t count() const { return groups_ * parts_; }
  int64_t group(int64_t task) const { return task / parts_; }
  int64_t first_head(int64_t task) const { return task % parts_ * size_; }
  int64_t heads(int64_t task) const { return std::min(size_, heads_ - first_head(task)); }

 private:
  int64_t heads_, groups_;
  int64_t size_, parts_;  // heads of a task, tasks of a group
};

template <class T>
void decode_attention_over(const Shape& shape, const Heads& q, const Heads& k, const Heads& v, const Pools& pools,
                           const int64_t* slots, const int32_t* table, int64_t table_stride, const int32_t* lengths,
                           float* out, const Threads& threads) {
  const int64_t slot_size = shape.heads * shape.width;
  int64_t total = 0, longest = 0;
  for (int64_t r = 0; r < shape.rows; ++r) {
    total += lengths[r] + 1;
    longest = std::max<int64_t>(longest, lengths[r] + 1);
  }
  const auto attend = BERTGEN_DISPATCH_UP_TO(Avx2, Kernels<T>::template attend);
  const auto round = BERTGEN_DISPATCH_UP_TO(Avx2, Kernels<T>::template round);
  const HeadTasks tasks(shape.rows, shape.heads, 1, longest, threads);
  for_each<Workspace<T>>(tasks.count(), 2 * total * slot_size, threads, [&](int64_t i, Workspace<T>& workspace) {
    const int64_t r = tasks.group(i), first = tasks.first_head(i), heads = tasks.heads(i);
    const int64_t length = lengths[r] + 1, numbers = heads * shape.width, offset = first * shape.width;
    // The new key and value as dense heads. They are read from here and not from the pool, where another row may write
    // the same slot, if no row reads that slot.
    workspace.appended.resize(2 * numbers);
    T *key = workspace.appended.data(), *value = key + numbers;
    round(k.data + r * k.row + first * k.head, k.head, heads, shape.width, key);
    round(v.data + r * v.row + first * v.head, v.head, heads, shape.width, value);
    std::copy_n(key, numbers, static_cast<T*>(pools.keys) + slots[r] * slot_size + offset);
    std::copy_n(value, numbers, static_cast<T*>(pools.values) + slots[r] * slot_size + offset);
    workspace.point_at(table + r * table_stride, lengths[r], pools, slot_size, offset);
    workspace.keys.push_back(key);
    workspace.values.push_back(value);
    float* scratch = workspace.reserve_floats(heads * (padded_length(length) + shape.width));
    attend({shape, r, 1, first, heads, q, out, workspace.keys.data(), workspace.values.data(), length}, scratch);
  });
}

template <class T>
void cross_decode_attention_over(const Shape& shape, const Heads& q, const Pools& pools, const int32_t* table,
                                 int64_t table_stride, const int32_t* lengths, const int32_t* cu_rows,
                                 int64_t sources, float* out, const Threads& threads) {
  const int64_t slot_size = shape.heads * shape.width;
  int64_t total = 0, longest = 0, most_rows = 0;
  for (int64_t b = 0; b < sources; ++b) {
    total += lengths[b];
    longest = std::max<int64_t>(longest, lengths[b]);
    most_rows = std::max<int64_t>(most_rows, cu_rows[b + 1] - cu_rows[b]);
  }
  const auto attend = BERTGEN_DISPATCH_UP_TO(Avx2, Kernels<T>::template attend);
  const HeadTasks tasks(sources, shape.heads, most_rows, longest, threads);
  for_each<Workspace<T>>(tasks.count(), 2 * total * slot_size, threads, [&](int64_t i, Workspace<T>& workspace) {
    const int64_t b = tasks.group(i), first = tasks.first_head(i), heads = tasks.heads(i);
    const int64_t length = lengths[b], first_row = cu_rows[b], rows = cu_rows[b + 1] - first_row;
    const int64_t offset = first * shape.width;
    if (rows == 0) return;
    if (length == 0) {
      for (int64_t r = first_row; r < first_row + rows; ++r) {
        std::fill_n(out + r * slot_size + offset, heads * shape.width, 0.0f);
      }
      return;
    }
    workspace.point_at(table + b * table_stride, length, pools, slot_size, offset);
    float* scratch = workspace.reserve_floats(rows * heads * (padded_length(length) + shape.width));
    attend({shape, first_row, rows, first, heads, q, out, workspace.keys.data(), workspace.values.data(), length},
           scratch);
  });
}

}  // namespace

void decode_attention(const Shape& shape, const Heads& q, const Heads& k, const Heads& v, const Pools& pools,
                      const int64_t* slots, const int32_t* table, int64_t table_stride, const int32_t* lengths,
                      float* out, const Threads& threads) {
  dispatch_type(pools.type, [&](auto number) {
    decode_attention_over<decltype(number)>(shape, q, k, v, pools, slots, table, table_stride, lengths, out, threads);
  });
}

void cross_decode_attention(const Shape& shape, const Heads& q, const Pools& pools, const int32_t* table,
                            int64_t table_stride, const int32_t* lengths, const int32_t* cu_rows, int64_t sources,
                            float* out, const Threads& threads) {
  dispatch_type(pools.type, [&](auto number) {
    cross_decode_attention_over<decltype(number)>(shape, q, pools, table, table_stride, lengths, cu_rows, sources, out,
                                                  threads);
  });
}

}  // namespace bertgen
