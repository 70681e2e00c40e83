#include "packed_attention_cpu.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

namespace bertgen {
namespace {

constexpr int64_t kTileQueries = 2 * kLanes;  // that are multiplied with a key at a time
constexpr int64_t kTaskQueries = 16 * kTileQueries;  // of a task, at most: what these need stays in the second cache
constexpr int64_t kLine = 64;  // bytes of a line of the caches
constexpr int64_t kBlockKeys = 64;  // that are widened at a time: these, or their values, stay in the first cache

// Some queries of a sequence, its keys, and some heads.
struct Task {
  int64_t sequence;
  int64_t first_head, heads;
  int64_t first_query, queries;  // of all queries
  int64_t first_key, keys;       // of all keys
  int64_t position;              // of the first query among the keys: it sees the keys up to this one
};

int64_t whole_tiles(int64_t queries) { return (queries + kTileQueries - 1) / kTileQueries * kTileQueries; }

// Vectors that are read or written next, a few of which begin to come into the second cache between products. Those of a
// head lie far apart: the processor does not foresee the next one, and many at a time would keep it waiting.
class Ahead {
 public:
  // Vectors of `bytes` bytes, `stride` bytes apart.
  void add(const void* first, int64_t stride, int64_t count, int64_t bytes) {
    lists_[end_++] = {static_cast<const char*>(first), stride, count, bytes};
  }

  void clear() { next_ = end_ = 0; }

  BERTGEN_INLINE void fetch_two() {
    for (int i = 0; i < 2 && next_ < end_; ++i) {
      List& list = lists_[next_];
      for (int64_t byte = 0; byte < list.bytes; byte += kLine) prefetch<kSecondCache>(list.vector + byte);
      list.vector += list.stride;
      if (--list.count <= 0) ++next_;
    }
  }

 private:
  struct List {
    const char* vector;
    int64_t stride, count, bytes;
  };

  List lists_[4];
  int next_ = 0, end_ = 0;
};

// The memory of one thread; it grows to the largest task. All arrays begin at a cache line.
class Workspace {
 public:
  void reserve(int64_t queries, int64_t width) {
    constexpr int64_t kFloats = kLine / sizeof(float);
    const int64_t lanes = whole_tiles(queries);
    const size_t size = 2 * lanes * (width + 1) + kBlockKeys * (2 * width + kTileQueries) + 7 * kFloats;
    if (floats_.size() < size) floats_.resize(size);
    float* next = floats_.data();
    const auto take = [&](int64_t count) {
      next += (kFloats - reinterpret_cast<uintptr_t>(next) / sizeof(float) % kFloats) % kFloats;
      float* array = next;
      next += count;
      return array;
    };
    queries_ = take(lanes * width);
    results_ = take(lanes * width);
    tops_ = take(lanes);
    sums_ = take(lanes);
    keys_ = take(kBlockKeys * width);
    values_ = take(kBlockKeys * width);
    scores_ = take(kBlockKeys * kTileQueries);
  }

  float* queries() const { return queries_; }  // [tiles, width, lanes], times the scale
  float* results() const { return results_; }  // [tiles, width, lanes], not yet divided by the sums
  float* tops() const { return tops_; }        // [tiles, lanes]: the greatest score so far
  float* sums() const { return sums_; }        // [tiles, lanes]: of the weights, 2^(score - top)
  float* keys() const { return keys_; }        // [kBlockKeys, width]
  float* values() const { return values_; }    // [kBlockKeys, width]
  float* scores() const { return scores_; }    // [kBlockKeys, lanes], then the weights

  Ahead ahead;
  int64_t positions[kBlockKeys];  // of the keys of the block in their sequence, ascending

