// torch.ops.bertgen_C: the cache behind int64 handles and int32 tensors of the caller, and the CPU kernels. Only
// PyTorch's stable ABI is used, so that one binary serves every torch from 2.10 on. bertgen/cache/block_allocator.py and
// bertgen/ops/extension.py are what the rest of the package sees.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#ifndef _WIN32
#include <pthread.h>
#endif

#include <algorithm>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "decode_attention_cpu.h"
#include "decoder_cpu.h"
#include "instructions.h"
#include "int4_cpu.h"
#include "int4_int8_cpu.h"
#include "kv_cache.h"
#include "linear_cpu.h"

namespace bertgen {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Tensors

template <class T>
ScalarType type_of();
template <>
ScalarType type_of<float>() { return ScalarType::Float; }
template <>
ScalarType type_of<uint8_t>() { return ScalarType::Byte; }
template <>
ScalarType type_of<int32_t>() { return ScalarType::Int; }
template <>
ScalarType type_of<int64_t>() { return ScalarType::Long; }

void check_type(const Tensor& tensor, ScalarType type, int64_t dims, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), name, " is not on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has dtype number ", static_cast<int>(tensor.scalar_type()),
                  ", not ", static_cast<int>(type));
  STD_TORCH_CHECK(tensor.dim() == dims, name, " has ", tensor.dim(), " dimensions, not ", dims);
}

void check_size(const Tensor& tensor, int64_t dim, int64_t size, const char* name) {
  STD_TORCH_CHECK(tensor.size(dim) == size, name, " has size ", tensor.size(dim), " in dimension ", dim, ", not ",
                  size);
}

// The elements of a dense tensor with these sizes.
template <class T>
T* dense(const Tensor& tensor, const std::vector<int64_t>& sizes, const char* name) {
  check_type(tensor, type_of<T>(), static_cast<int64_t>(sizes.size()), name);
  for (size_t d = 0; d < sizes.size(); ++d) check_size(tensor, static_cast<int64_t>(d), sizes[d], name);
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " is not contiguous");
  return static_cast<T*>(tensor.data_ptr());
}

// The instructions of kernels, by their number: those that were used before. A negative number changes nothing, one
// above what is supported is taken as that.
int64_t use_instructions(int64_t number) {
  const Instructions before = instructions;
  if (number >= 0) instructions = static_cast<Instructions>(std::min<int64_t>(number, supported()));
  return before;
}

// The cache

std::mutex registry_mutex;
#ifndef _WIN32
// A fork waits until nobody holds it: in the child, where that thread is not, nobody would let it go.
const int at_fork = pthread_atfork([] { registry_mutex.lock(); }, [] { registry_mutex.unlock(); },
                                   [] { registry_mutex.unlock(); });
#endif
std::map<int64_t, std::shared_ptr<KvCache>> registry;
int64_t next_handle = 0;

std::shared_ptr<KvCache> cache_of(int64_t handle) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  const auto found = registry.find(handle);
  STD_TORCH_CHECK(found != registry.end(), "no cache has the handle ", handle);
  return found->second;
}

int32_t* own_table(const KvCache& cache, const Tensor& own) {
  return dense<int32_t>(own, {cache.limits().rows, cache.limits().positions}, "own");
}

int32_t* source_table(const KvCache& cache, const Tensor& table) {
  return dense<int32_t>(table, {cache.limits().rows, cache.limits().source_positions}, "the table of sources");
}

// A handle, or a negative status.
int64_t cache_create(int64_t rows, int64_t positions, int64_t slots, int64_t page, int64_t source_positions,
                     int64_t source_slots, int64_t source_page) {
  Status status;
  std::shared_ptr<KvCache> cache =
      KvCache::create({rows, positions, slots, page, source_positions, source_slots, source_page}, &status);
  if (cache == nullptr) return status;
  std::lock_guard<std::mutex> lock(registry_mutex);
  registry.emplace(next_handle, std::move(cache));
  return next_handle++;
}

void cache_destroy(int64_t handle) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  registry.erase(handle);
}

