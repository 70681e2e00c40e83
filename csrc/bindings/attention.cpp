// The functions decode_attention and cross_decode_attention: bertgen/kernels/decode_attention.py has the equations.
#include "attention.h"

#include <vector>

#include "functions.h"
#include "python.h"

namespace bertgen {

void check_table(const int32_t* table, int64_t positions, const int32_t* lengths, int64_t rows, int64_t slots) {
  for (int64_t r = 0; r < rows; ++r) {
    BERTGEN_CHECK(lengths[r] >= 0 && lengths[r] <= positions, "lengths[", r, "] is ", lengths[r],
                    ", the table holds ", positions);
    const int32_t* entries = table + r * positions;
    bool bad = false;
    for (int32_t t = 0; t < lengths[r]; ++t) bad |= entries[t] < 0 || entries[t] >= slots;
    for (int32_t t = 0; bad && t < lengths[r]; ++t) {
      BERTGEN_CHECK(entries[t] >= 0 && entries[t] < slots, "table[", r, ", ", t, "] is slot ", entries[t],
                      ", the pool has ", slots);
    }
  }
}

void check_cu_rows(const int32_t* cu_rows, int64_t sources, int64_t rows) {
  BERTGEN_CHECK(cu_rows[0] == 0 && cu_rows[sources] == rows, "cu_rows goes from ", cu_rows[0], " to ",
                  cu_rows[sources], ", not from 0 to ", rows);
  for (int64_t b = 0; b < sources; ++b) {
    BERTGEN_CHECK(cu_rows[b] <= cu_rows[b + 1], "cu_rows[", b + 1, "] is ", cu_rows[b + 1], ", less than ",
                    cu_rows[b], " before it");
  }
}

namespace {

template <class T>
std::vector<int64_t> checked_slots(const Tensor& tensor, int64_t rows, int64_t slots) {
  const T* numbers = dense<T>(tensor, {rows}, "slots");
  for (int64_t r = 0; r < rows; ++r) {
    BERTGEN_CHECK(numbers[r] >= 0 && numbers[r] < slots, "slots[", r, "] is slot ", numbers[r], ", the pool has ",
                    slots);
  }
  return std::vector<int64_t>(numbers, numbers + rows);
}

Shape shape_of(const Tensor& q) {
  check_type<float>(q, 3, "q");
  BERTGEN_CHECK(q.size(2) > 0, "the head dimension is 0");
  return {q.size(0), q.size(1), q.size(2)};
}

Heads heads_of(const Tensor& tensor, const Shape& shape, const char* name) {
  check_type<float>(tensor, 3, name);
  check_size(tensor, 0, shape.rows, name);
  check_size(tensor, 1, shape.heads, name);
  check_size(tensor, 2, shape.width, name);
  BERTGEN_CHECK(tensor.stride(2) == 1 || shape.width == 1, "the last dimension of ", name, " is not contiguous");
  return {data_of<float>(tensor, name), tensor.stride(0), tensor.stride(1)};
}

Pools key_and_value_pools(const Tensor& keys, const Tensor& values, const Shape& shape) {
  return pools_of(keys, values, float_type(keys, "key_pool"), shape, size_of(keys, 3, 0), "key_pool", "value_pool");
}

}  // namespace

std::vector<int64_t> written_slots(const Tensor& tensor, int64_t rows, int64_t slots) {
  return tensor.dtype() == kTypeOf<int32_t> ? checked_slots<int32_t>(tensor, rows, slots)
                                                 : checked_slots<int64_t>(tensor, rows, slots);
}

namespace {

// q, k, v     float32 [rows, heads, width], the last dimension dense
// key_pool, value_pool
//             float32, bfloat16 or float16 [slots, heads, width]; k and v are written to them, rounded
// slots       int32 or int64 [rows]: where
// table       int32 [rows, positions], of which the first lengths[r] entries of row r are read
// lengths     int32 [rows]
// out         float32 [rows, heads, width], dense; filled
void decode_attention_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& key_pool,
                           const Tensor& value_pool, const Tensor& slots, const Tensor& table, const Tensor& lengths,
                         const Tensor& out) {
  const Shape shape = shape_of(q);
  const Heads queries = heads_of(q, shape, "q"), keys = heads_of(k, shape, "k"), values = heads_of(v, shape, "v");
  const int64_t pool = size_of(key_pool, 3, 0), positions = size_of(table, 2, 1);
  const Pools pools = key_and_value_pools(key_pool, value_pool, shape);
  const int32_t* entries = dense<int32_t>(table, {shape.rows, positions}, "table");
  const int32_t* counts = dense<int32_t>(lengths, {shape.rows}, "lengths");
  const std::vector<int64_t> written = written_slots(slots, shape.rows, pool);
  check_table(entries, positions, counts, shape.rows, pool);
  float* out_data = dense<float>(out, {shape.rows, shape.heads, shape.width}, "out");
  check_apart("out", out, q, k, v, key_pool, value_pool, slots, table, lengths);
  check_apart("key_pool", key_pool, q, k, v, value_pool, slots, table, lengths);
  check_apart("value_pool", value_pool, q, k, v, slots, table, lengths);
  decode_attention(shape, queries, keys, values, pools, written.data(), entries, positions, counts, out_data,
                   threads());
}

// q           float32 [rows, heads, width], the last dimension dense
// key_pool, value_pool
//             float32, bfloat16 or float16 [slots, heads, width]
// table       int32 [sources, positions], of which the first lengths[b] entries of row b are read
// lengths     int32 [sources]
// cu_rows     int32 [sources + 1]: rows cu_rows[b] .. cu_rows[b + 1] - 1 attend to source b
// out         float32 [rows, heads, width], dense; filled
void cross_decode_attention_op(const Tensor& q, const Tensor& key_pool, const Tensor& value_pool,
                                 const Tensor& table, const Tensor& lengths, const Tensor& cu_rows, const Tensor& out) {
  const Shape shape = shape_of(q);
  const Heads queries = heads_of(q, shape, "q");
  const int64_t pool = size_of(key_pool, 3, 0), sources = size_of(table, 2, 0), positions = size_of(table, 2, 1);
  const Pools pools = key_and_value_pools(key_pool, value_pool, shape);
  const int32_t* entries = dense<int32_t>(table, {sources, positions}, "table");
  const int32_t* counts = dense<int32_t>(lengths, {sources}, "lengths");
  const int32_t* starts = dense<int32_t>(cu_rows, {sources + 1}, "cu_rows");
  check_cu_rows(starts, sources, shape.rows);
  check_table(entries, positions, counts, sources, pool);
  float* out_data = dense<float>(out, {shape.rows, shape.heads, shape.width}, "out");
  check_apart("out", out, q, key_pool, value_pool, table, lengths, cu_rows);
  cross_decode_attention(shape, queries, pools, entries, positions, counts, starts, sources, out_data, threads());
}

PyMethodDef functions[] = {
    BERTGEN_KERNEL("decode_attention", decode_attention_op,
                   "q, k, v, key_pool, value_pool, slots, table, lengths, out",
                   "One query per row over keys in a table of slots."),
    BERTGEN_KERNEL("cross_decode_attention", cross_decode_attention_op,
                   "q, key_pool, value_pool, table, lengths, cu_rows, out",
                   "The rows of a source over its shared keys."),
    {},
};

}  // namespace

bool add_attention(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
