#include "linear_cpu.h"

#include <algorithm>

#include "product.h"

namespace bertgen {
namespace {

// Prefetches at the end of a task may be for rows of another thread's task, so tasks are few and large.
constexpr int64_t kTaskOutputs = 48;  // rows of the weight to a task, at least
constexpr int64_t kTaskMultiple = 24;  // a multiple of the outputs of a tile
constexpr int64_t kTasksPerThread = 4;

template <class T>
struct Columns {
  template <class Set>
  static BERTGEN_INLINE void multiply(const Product<T>& product, int64_t first, int64_t last) {
    bertgen::multiply<Set>(product, first, last);
  }
};

template <class T>
void linear_of(const float* x, int64_t rows, int64_t inputs, const Linear* layers, int64_t count, int64_t outputs,
               float* out, int64_t stride, const Threads& threads) {
  const auto multiply_columns = BERTGEN_DISPATCH(Columns<T>::template multiply);
  const int64_t share = count * outputs / (kTasksPerThread * threads.count);
  const int64_t task = std::max(kTaskOutputs, share / kTaskMultiple * kTaskMultiple);
  const int64_t tasks = (outputs + task - 1) / task;  // of a layer
  for_each<NoWorkspace>(count * tasks, count * outputs * inputs, threads, [&](int64_t i, NoWorkspace&) {
    const int64_t layer = i / tasks, first = i % tasks * task;
    const T *weight = static_cast<const T*>(layers[layer].weight), *bias = static_cast<const T*>(layers[layer].bias);
    const Product<T> product{x, rows, inputs, weight, outputs, bias, out + layer * outputs, stride};
    multiply_columns(product, first, std::min(outputs, first + task));
  });
}

}  // namespace

void linear(const float* x, int64_t rows, int64_t inputs, const Linear* layers, int64_t count, int64_t outputs,
            FloatType type, float* out, int64_t stride, const Threads& threads) {
  dispatch_type(type, [&](auto number) {
    linear_of<decltype(number)>(x, rows, inputs, layers, count, outputs, out, stride, threads);
  });
}

}  // namespace bertgen