// (request or a negative status, first row, source or -1, whether the source is new)
std::tuple<int64_t, int64_t, int64_t, int64_t> cache_admit(int64_t handle, int64_t rows, int64_t positions,
                                                           int64_t source_key, int64_t source_length) {
  Admission admission{};
  const Status status =
      cache_of(handle)->admit(rows, positions, static_cast<uint64_t>(source_key), source_length, &admission);
  return {status == kOk ? admission.request : status, admission.first_row, admission.source, admission.is_new};
}

// (status, index of the row it is about)
std::tuple<int64_t, int64_t> cache_step(int64_t handle, const Tensor& rows, const Tensor& positions, const Tensor& own,
                                        const Tensor& slots) {
  const std::shared_ptr<KvCache> cache = cache_of(handle);
  const int64_t n = rows.dim() == 1 ? rows.size(0) : -1;
  const int32_t* row_data = dense<int32_t>(rows, {n}, "rows");
  const int32_t* position_data = dense<int32_t>(positions, {n}, "positions");
  int32_t* slot_data = dense<int32_t>(slots, {n}, "slots");
  int64_t where = 0;
  const Status status = cache->step(row_data, position_data, n, own_table(*cache, own), slot_data, &where);
  return {status, where};
}

int64_t cache_extend(int64_t handle, int64_t row, int64_t count, const Tensor& own) {
  const std::shared_ptr<KvCache> cache = cache_of(handle);
  return cache->extend(row, count, own_table(*cache, own));
}

int64_t cache_fill_source(int64_t handle, int64_t request, const Tensor& table) {
  const std::shared_ptr<KvCache> cache = cache_of(handle);
  return cache->fill_source(request, source_table(*cache, table));
}

int64_t cache_finish_row(int64_t handle, int64_t row) { return cache_of(handle)->finish_row(row); }

int64_t cache_release(int64_t handle, int64_t request) { return cache_of(handle)->release(request); }

std::vector<int64_t> cache_statistics(int64_t handle) {
  const Statistics s = cache_of(handle)->statistics();
  return {s.pages,        s.pages_used,        s.pages_reserved,    s.pages_peak,
          s.source_pages, s.source_pages_used, s.source_pages_peak, s.rows,
          s.rows_used,    s.rows_peak,         s.requests,          s.sources};
}

int64_t cache_check(int64_t handle, const Tensor& own, const Tensor& table) {
  const std::shared_ptr<KvCache> cache = cache_of(handle);
  return cache->check(own_table(*cache, own), source_table(*cache, table));
}

// Attention

Shape shape_of(const Tensor& q) {
  check_type(q, ScalarType::Float, 3, "q");
  STD_TORCH_CHECK(q.size(2) > 0, "the head dimension is 0");
  return {q.size(0), q.size(1), q.size(2)};
}

Heads heads_of(const Tensor& tensor, const Shape& shape, const char* name) {
  check_type(tensor, ScalarType::Float, 3, name);
  check_size(tensor, 0, shape.rows, name);
  check_size(tensor, 1, shape.heads, name);
  check_size(tensor, 2, shape.width, name);
  STD_TORCH_CHECK(tensor.stride(2) == 1 || shape.width == 1, "the last dimension of ", name, " is not contiguous");
  return {static_cast<const float*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1)};
}

float* pool_of(const Tensor& pool, const Shape& shape, int64_t slots, const char* name) {
  return dense<float>(pool, {slots, shape.heads, shape.width}, name);
}

// lengths[r] entries of row r of a table [rows, width] are slots.
void check_table(const int32_t* table, int64_t width, const int32_t* lengths, int64_t rows, int64_t slots) {
  for (int64_t r = 0; r < rows; ++r) {
    STD_TORCH_CHECK(lengths[r] >= 0 && lengths[r] <= width, "lengths[", r, "] is ", lengths[r], ", the table holds ",
                    width);
    const int32_t* entries = table + r * width;
    bool bad = false;
    for (int32_t t = 0; t < lengths[r]; ++t) bad |= entries[t] < 0 || entries[t] >= slots;
    for (int32_t t = 0; bad && t < lengths[r]; ++t) {
      STD_TORCH_CHECK(entries[t] >= 0 && entries[t] < slots, "table[", r, ", ", t, "] is slot ", entries[t],
                      ", the pool has ", slots);
    }
  }
}