 private:
  std::vector<float> floats_;
  float *queries_, *results_, *tops_, *sums_, *keys_, *values_, *scores_;
};

// Token vectors

template <class Set, class T>
BERTGEN_INLINE void widen_as(const void* data, int64_t offset, int64_t width, float* out) {
  const T* first = static_cast<const T*>(data) + offset;
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    Vector numbers;
    load<Set>(first + d, numbers);
    vector_at(out + d).value = numbers;
  }
  for (; d < width; ++d) out[d] = to_float(first[d]);
}

// The vector [width] at an offset, as floats.
template <class Set>
BERTGEN_INLINE void widen(FloatType type, const void* data, int64_t offset, int64_t width, float* out) {
  switch (type) {
    case kFloat32: return widen_as<Set, Float32>(data, offset, width, out);
    case kBfloat16: return widen_as<Set, Bfloat16>(data, offset, width, out);
    case kFloat16: return widen_as<Set, Float16>(data, offset, width, out);
  }
}

template <class Set, class T>
BERTGEN_INLINE void narrow_as(const float* numbers, int64_t width, void* data, int64_t offset) {
  T* first = static_cast<T*>(data) + offset;
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store<Set>(vector_at(numbers + d).value, first + d);
  for (; d < width; ++d) first[d] = from_float<T>(numbers[d]);
}

// The inverse of `widen`, with rounding.
template <class Set>
BERTGEN_INLINE void narrow(FloatType type, const float* numbers, int64_t width, void* data, int64_t offset) {
  switch (type) {
    case kFloat32: return narrow_as<Set, Float32>(numbers, width, data, offset);
    case kBfloat16: return narrow_as<Set, Bfloat16>(numbers, width, data, offset);
    case kFloat16: return narrow_as<Set, Float16>(numbers, width, data, offset);
  }
}

// rows [kLanes, width] -> columns [width, kLanes] times `factor`; columns are `stride` apart.
BERTGEN_INLINE void turn_into_lanes(const float* rows, int64_t width, float factor, float* columns, int64_t stride) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    Vector block[kLanes];
    for (int i = 0; i < kLanes; ++i) block[i] = vector_at(rows + i * width + d).value;
    transpose(block);
    for (int i = 0; i < kLanes; ++i) vector_at(columns + (d + i) * stride).value = block[i] * factor;
  }
  for (; d < width; ++d) {
    for (int i = 0; i < kLanes; ++i) columns[d * stride + i] = rows[i * width + d] * factor;
  }
}

// The inverse, with a factor for each lane.
BERTGEN_INLINE void turn_into_rows(const float* columns, int64_t stride, int64_t width, const Vector& factors,
                                   float* rows) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    Vector block[kLanes];
    for (int i = 0; i < kLanes; ++i) block[i] = vector_at(columns + (d + i) * stride).value * factors;
    transpose(block);
    for (int i = 0; i < kLanes; ++i) vector_at(rows + i * width + d).value = block[i];
  }
  for (; d < width; ++d) {
    for (int i = 0; i < kLanes; ++i) rows[i * width + d] = columns[d * stride + i] * factors[i];
  }
}

// Products

// out [kRows, kVectors] = a [kRows, depth] b [depth, kVectors] + factors * out, with a vector of b and out for each
// element. Element (i, k) of a is at i * row + k * step. Without factors `out` is only written.
template <int kRows, int kVectors>
BERTGEN_INLINE void multiply_tile(const float* a, int64_t row, int64_t step, int64_t depth, const float* b,
                                  const Vector* factors, float* out) {
  Vector sums[kRows][kVectors] = {};
  if (factors != nullptr) {
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        sums[i][v] = vector_at(out + (i * kVectors + v) * kLanes).value * factors[v];
      }
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vector part[kVectors];
    for (int v = 0; v < kVectors; ++v) part[v] = vector_at(b + (k * kVectors + v) * kLanes).value;
    for (int i = 0; i < kRows; ++i) {
      const float number = a[i * row + k * step];
      for (int v = 0; v < kVectors; ++v) sums[i][v] += number * part[v];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) vector_at(out + (i * kVectors + v) * kLanes).value = sums[i][v];
  }
}

template <int kRows, int kVectors>
BERTGEN_INLINE void multiply_last(int64_t rows, const float* a, int64_t row, int64_t step, int64_t depth,
                                  const float* b, const Vector* factors, float* out) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return multiply_tile<kRows, kVectors>(a, row, step, depth, b, factors, out);
    multiply_last<kRows - 1, kVectors>(rows, a, row, step, depth, b, factors, out);
  }
}

