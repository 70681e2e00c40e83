// The function decoder_step: one token of every row through all layers of a decoder. decoder_step_layout.h has the
// order of its tensors.
#include "../decoder_step_cpu.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "attention.h"
#include "decoder_parameters.h"
#include "decoder_step_layout.h"
#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

// x            float32 [rows, hidden], dense
// parameters   the tensors of the parts of each layer: float32, bfloat16 or float16, packed weights uint8
// pools        keys of each layer, then values of each: [slots, heads, hidden / heads], all float32, all bfloat16 or all
//              float16; the keys and values of the rows are written to them, rounded
// source_pools the same of the sources, [source slots, heads, hidden / heads]; none without cross-attention
// tables       slots           int32 [rows]: where keys and values are written
//              table           int32 [rows, positions]: the history of each row
//              lengths         int32 [rows]: entries of it that are read
//              source_table    int32 [sources, source positions]
//              source_lengths  int32 [sources]
//              cu_rows         int32 [sources + 1]: rows cu_rows[b] .. cu_rows[b + 1] - 1 attend to source b
// codebook     float32 [16] of all weights in 4 bits, or absent
// int8         products with weights in 4 bits are those of integers
// out          float32 [rows, hidden], dense: filled with the output of the last layer
void decoder_step_op(const Tensor& x, const std::vector<Tensor>& parameters, const std::vector<Tensor>& pools,
                     const std::vector<Tensor>& source_pools, const std::vector<Tensor>& tables,
                     const std::optional<Tensor>& codebook, int64_t heads, double eps, bool int8,
                     const Tensor& out) {
  check_type<float>(x, 2, "x");
  const int64_t rows = x.size(0), hidden = x.size(1), width = heads > 0 ? hidden / heads : 0;
  BERTGEN_CHECK(heads > 0 && width > 0 && heads * width == hidden, hidden, " columns of x in ", heads, " heads");
  const float* x_data = dense<float>(x, {rows, hidden}, "x");
  const Shape shape{rows, heads, width};
  BERTGEN_CHECK(tables.size() == kStepTables || tables.size() == kStepTablesWithoutSources, "there are ",
                  tables.size(), " tables, not ", kStepTablesWithoutSources, " or with sources ", kStepTables);
  const bool cross = tables.size() == kStepTables;
  const size_t count = pools.size() / kLayerPools;
  BERTGEN_CHECK(pools.size() == count * kLayerPools, "there are ", pools.size(), " pools, not ", kLayerPools,
                  " for each layer");
  BERTGEN_CHECK(source_pools.size() == (cross ? pools.size() : 0), "there are ", source_pools.size(),
                  " pools of sources, not ", cross ? pools.size() : 0);
  check_no_codebook(int8, codebook);

  Parameters rest(parameters, codebook);
  std::vector<DecoderLayer> layers = rest.layers(count, hidden, cross);
  BERTGEN_CHECK(rest.empty(), "there are more parameters than ", count, " layers have");
  set_pools(layers, pools, source_pools, shape);

  const int64_t slots = count > 0 ? size_of(pools[0], 3, 0) : -1;
  DecoderStep step{};
  step.rows = rows;
  step.heads = heads;
  step.width = width;
  step.eps = static_cast<float>(eps);
  step.int8 = int8;
  const std::vector<int64_t> written = written_slots(tables[kSlots], rows, slots);
  step.slots = written.data();
  step.table_stride = size_of(tables[kTable], 2, 1);
  step.table = dense<int32_t>(tables[kTable], {rows, step.table_stride}, kStepTableNames[kTable]);
  step.lengths = dense<int32_t>(tables[kLengths], {rows}, kStepTableNames[kLengths]);
  check_table(step.table, step.table_stride, step.lengths, rows, slots);
  if (cross) {
    const Tensor& table = tables[kSourceTable];
    step.sources = size_of(table, 2, 0);
    step.source_table_stride = size_of(table, 2, 1);
    step.source_table =
        dense<int32_t>(table, {step.sources, step.source_table_stride}, kStepTableNames[kSourceTable]);
    step.source_lengths = dense<int32_t>(tables[kSourceLengths], {step.sources}, kStepTableNames[kSourceLengths]);
    step.cu_rows = dense<int32_t>(tables[kCuRows], {step.sources + 1}, kStepTableNames[kCuRows]);
    check_cu_rows(step.cu_rows, step.sources, rows);
    const int64_t source_slots = count > 0 ? size_of(source_pools[0], 3, 0) : -1;
    check_table(step.source_table, step.source_table_stride, step.source_lengths, step.sources, source_slots);
  }
  float* out_data = dense<float>(out, {rows, hidden}, "out");
  check_apart("out", out, x, parameters, pools, source_pools, tables, codebook);
  for (const Tensor& pool : pools) check_apart("a pool", pool, tables);
  std::copy_n(x_data, rows * hidden, out_data);
  DecoderWorkspace workspace;
  decoder_step(layers, step, out_data, workspace, threads());
}

PyMethodDef functions[] = {
    BERTGEN_KERNEL("decoder_step", decoder_step_op,
                   "x, parameters, pools, source_pools, tables, codebook, heads, eps, int8, out",
                   "One token of every row through all layers of a decoder."),
    {},
};

}  // namespace

bool add_decoder_step(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