// Where the rows of each source begin.
void check_starts(const int32_t* starts, int64_t sources, int64_t rows) {
  STD_TORCH_CHECK(starts[0] == 0 && starts[sources] == rows, "cu_rows goes from ", starts[0], " to ", starts[sources],
                  ", not from 0 to ", rows);
  for (int64_t b = 0; b < sources; ++b) {
    STD_TORCH_CHECK(starts[b] <= starts[b + 1], "cu_rows[", b + 1, "] is ", starts[b + 1], ", less than ", starts[b],
                    " before it");
  }
}

template <class T>
std::vector<int64_t> checked_slots(const Tensor& tensor, int64_t rows, int64_t slots) {
  const T* given = dense<T>(tensor, {rows}, "slots");
  for (int64_t r = 0; r < rows; ++r) {
    STD_TORCH_CHECK(given[r] >= 0 && given[r] < slots, "slots[", r, "] is slot ", given[r], ", the pool has ", slots);
  }
  return std::vector<int64_t>(given, given + rows);
}

Threads threads() {
  const int64_t count = torch::stable::get_num_threads();
  return {count, [count](const std::function<void()>& worker) {
            torch::stable::parallel_for(0, count, 1, [&](int64_t, int64_t) { worker(); });
          }};
}

Tensor decode_attention_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pool,
                           const Tensor& value_pool, const Tensor& slots, const Tensor& table, const Tensor& lengths) {
  const Shape shape = shape_of(q);
  const Heads queries = heads_of(q, shape, "q"), keys = heads_of(k, shape, "k"), values = heads_of(v, shape, "v");
  const int64_t pool = key_pool.dim() == 3 ? key_pool.size(0) : -1, width = table.dim() == 2 ? table.size(1) : -1;
  float* key_data = pool_of(key_pool, shape, pool, "key_pool");
  float* value_data = pool_of(value_pool, shape, pool, "value_pool");
  const int32_t* entries = dense<int32_t>(table, {shape.rows, width}, "table");
  const int32_t* counts = dense<int32_t>(lengths, {shape.rows}, "lengths");
  const std::vector<int64_t> written = slots.scalar_type() == ScalarType::Int
                                           ? checked_slots<int32_t>(slots, shape.rows, pool)
                                           : checked_slots<int64_t>(slots, shape.rows, pool);
  check_table(entries, width, counts, shape.rows, pool);
  Tensor out = torch::stable::new_empty(q, {shape.rows, shape.heads, shape.width});
  decode_attention(shape, queries, keys, values, key_data, value_data, written.data(), entries, width, counts,
                   static_cast<float*>(out.data_ptr()), threads());
  return out;
}

Tensor cross_decode_attention_op(const Tensor& q, const Tensor& key_pool, const Tensor& value_pool,
                                 const Tensor& table, const Tensor& lengths, const Tensor& cu_rows) {
  const Shape shape = shape_of(q);
  const Heads queries = heads_of(q, shape, "q");
  const int64_t pool = key_pool.dim() == 3 ? key_pool.size(0) : -1, width = table.dim() == 2 ? table.size(1) : -1;
  const int64_t sources = table.dim() == 2 ? table.size(0) : -1;
  const float* key_data = pool_of(key_pool, shape, pool, "key_pool");
  const float* value_data = pool_of(value_pool, shape, pool, "value_pool");
  const int32_t* entries = dense<int32_t>(table, {sources, width}, "table");
  const int32_t* counts = dense<int32_t>(lengths, {sources}, "lengths");
  const int32_t* starts = dense<int32_t>(cu_rows, {sources + 1}, "cu_rows");
  check_starts(starts, sources, shape.rows);
  check_table(entries, width, counts, sources, pool);
  Tensor out = torch::stable::new_empty(q, {shape.rows, shape.heads, shape.width});
  cross_decode_attention(shape, queries, key_data, value_data, entries, width, counts, starts, sources,
                         static_cast<float*>(out.data_ptr()), threads());
  return out;
}

// Products