// As multiply_tile, of any number of rows: 8 sums keep the units busy that multiply and add, and divide a width of 64.
template <int kVectors>
BERTGEN_INLINE void multiply(int64_t rows, const float* a, int64_t row, int64_t step, int64_t depth, const float* b,
                             const Vector* factors, float* out, Ahead& ahead) {
  constexpr int kRows = kVectors == 1 ? 8 : 4;
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    ahead.fetch_two();
    multiply_tile<kRows, kVectors>(a + i * row, row, step, depth, b, factors, out + i * kVectors * kLanes);
  }
  multiply_last<kRows - 1, kVectors>(rows - i, a + i * row, row, step, depth, b, factors, out + i * kVectors * kLanes);
}

// Attention

// Queries of a tile and the first `visible` keys of the block. The first query sees the first `seen_by_all` of them,
// each further one those of one position more. `lanes` is the tile's place among all lanes.
template <int kVectors, int64_t kWidth>
BERTGEN_INLINE void attend_tile(Workspace& workspace, int64_t any_width, int64_t tile, int64_t visible,
                                int64_t seen_by_all, int64_t position, bool first) {
  constexpr int64_t kStride = kVectors * kLanes;
  const int64_t width = kWidth ? kWidth : any_width, lanes = tile * kTileQueries;
  float *scores = workspace.scores(), *results = workspace.results() + lanes * width;
  multiply<kVectors>(visible, workspace.keys(), width, 1, width, workspace.queries() + lanes * width, nullptr, scores,
                     workspace.ahead);

  const Vector hidden = Vector{} - INFINITY;
  for (int64_t j = seen_by_all; j < visible; ++j) {
    // The key at the position of the first query plus n is hidden from the queries before number n.
    const int64_t n = workspace.positions[j] - position;
    for (int64_t i = 0; i < n; ++i) scores[j * kStride + i] = -INFINITY;
  }

  Vector tops[kVectors], sums[kVectors], factors[kVectors];
  float *all_tops = workspace.tops() + lanes, *all_sums = workspace.sums() + lanes;
  for (int v = 0; v < kVectors; ++v) {
    const Vector before = first ? hidden : vector_at(all_tops + v * kLanes).value;
    Vector top = before;
    for (int64_t j = 0; j < visible; ++j) {
      const Vector score = vector_at(scores + j * kStride + v * kLanes).value;
      top = BERTGEN_SELECT(score > top, score, top);
    }
    vector_at(all_tops + v * kLanes).value = top;
    // Where a query has not seen a key yet, the hidden ones must have the weight 0 and not NaN.
    tops[v] = seen_by_all < visible ? BERTGEN_SELECT(top < Vector{} - 3e38f, Vector{}, top) : top;
    factors[v] = before - tops[v];
    power_of_two(factors[v]);
    sums[v] = first ? Vector{} : vector_at(all_sums + v * kLanes).value * factors[v];
  }
  for (int64_t begin = 0; begin < visible; begin += kLanes) {
    Vector part[kVectors] = {};  // of the sums: one weight at a time is rounded to the last place of a large sum
    for (int64_t j = begin; j < std::min(begin + kLanes, visible); ++j) {
      for (int v = 0; v < kVectors; ++v) {
        const Vector score = vector_at(scores + j * kStride + v * kLanes).value;
        Vector weight = score - tops[v];
        power_of_two(weight);
        if (j >= seen_by_all) weight = BERTGEN_SELECT(score < Vector{} - 3e38f, Vector{}, weight);
        part[v] += weight;
        vector_at(scores + j * kStride + v * kLanes).value = weight;
      }
    }
    for (int v = 0; v < kVectors; ++v) sums[v] += part[v];
  }
  for (int v = 0; v < kVectors; ++v) vector_at(all_sums + v * kLanes).value = sums[v];
  multiply<kVectors>(width, workspace.values(), 1, width, visible, scores, first ? nullptr : factors, results,
                     workspace.ahead);
}

// Lists the vectors of some tokens as read next.
BERTGEN_INLINE void fetch_tokens(const PackedAttention& a, const TokenHeads& x, int64_t first, int64_t count,
                                 int64_t head, Ahead& ahead) {
  const int64_t item = bytes_of(a.type);
  const char* vector = static_cast<const char*>(x.data) + (first * x.token + head * x.head) * item;
  ahead.add(vector, x.token * item, count, a.width * item);
}

