// The functions of block allocators. An allocator is a capsule, and is destroyed with its last reference. The tables are
// int32 tensors of the caller:
//
//     slot_table      [rows, positions]
//     source_table    [rows, source_positions]
//
// with the sizes of `Limits`. csrc/block_allocator.h has the meaning of all arguments and the numbers of the statuses.
#include "../block_allocator.h"

#include <memory>
#include <tuple>
#include <vector>

#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

constexpr char kCapsule[] = "bertgen.BlockAllocator";

void destroy(PyObject* capsule) { delete static_cast<BlockAllocator*>(PyCapsule_GetPointer(capsule, kCapsule)); }

}  // namespace

template <>
struct Argument<BlockAllocator*> {
  explicit Argument(PyObject* object)
      : value(static_cast<BlockAllocator*>(PyCapsule_GetPointer(object, kCapsule))) {
    if (value == nullptr) throw PythonError();
  }
  BlockAllocator* value;
};

namespace {

int32_t* slot_table_data(const BlockAllocator& allocator, const Tensor& table) {
  return dense<int32_t>(table, {allocator.limits().rows, allocator.limits().positions}, "slot_table");
}

int32_t* source_table_data(const BlockAllocator& allocator, const Tensor& table) {
  return dense<int32_t>(table, {allocator.limits().rows, allocator.limits().source_positions}, "source_table");
}

// -> a capsule; throws where a limit is out of range or memory is short
PyObject* allocator_create(int64_t rows, int64_t positions, int64_t slots, int64_t page, int64_t source_positions,
                         int64_t source_slots, int64_t source_page) {
  Status status;
  std::unique_ptr<BlockAllocator> allocator =
      BlockAllocator::create({rows, positions, slots, page, source_positions, source_slots, source_page}, &status);
  if (status == kOutOfMemory) throw std::bad_alloc();
  BERTGEN_CHECK(allocator != nullptr, "a limit is out of range");
  PyObject* capsule = PyCapsule_New(allocator.get(), kCapsule, destroy);
  if (capsule != nullptr) allocator.release();
  return capsule;
}

// -> (request or a negative status, first row, source or -1, 1 where the source is new)
std::tuple<int64_t, int64_t, int64_t, int64_t> allocator_admit(BlockAllocator* allocator, int64_t rows, int64_t positions,
                                                               int64_t source_key, int64_t source_length) {
  Admission admission{};
  const Status status =
      allocator->admit(rows, positions, static_cast<uint64_t>(source_key), source_length, &admission);
  return {status == kOk ? admission.request : status, admission.first_row, admission.source, admission.is_new};
}

// rows, positions     int32 [n], dense
// slots               int32 [n], dense; filled
// ->                  (status, index of the row of an error)
std::tuple<int64_t, int64_t> allocator_step(BlockAllocator* allocator, const Tensor& rows, const Tensor& positions,
                                            const Tensor& slot_table, const Tensor& slots) {
  const int64_t n = size_of(rows, 1, 0);
  const int32_t* row_data = dense<int32_t>(rows, {n}, "rows");
  const int32_t* position_data = dense<int32_t>(positions, {n}, "positions");
  int32_t* slot_data = dense<int32_t>(slots, {n}, "slots");
  check_apart("slots", slots, rows, positions, slot_table);
  check_apart("slot_table", slot_table, rows, positions);
  int64_t where = 0;
  const Status status =
      allocator->step(row_data, position_data, n, slot_table_data(*allocator, slot_table), slot_data, &where);
  return {status, where};
}

// The others -> a status; `check` -> a violation.

int64_t allocator_extend(BlockAllocator* allocator, int64_t row, int64_t count, const Tensor& slot_table) {
  return allocator->extend(row, count, slot_table_data(*allocator, slot_table));
}

int64_t allocator_fill_source(BlockAllocator* allocator, int64_t request, const Tensor& source_table) {
  return allocator->fill_source(request, source_table_data(*allocator, source_table));
}

int64_t allocator_finish_row(BlockAllocator* allocator, int64_t row) { return allocator->finish_row(row); }

int64_t allocator_release(BlockAllocator* allocator, int64_t request) { return allocator->release(request); }

int64_t allocator_check(BlockAllocator* allocator, const Tensor& slot_table, const Tensor& source_table) {
  return allocator->check(slot_table_data(*allocator, slot_table), source_table_data(*allocator, source_table));
}

// -> the fields of `Statistics`, in their order
std::vector<int64_t> allocator_statistics(BlockAllocator* allocator) {
  const Statistics s = allocator->statistics();
  return {s.pages,        s.pages_used,        s.pages_reserved,    s.pages_peak,
          s.source_pages, s.source_pages_used, s.source_pages_peak, s.rows,
          s.rows_used,    s.rows_peak,         s.requests,          s.sources};
}

PyMethodDef functions[] = {
    BERTGEN_QUICK("allocator_create", allocator_create,
                  "rows, positions, slots, page, source_positions, source_slots, source_page",
                  "A new allocator."),
    BERTGEN_QUICK("allocator_admit", allocator_admit,
                  "allocator, rows, positions, source_key, source_length",
                  "(request or a negative status, first row, source or -1, 1 where the source is new)."),
    BERTGEN_QUICK("allocator_step", allocator_step,
                  "allocator, rows, positions, slot_table, slots",
                  "(status, index of the row of an error)."),
    BERTGEN_QUICK("allocator_extend", allocator_extend, "allocator, row, count, slot_table", "A status."),
    BERTGEN_QUICK("allocator_fill_source", allocator_fill_source, "allocator, request, source_table", "A status."),
    BERTGEN_QUICK("allocator_finish_row", allocator_finish_row, "allocator, row", "A status."),
    BERTGEN_QUICK("allocator_release", allocator_release, "allocator, request", "A status."),
    BERTGEN_QUICK("allocator_statistics", allocator_statistics, "allocator", "The fields of Statistics."),
    BERTGEN_QUICK("allocator_check", allocator_check, "allocator, slot_table, source_table", "A violation."),
    {},
};

}  // namespace

bool add_block_allocator(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