// Lists of what layers have are empty, or as long as that of their weights.
void check_lists(size_t count, std::initializer_list<size_t> others) {
  STD_TORCH_CHECK(count > 0, "there is no weight");
  for (const size_t other : others) {
    STD_TORCH_CHECK(other == 0 || other == count, "lists of ", count, " and of ", other, " tensors");
  }
}

Tensor linear_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  check_type(x, ScalarType::Float, 2, "x");
  check_type(weight, ScalarType::Float, 2, "weight");
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  const float* x_data = dense<float>(x, {rows, inputs}, "x");
  const float* weight_data = dense<float>(weight, {outputs, inputs}, "weight");
  const float* bias_data = bias.has_value() ? dense<float>(*bias, {outputs}, "bias") : nullptr;
  Tensor out = torch::stable::new_empty(x, {rows, outputs});
  const Linear layer{weight_data, bias_data};
  linear(x_data, rows, inputs, &layer, 1, outputs, static_cast<float*>(out.data_ptr()), outputs, threads());
  return out;
}

// Of layers of one shape, side by side; without biases where that list is empty.
Tensor linears_op(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases) {
  check_type(x, ScalarType::Float, 2, "x");
  check_lists(weights.size(), {biases.size()});
  check_type(weights[0], ScalarType::Float, 2, "weight");
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weights[0].size(0);
  const int64_t count = static_cast<int64_t>(weights.size());
  const float* x_data = dense<float>(x, {rows, inputs}, "x");
  std::vector<Linear> layers(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    layers[i] = {dense<float>(weights[i], {outputs, inputs}, "weight"),
                 biases.empty() ? nullptr : dense<float>(biases[i], {outputs}, "bias")};
  }
  Tensor out = torch::stable::new_empty(x, {rows, count * outputs});
  float* out_data = static_cast<float*>(out.data_ptr());
  linear(x_data, rows, inputs, layers.data(), count, outputs, out_data, count * outputs, threads());
  return out;
}

Int4 int4_of(const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
             const std::optional<Tensor>& codebook) {
  check_type(packed, ScalarType::Byte, 2, "packed");
  check_type(scale, ScalarType::Float, 2, "scale");
  const int64_t rows = packed.size(0), columns = 2 * packed.size(1), groups = scale.size(1);
  const int64_t group = groups > 0 ? columns / groups : 0;
  STD_TORCH_CHECK(group * groups == columns && (group == 32 || group == 64 || group == 128), columns, " columns in ",
                  groups, " groups: a group must be 32, 64 or 128");
  return {dense<uint8_t>(packed, {rows, columns / 2}, "packed"),
          dense<float>(scale, {rows, groups}, "scale"),
          zero.has_value() ? dense<float>(*zero, {rows, groups}, "zero") : nullptr,
          codebook.has_value() ? dense<float>(*codebook, {16}, "codebook") : nullptr,
          rows,
          columns,
          group};
}

Tensor int4_matmul_op(const Tensor& x, const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                      const std::optional<Tensor>& bias, const std::optional<Tensor>& codebook, bool int8) {
  const Int4 weight = int4_of(packed, scale, zero, codebook);
  check_type(x, ScalarType::Float, 2, "x");
  const int64_t rows = x.size(0);
  const float* x_data = dense<float>(x, {rows, weight.columns}, "x");
  const float* bias_data = bias.has_value() ? dense<float>(*bias, {weight.rows}, "bias") : nullptr;
  Tensor out = torch::stable::new_empty(x, {rows, weight.rows});
  STD_TORCH_CHECK(!int8 || weight.codebook == nullptr, "integers have no codebook");
  const auto multiply = int8 ? int4_matmul_int8 : int4_matmul;
  const Int4Linear layer{weight, bias_data};
  multiply(x_data, rows, &layer, 1, static_cast<float*>(out.data_ptr()), weight.rows, threads());
  return out;
}

