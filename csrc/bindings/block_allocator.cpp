// The operators of block allocators, which a caller holds by int64 handles. The tables are int32 tensors of the caller:
//
//     slot_table      [rows, positions]
//     source_table    [rows, source_positions]
//
// with the sizes of `Limits`. csrc/block_allocator.h has the meaning of all arguments and the numbers of the statuses.
#include "../block_allocator.h"

#ifndef _WIN32
#include <pthread.h>
#endif

#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace bertgen {
namespace {

std::mutex registry_mutex;
#ifndef _WIN32
// A fork waits until no thread holds the lock: the thread that holds it would not exist in the child.
const int at_fork = pthread_atfork([] { registry_mutex.lock(); }, [] { registry_mutex.unlock(); },
                                   [] { registry_mutex.unlock(); });
#endif
std::map<int64_t, std::shared_ptr<BlockAllocator>> registry;
int64_t next_handle = 0;

std::shared_ptr<BlockAllocator> allocator_of(int64_t handle) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  const auto entry = registry.find(handle);
  STD_TORCH_CHECK(entry != registry.end(), "no allocator has the handle ", handle);
  return entry->second;
}

int32_t* slot_table_data(const BlockAllocator& allocator, const Tensor& table) {
  return dense<int32_t>(table, {allocator.limits().rows, allocator.limits().positions}, "slot_table");
}

int32_t* source_table_data(const BlockAllocator& allocator, const Tensor& table) {
  return dense<int32_t>(table, {allocator.limits().rows, allocator.limits().source_positions}, "source_table");
}

// -> a handle, or a negative status
int64_t allocator_create(int64_t rows, int64_t positions, int64_t slots, int64_t page, int64_t source_positions,
                         int64_t source_slots, int64_t source_page) {
  Status status;
  std::shared_ptr<BlockAllocator> allocator =
      BlockAllocator::create({rows, positions, slots, page, source_positions, source_slots, source_page}, &status);
  if (allocator == nullptr) return status;
  std::lock_guard<std::mutex> lock(registry_mutex);
  registry.emplace(next_handle, std::move(allocator));
  return next_handle++;
}

void allocator_destroy(int64_t handle) {
  std::lock_guard<std::mutex> lock(registry_mutex);
  registry.erase(handle);
}

// -> (request or a negative status, first row, source or -1, 1 where the source is new)
std::tuple<int64_t, int64_t, int64_t, int64_t> allocator_admit(int64_t handle, int64_t rows, int64_t positions,
                                                               int64_t source_key, int64_t source_length) {
  Admission admission{};
  const Status status =
      allocator_of(handle)->admit(rows, positions, static_cast<uint64_t>(source_key), source_length, &admission);
  return {status == kOk ? admission.request : status, admission.first_row, admission.source, admission.is_new};
}

// rows, positions     int32 [n], dense
// slots               int32 [n], dense; filled
// ->                  (status, index of the row of an error)
std::tuple<int64_t, int64_t> allocator_step(int64_t handle, const Tensor& rows, const Tensor& positions,
                                            const Tensor& slot_table, const Tensor& slots) {
  const std::shared_ptr<BlockAllocator> allocator = allocator_of(handle);
  const int64_t n = size_of(rows, 1, 0);
  const int32_t* row_data = dense<int32_t>(rows, {n}, "rows");
  const int32_t* position_data = dense<int32_t>(positions, {n}, "positions");
  int32_t* slot_data = dense<int32_t>(slots, {n}, "slots");
  int64_t where = 0;
  const Status status =
      allocator->step(row_data, position_data, n, slot_table_data(*allocator, slot_table), slot_data, &where);
  return {status, where};
}

// The others -> a status; `check` -> a violation.

int64_t allocator_extend(int64_t handle, int64_t row, int64_t count, const Tensor& slot_table) {
  const std::shared_ptr<BlockAllocator> allocator = allocator_of(handle);
  return allocator->extend(row, count, slot_table_data(*allocator, slot_table));
}

int64_t allocator_fill_source(int64_t handle, int64_t request, const Tensor& source_table) {
  const std::shared_ptr<BlockAllocator> allocator = allocator_of(handle);
  return allocator->fill_source(request, source_table_data(*allocator, source_table));
}

int64_t allocator_finish_row(int64_t handle, int64_t row) { return allocator_of(handle)->finish_row(row); }

int64_t allocator_release(int64_t handle, int64_t request) { return allocator_of(handle)->release(request); }

int64_t allocator_check(int64_t handle, const Tensor& slot_table, const Tensor& source_table) {
  const std::shared_ptr<BlockAllocator> allocator = allocator_of(handle);
  return allocator->check(slot_table_data(*allocator, slot_table), source_table_data(*allocator, source_table));
}

// -> the fields of `Statistics`, in their order
std::vector<int64_t> allocator_statistics(int64_t handle) {
  const Statistics s = allocator_of(handle)->statistics();
  return {s.pages,        s.pages_used,        s.pages_reserved,    s.pages_peak,
          s.source_pages, s.source_pages_used, s.source_pages_peak, s.rows,
          s.rows_used,    s.rows_peak,         s.requests,          s.sources};
}

STABLE_TORCH_LIBRARY_FRAGMENT(bertgen_C, m) {
  m.def(
      "allocator_create(int rows, int positions, int slots, int page, int source_positions, int source_slots, "
      "int source_page) -> int");
  m.def("allocator_destroy(int allocator) -> ()");
  m.def(
      "allocator_admit(int allocator, int rows, int positions, int source_key, int source_length) -> "
      "(int, int, int, int)");
  m.def(
      "allocator_step(int allocator, Tensor rows, Tensor positions, Tensor(a!) slot_table, Tensor(b!) slots) -> "
      "(int, int)");
  m.def("allocator_extend(int allocator, int row, int count, Tensor(a!) slot_table) -> int");
  m.def("allocator_fill_source(int allocator, int request, Tensor(a!) source_table) -> int");
  m.def("allocator_finish_row(int allocator, int row) -> int");
  m.def("allocator_release(int allocator, int request) -> int");
  m.def("allocator_statistics(int allocator) -> int[]");
  m.def("allocator_check(int allocator, Tensor slot_table, Tensor source_table) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(bertgen_C, CompositeExplicitAutograd, m) {  // integers only: no device to dispatch on
  m.impl("allocator_create", TORCH_BOX(&allocator_create));
  m.impl("allocator_destroy", TORCH_BOX(&allocator_destroy));
  m.impl("allocator_admit", TORCH_BOX(&allocator_admit));
  m.impl("allocator_finish_row", TORCH_BOX(&allocator_finish_row));
  m.impl("allocator_release", TORCH_BOX(&allocator_release));
  m.impl("allocator_statistics", TORCH_BOX(&allocator_statistics));
}

STABLE_TORCH_LIBRARY_IMPL(bertgen_C, CPU, m) {
  m.impl("allocator_step", TORCH_BOX(&allocator_step));
  m.impl("allocator_extend", TORCH_BOX(&allocator_extend));
  m.impl("allocator_fill_source", TORCH_BOX(&allocator_fill_source));
  m.impl("allocator_check", TORCH_BOX(&allocator_check));
}

}  // namespace
}  // namespace bertgen