// Widens the next keys of a sequence that are not hidden, from `next` on, and their values; returns how many. Then
// fetches what is read after them: further keys, or those of the next head and its queries.
template <class Set>
BERTGEN_INLINE int64_t next_block(const PackedAttention& a, const Task& task, int64_t head, int64_t end,
                                  Workspace& workspace, int64_t* next) {
  const bool* mask = a.key_mask == nullptr ? nullptr : a.key_mask + task.sequence * a.key_mask_stride;
  int64_t count = 0;
  for (; *next < end && count < kBlockKeys; ++*next) {
    if (mask != nullptr && !mask[*next]) continue;
    const int64_t token = task.first_key + *next;
    widen<Set>(a.type, a.k.data, token * a.k.token + head * a.k.head, a.width, workspace.keys() + count * a.width);
    widen<Set>(a.type, a.v.data, token * a.v.token + head * a.v.head, a.width, workspace.values() + count * a.width);
    workspace.positions[count++] = *next;
  }
  workspace.ahead.clear();
  if (*next == end) {
    fetch_tokens(a, {a.out, a.heads * a.width, a.width}, task.first_query, task.queries, head, workspace.ahead);
    if (++head == task.first_head + task.heads) return count;
    fetch_tokens(a, a.q, task.first_query, task.queries, head, workspace.ahead);
  }
  const int64_t first = *next == end ? 0 : *next, keys = std::min(kBlockKeys, end - first);
  fetch_tokens(a, a.k, task.first_key + first, keys, head, workspace.ahead);
  fetch_tokens(a, a.v, task.first_key + first, keys, head, workspace.ahead);
  return count;
}

// Whether a tile has queries in its first vector only.
bool is_half(const Task& task, int64_t tile) { return task.queries - tile * kTileQueries <= kLanes; }

// The queries of a task as lanes; behind the last one it is repeated.
template <class Set>
BERTGEN_INLINE void read_queries(const PackedAttention& a, const Task& task, int64_t head, Workspace& workspace) {
  // Scores in units of ln 2: the softmax takes powers of 2.
  const float scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(a.width)));
  float* rows = workspace.keys();  // not used yet
  for (int64_t first = 0; first < task.queries; first += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t token = task.first_query + std::min(first + i, task.queries - 1);
      widen<Set>(a.type, a.q.data, token * a.q.token + head * a.q.head, a.width, rows + i * a.width);
    }
    const int64_t tile = first / kTileQueries;
    turn_into_lanes(rows, a.width, scale, workspace.queries() + tile * kTileQueries * a.width + first % kTileQueries,
                    is_half(task, tile) ? kLanes : kTileQueries);
  }
}

// Divides the results by the sums of the weights.
template <class Set>
BERTGEN_INLINE void write_results(const PackedAttention& a, const Task& task, int64_t head, bool any_key,
                                  Workspace& workspace) {
  float* rows = workspace.keys();  // not used any more
  if (!any_key) std::fill_n(rows, kLanes * a.width, 0.0f);
  for (int64_t first = 0; first < task.queries; first += kLanes) {
    if (any_key) {
      const int64_t tile = first / kTileQueries;
      const Vector sums = vector_at(workspace.sums() + first).value;
      const Vector none = Vector{}, factors = BERTGEN_SELECT(sums > none, (none + 1.0f) / sums, sums);  // NaN stays
      turn_into_rows(workspace.results() + tile * kTileQueries * a.width + first % kTileQueries,
                     is_half(task, tile) ? kLanes : kTileQueries, a.width, factors, rows);
    }
    for (int64_t i = 0; i < std::min(kLanes, task.queries - first); ++i) {
      const int64_t token = task.first_query + first + i;
      narrow<Set>(a.type, rows + i * a.width, a.width, a.out, (token * a.heads + head) * a.width);
    }
  }
}