// Of layers of one shape, side by side; without zeros and biases where those lists are empty.
Tensor int4_matmuls_op(const Tensor& x, const std::vector<Tensor>& packed, const std::vector<Tensor>& scales,
                       const std::vector<Tensor>& zeros, const std::vector<Tensor>& biases,
                       const std::optional<Tensor>& codebook, bool int8) {
  check_lists(packed.size(), {zeros.size(), biases.size()});
  STD_TORCH_CHECK(scales.size() == packed.size(), packed.size(), " weights with ", scales.size(), " scales");
  STD_TORCH_CHECK(!int8 || !codebook.has_value(), "integers have no codebook");
  std::vector<Int4Linear> layers(packed.size());
  for (size_t i = 0; i < packed.size(); ++i) {
    const auto zero = zeros.empty() ? std::nullopt : std::optional<Tensor>(zeros[i]);
    const Int4 weight = int4_of(packed[i], scales[i], zero, codebook), &first = i == 0 ? weight : layers[0].weight;
    check_size(packed[i], 0, first.rows, "packed");
    check_size(packed[i], 1, first.columns / 2, "packed");
    layers[i] = {weight, biases.empty() ? nullptr : dense<float>(biases[i], {weight.rows}, "bias")};
  }
  check_type(x, ScalarType::Float, 2, "x");
  const Int4& weight = layers[0].weight;
  const int64_t rows = x.size(0), count = static_cast<int64_t>(layers.size()), stride = count * weight.rows;
  const float* x_data = dense<float>(x, {rows, weight.columns}, "x");
  Tensor out = torch::stable::new_empty(x, {rows, stride});
  const auto multiply = int8 ? int4_matmul_int8 : int4_matmul;
  multiply(x_data, rows, layers.data(), count, static_cast<float*>(out.data_ptr()), stride, threads());
  return out;
}

void int4_dequantize_op(const Tensor& packed, const Tensor& scale, const std::optional<Tensor>& zero,
                        const std::optional<Tensor>& codebook, const Tensor& out) {
  const Int4 weight = int4_of(packed, scale, zero, codebook);
  int4_dequantize(weight, dense<float>(out, {weight.rows, weight.columns}, "out"), threads());
}

// The layers of a decoder

// Takes the tensors of a list one after the other.
class Parameters {
 public:
  explicit Parameters(const std::vector<Tensor>& tensors) : tensors_(tensors) {}

  const Tensor& next(const char* name) {
    STD_TORCH_CHECK(place_ < tensors_.size(), "the parameters end where ", name, " should be");
    return tensors_[place_++];
  }

  // Null where the tensor is empty.
  const float* vector(int64_t size, const char* name) {
    const Tensor& tensor = next(name);
    return tensor.numel() == 0 ? nullptr : dense<float>(tensor, {size}, name);
  }

  // weight, bias; or packed, scale, zero, bias.
  Dense linear(int64_t outputs, int64_t inputs, const std::optional<Tensor>& codebook, const char* name) {
    const Tensor& weight = next(name);
    Dense found{};
    if (weight.scalar_type() == ScalarType::Byte) {
      const Tensor &scale = next(name), &zero = next(name);
      found.int4 = int4_of(weight, scale, zero.numel() == 0 ? std::nullopt : std::optional<Tensor>(zero), codebook);
      check_size(weight, 1, inputs / 2, name);
    } else {
      check_type(weight, ScalarType::Float, 2, name);
      found.weight = dense<float>(weight, {weight.size(0), inputs}, name);
    }
    if (outputs >= 0) check_size(weight, 0, outputs, name);
    found.outputs = weight.size(0);
    found.inputs = inputs;
    found.bias = vector(found.outputs, name);
    return found;
  }

  Norm norm(int64_t size, const char* name) {
    const Norm found{vector(size, name), vector(size, name)};
    STD_TORCH_CHECK(found.weight != nullptr && found.shift != nullptr, name, " is empty");
    return found;
  }

  bool ended() const { return place_ == tensors_.size(); }

 private:
  const std::vector<Tensor>& tensors_;
  size_t place_ = 0;
};

