// The function packed_attention: bertgen/kernels/attention.py has the equation.
#include "../packed_attention_cpu.h"

#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

FloatType float_type_of(const Tensor& tensor, const char* name) {
  BERTGEN_CHECK(tensor.is_cpu(), name, " is not on the CPU");
  const DLDataType type = tensor.dtype();
  if (type.code == kDLFloat && type.bits == 32 && type.lanes == 1) return kFloat32;
  if (type.code == kDLBfloat && type.bits == 16 && type.lanes == 1) return kBfloat16;
  if (type.code == kDLFloat && type.bits == 16 && type.lanes == 1) return kFloat16;
  fail(name, " has dtype ", name_of(type), ", not float32, bfloat16 or float16");
}

// [tokens, heads, width] of a type, the last dimension dense.
TokenHeads token_heads(const Tensor& tensor, FloatType type, int64_t tokens, int64_t heads, int64_t width,
                       const char* name) {
  BERTGEN_CHECK(float_type_of(tensor, name) == type, name, " has dtype ", name_of(tensor.dtype()),
                ", and q another one");
  BERTGEN_CHECK(tensor.dim() == 3, name, " has ", tensor.dim(), " dimensions, not 3");
  check_size(tensor, 0, tokens, name);
  check_size(tensor, 1, heads, name);
  check_size(tensor, 2, width, name);
  BERTGEN_CHECK(tensor.stride(2) == 1 || width == 1, "the last dimension of ", name, " is not contiguous");
  return {data_of<void>(tensor, name), tensor.stride(0), tensor.stride(1)};
}

// The first token of each sequence; returns the tokens of the longest.
int64_t check_starts(const int32_t* starts, int64_t sequences, int64_t tokens, const char* name) {
  int64_t longest = 0;
  BERTGEN_CHECK(starts[0] == 0 && starts[sequences] == tokens, name, " goes from ", starts[0], " to ",
                starts[sequences], ", not from 0 to ", tokens);
  for (int64_t b = 0; b < sequences; ++b) {
    BERTGEN_CHECK(starts[b] <= starts[b + 1], name, "[", b + 1, "] is ", starts[b + 1], ", less than ", starts[b],
                  " before it");
    longest = std::max<int64_t>(longest, starts[b + 1] - starts[b]);
  }
  return longest;
}

// q           float32, bfloat16 or float16 [query tokens, heads, width], the last dimension dense
// k, v        [key tokens, heads, width] of the type of q, the last dimension dense
// cu_q, cu_k  int32 [sequences + 1], ascending from 0 to the number of tokens: where each sequence begins
// causal      whether query i of sequence b sees its keys up to number q_start[b] + i only
// q_start     int64 [sequences], or absent: 0
// key_len     int64 [sequences], or absent: hides the keys from this one on
// key_mask    bool [sequences, keys of the longest sequence or more], or absent: false hides a key
// out         [query tokens, heads, width] of the type of q, dense; filled
void packed_attention_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& cu_q, const Tensor& cu_k,
                         bool causal, const std::optional<Tensor>& q_start, const std::optional<Tensor>& key_len,
                         const std::optional<Tensor>& key_mask, const Tensor& out) {
  PackedAttention attention{};
  attention.type = float_type_of(q, "q");
  BERTGEN_CHECK(q.dim() == 3, "q has ", q.dim(), " dimensions, not 3");
  const int64_t queries = q.size(0), heads = q.size(1), width = q.size(2), keys = size_of(k, 3, 0);
  BERTGEN_CHECK(width > 0, "the head dimension is 0");
  const int64_t sequences = size_of(cu_q, 1, 0) - 1;
  BERTGEN_CHECK(sequences >= 0, "cu_q is not a vector of at least one number");
  attention.heads = heads;
  attention.width = width;
  attention.sequences = sequences;
  attention.q = token_heads(q, attention.type, queries, heads, width, "q");
  attention.k = token_heads(k, attention.type, keys, heads, width, "k");
  attention.v = token_heads(v, attention.type, keys, heads, width, "v");
  attention.cu_q = dense<int32_t>(cu_q, {sequences + 1}, "cu_q");
  attention.cu_k = dense<int32_t>(cu_k, {sequences + 1}, "cu_k");
  check_starts(attention.cu_q, sequences, queries, "cu_q");
  const int64_t longest = check_starts(attention.cu_k, sequences, keys, "cu_k");
  attention.causal = causal;
  attention.q_start = dense_or_null<int64_t>(q_start, {sequences}, "q_start");
  attention.key_len = dense_or_null<int64_t>(key_len, {sequences}, "key_len");
  if (key_mask.has_value()) {
    attention.key_mask_stride = size_of(*key_mask, 2, 1);
    attention.key_mask = dense<bool>(*key_mask, {sequences, attention.key_mask_stride}, "key_mask");
    BERTGEN_CHECK(attention.key_mask_stride >= longest, "key_mask is for ", attention.key_mask_stride,
                  " keys, a sequence has ", longest);
  }
  token_heads(out, attention.type, queries, heads, width, "out");
  BERTGEN_CHECK(out.is_contiguous(), "out is not contiguous");
  attention.out = out.data_ptr();
  check_apart("out", out, q, k, v, cu_q, cu_k, q_start, key_len, key_mask);
  packed_attention(attention, threads());
}

PyMethodDef functions[] = {
    BERTGEN_KERNEL("packed_attention", packed_attention_op,
                   "q, k, v, cu_q, cu_k, causal, q_start, key_len, key_mask, out",
                   "Attention over packed sequences."),
    {},
};

}  // namespace

bool add_packed_attention(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