template <class Set, int64_t kWidth>
BERTGEN_INLINE void attend_with_width(const PackedAttention& a, const Task& task, int64_t head, Workspace& workspace) {
  read_queries<Set>(a, task, head, workspace);
  // Keys from here on are hidden from all queries.
  const int64_t end = a.causal ? std::max<int64_t>(0, std::min(task.keys, task.position + task.queries)) : task.keys;
  bool first = true;
  for (int64_t next = 0; next < end;) {
    const int64_t count = next_block<Set>(a, task, head, end, workspace, &next);
    if (count == 0) break;
    for (int64_t tile = 0; tile * kTileQueries < task.queries; ++tile) {
      const int64_t query = tile * kTileQueries, queries = std::min(kTileQueries, task.queries - query);
      const int64_t position = task.position + query;
      int64_t visible = count, seen_by_all = count;
      if (a.causal) {
        const int64_t *keys = workspace.positions, *keys_end = keys + count;
        seen_by_all = std::upper_bound(keys, keys_end, position) - keys;
        visible = std::upper_bound(keys + seen_by_all, keys_end, position + queries - 1) - keys;
        if (visible == 0 && !first) continue;
      }
      if (is_half(task, tile)) {
        attend_tile<1, kWidth>(workspace, a.width, tile, visible, seen_by_all, position, first);
      } else {
        attend_tile<2, kWidth>(workspace, a.width, tile, visible, seen_by_all, position, first);
      }
    }
    first = false;
  }
  write_results<Set>(a, task, head, !first, workspace);
}

template <class Set>
BERTGEN_INLINE void attend(const PackedAttention& a, const Task& task, Workspace& workspace) {
  for (int64_t head = task.first_head; head < task.first_head + task.heads; ++head) {
    a.width == 64 ? attend_with_width<Set, 64>(a, task, head, workspace)
                  : attend_with_width<Set, 0>(a, task, head, workspace);
  }
}

// The tasks of one sequence: parts of its queries, for each group of heads.
struct Sequence {
  int64_t first_task, parts;
};

}  // namespace

void packed_attention(const PackedAttention& a, const Threads& threads) {
  // Large tasks fetch what they read next before they need it; there are some tasks for each thread.
  const int64_t tokens = a.sequences == 0 ? 0 : a.cu_q[a.sequences];
  const int64_t share = tokens * a.heads / (6 * threads.count);  // vectors of a task
  const int64_t part = std::max(kTileQueries, std::min(kTaskQueries, whole_tiles(share)));
  const int64_t typical = std::max<int64_t>(1, std::min(part, tokens / std::max<int64_t>(1, a.sequences)));
  const int64_t group = std::max<int64_t>(1, std::min(a.heads, share / typical));
  const int64_t groups = (a.heads + group - 1) / group;
  std::vector<Sequence> sequences(a.sequences);
  int64_t tasks = 0;
  double products = 0;
  for (int64_t b = 0; b < a.sequences; ++b) {
    const int64_t queries = a.cu_q[b + 1] - a.cu_q[b];
    sequences[b] = {tasks, (queries + part - 1) / part};
    tasks += sequences[b].parts * groups;
    products += static_cast<double>(queries) * (a.cu_k[b + 1] - a.cu_k[b]);
  }
  const auto attend_task = BERTGEN_DISPATCH_UP_TO(Avx2, attend);
  // One float is read from memory in the time of some eight products.
  const int64_t floats = static_cast<int64_t>(std::min(1e9, products * a.heads * a.width / 4));
  for_each<Workspace>(tasks, floats, threads, [&](int64_t i, Workspace& workspace) {
    const auto behind = [](int64_t number, const Sequence& sequence) { return number < sequence.first_task; };
    const auto found = std::upper_bound(sequences.begin(), sequences.end(), i, behind) - 1;
    const int64_t b = found - sequences.begin(), within = i - found->first_task;
    const int64_t queries = a.cu_q[b + 1] - a.cu_q[b], all_keys = a.cu_k[b + 1] - a.cu_k[b];
    const int64_t first = within % found->parts * part, head = within / found->parts * group;
    const int64_t keys = a.key_len == nullptr ? all_keys : std::min(std::max<int64_t>(0, a.key_len[b]), all_keys);
    const int64_t start = a.q_start == nullptr ? 0 : std::min(std::max(a.q_start[b], -queries), all_keys);
    const Task task{b, head, std::min(group, a.heads - head), a.cu_q[b] + first, std::min(part, queries - first),
                    a.cu_k[b], keys, start + first};
    workspace.reserve(task.queries, a.width);
    attend_task(a, task, workspace);
  });
}

}  // namespace bertgen