Tensor decoder_step_op(const Tensor& x, int64_t heads, double eps, const std::vector<Tensor>& parameters,
                       const std::optional<Tensor>& codebook, bool int8, const std::vector<Tensor>& keys,
                       const std::vector<Tensor>& values, const Tensor& slots, const Tensor& table,
                       const Tensor& lengths, const std::vector<Tensor>& source_keys,
                       const std::vector<Tensor>& source_values, const std::optional<Tensor>& source_table,
                       const std::optional<Tensor>& source_lengths, const std::optional<Tensor>& cu_rows) {
  check_type(x, ScalarType::Float, 2, "x");
  const int64_t rows = x.size(0), hidden = x.size(1), width = heads > 0 ? hidden / heads : 0;
  STD_TORCH_CHECK(heads > 0 && width > 0 && heads * width == hidden, hidden, " columns of x in ", heads, " heads");
  const float* x_data = dense<float>(x, {rows, hidden}, "x");
  const Shape shape{rows, heads, width};
  const size_t count = keys.size();
  const bool crosses = source_table.has_value();
  STD_TORCH_CHECK(values.size() == count && source_keys.size() == (crosses ? count : 0) &&
                      source_values.size() == source_keys.size() && source_lengths.has_value() == crosses &&
                      cu_rows.has_value() == crosses,
                  "pools of ", count, " keys, ", values.size(), " values, ", source_keys.size(), " keys and ",
                  source_values.size(), " values of sources");
  const auto slots_of = [&](const std::vector<Tensor>& pools) {
    return pools.empty() || pools[0].dim() != 3 ? -1 : pools[0].size(0);
  };
  const int64_t pool = slots_of(keys), source_pool = slots_of(source_keys);
  STD_TORCH_CHECK(!int8 || !codebook.has_value(), "integers have no codebook");
  Parameters given(parameters);
  std::vector<DecoderLayer> layers(count);
  for (size_t i = 0; i < count; ++i) {
    DecoderLayer& layer = layers[i];
    const char* names[] = {"query", "key", "value"};
    for (int j = 0; j < 3; ++j) layer.projections[j] = given.linear(hidden, hidden, codebook, names[j]);
    layer.output = given.linear(hidden, hidden, codebook, "the output of attention");
    layer.norm = given.norm(hidden, "the norm of attention");
    layer.keys = pool_of(keys[i], shape, pool, "keys");
    layer.values = pool_of(values[i], shape, pool, "values");
    if (crosses) {
      layer.cross.query = given.linear(hidden, hidden, codebook, "the query of cross-attention");
      layer.cross.output = given.linear(hidden, hidden, codebook, "the output of cross-attention");
      layer.cross.norm = given.norm(hidden, "the norm of cross-attention");
      layer.cross.keys = pool_of(source_keys[i], shape, source_pool, "keys of sources");
      layer.cross.values = pool_of(source_values[i], shape, source_pool, "values of sources");
    }
    layer.inner = given.linear(-1, hidden, codebook, "the inner layer");
    layer.outer = given.linear(hidden, layer.inner.outputs, codebook, "the outer layer");
    layer.outer_norm = given.norm(hidden, "the norm of the feed-forward block");
  }
  STD_TORCH_CHECK(given.ended(), "there are more parameters than ", count, " layers have");
  const int64_t stride = table.dim() == 2 ? table.size(1) : -1;
  DecoderStep step{};
  step.rows = rows;
  step.heads = heads;
  step.width = width;
  step.eps = static_cast<float>(eps);
  step.int8 = int8;
  step.table = dense<int32_t>(table, {rows, stride}, "table");
  step.table_stride = stride;
  step.lengths = dense<int32_t>(lengths, {rows}, "lengths");
  const std::vector<int64_t> written = checked_slots<int32_t>(slots, rows, pool);
  step.slots = written.data();
  check_table(step.table, stride, step.lengths, rows, pool);
  if (crosses) {
    step.sources = source_table->dim() == 2 ? source_table->size(0) : -1;
    step.source_table_stride = source_table->dim() == 2 ? source_table->size(1) : -1;
    step.source_table = dense<int32_t>(*source_table, {step.sources, step.source_table_stride}, "source_table");
    step.source_lengths = dense<int32_t>(*source_lengths, {step.sources}, "source_lengths");
    step.cu_rows = dense<int32_t>(*cu_rows, {step.sources + 1}, "cu_rows");
    check_starts(step.cu_rows, step.sources, rows);
    check_table(step.source_table, step.source_table_stride, step.source_lengths, step.sources, source_pool);
  }
  Tensor out = torch::stable::new_empty(x, {rows, hidden});
  float* out_data = static_cast<float*>(out.data_ptr());
  std::copy_n(x_data, rows * hidden, out_data);
  decoder_step(layers, step, out_data, threads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY(bertgen_C, m) {
  m.def("use_instructions(int number) -> int");
  m.def(
      "cache_create(int rows, int positions, int slots, int page, int source_positions, int source_slots, "
      "int source_page) -> int");
  m.def("cache_destroy(int cache) -> ()");
  m.def("cache_admit(int cache, int rows, int positions, int source_key, int source_length) -> (int, int, int, int)");
  m.def("cache_step(int cache, Tensor rows, Tensor positions, Tensor(a!) own, Tensor(b!) slots) -> (int, int)");
  m.def("cache_extend(int cache, int row, int count, Tensor(a!) own) -> int");
  m.def("cache_fill_source(int cache, int request, Tensor(a!) table) -> int");
  m.def("cache_finish_row(int cache, int row) -> int");
  m.def("cache_release(int cache, int request) -> int");
  m.def("cache_statistics(int cache) -> int[]");
  m.def("cache_check(int cache, Tensor own, Tensor table) -> int");
  m.def(
      "decode_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) key_pool, Tensor(b!) value_pool, Tensor slots, "
      "Tensor table, Tensor lengths) -> Tensor");
  m.def(
      "cross_decode_attention(Tensor q, Tensor key_pool, Tensor value_pool, Tensor table, Tensor lengths, "
      "Tensor cu_rows) -> Tensor");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("linears(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor");
  m.def(
      "int4_matmul(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, Tensor? codebook, "
      "bool int8) -> Tensor");
  m.def(
      "int4_matmuls(Tensor x, Tensor[] packed, Tensor[] scales, Tensor[] zeros, Tensor[] biases, Tensor? codebook, "
      "bool int8) -> Tensor");
  m.def(
      "decoder_step(Tensor x, int heads, float eps, Tensor[] parameters, Tensor? codebook, bool int8, Tensor(a!)[] keys, "
      "Tensor(b!)[] values, Tensor slots, Tensor table, Tensor lengths, Tensor[] source_keys, Tensor[] source_values, "
      "Tensor? source_table, Tensor? source_lengths, Tensor? cu_rows) -> Tensor");
  m.def("int4_dequantize(Tensor packed, Tensor scale, Tensor? zero, Tensor? codebook, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(bertgen_C, CompositeExplicitAutograd, m) {  // of integers alone: no device to dispatch on
  m.impl("use_instructions", TORCH_BOX(&use_instructions));
  m.impl("cache_create", TORCH_BOX(&cache_create));
  m.impl("cache_destroy", TORCH_BOX(&cache_destroy));
  m.impl("cache_admit", TORCH_BOX(&cache_admit));
  m.impl("cache_finish_row", TORCH_BOX(&cache_finish_row));
  m.impl("cache_release", TORCH_BOX(&cache_release));
  m.impl("cache_statistics", TORCH_BOX(&cache_statistics));
}

STABLE_TORCH_LIBRARY_IMPL(bertgen_C, CPU, m) {
  m.impl("cache_step", TORCH_BOX(&cache_step));
  m.impl("cache_extend", TORCH_BOX(&cache_extend));
  m.impl("cache_fill_source", TORCH_BOX(&cache_fill_source));
  m.impl("cache_check", TORCH_BOX(&cache_check));
  m.impl("decode_attention", TORCH_BOX(&decode_attention_op));
  m.impl("cross_decode_attention", TORCH_BOX(&cross_decode_attention_op));
  m.impl("linear", TORCH_BOX(&linear_op));
  m.impl("linears", TORCH_BOX(&linears_op));
  m.impl("int4_matmul", TORCH_BOX(&int4_matmul_op));
  m.impl("int4_matmuls", TORCH_BOX(&int4_matmuls_op));
  m.impl("decoder_step", TORCH_BOX(&decoder_step_op));
  m.impl("int4_dequantize", TORCH_BOX(&int4_dequantize_op));
}

}  // namespace bertgen

// `import bertgen._C` is what loads the operators; the module itself is empty.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
