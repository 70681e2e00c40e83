#include "linear_cpu.h"

#include <algorithm>

#include "product.h"

namespace bertgen {
namespace {

// Prefetches at the end of a task may be for rows of another thread's task, so tasks are few and large.
constexpr int64_t kTaskOutputs = 48;  // rows of the weight to a task, at least
constexpr int64_t kTaskMultiple = 12;  // a multiple of the outputs of a tile
constexpr int64_t kTasksPerThread = 4;

}  // namespace

void linear(const float* x, int64_t rows, int64_t inputs, const Linear* layers, int64_t count, int64_t outputs,
            float* out, int64_t stride, const Threads& threads) {
  const auto multiply_columns = BERTGEN_DISPATCH(multiply);
  const int64_t share = count * outputs / (kTasksPerThread * threads.count);
  const int64_t task = std::max(kTaskOutputs, share / kTaskMultiple * kTaskMultiple);
  const int64_t tasks = (outputs + task - 1) / task;  // of a layer
  for_each<NoWorkspace>(count * tasks, count * outputs * inputs, threads, [&](int64_t i, NoWorkspace&) {
    const int64_t layer = i / tasks, first = i % tasks * task;
    const auto& [weight, bias] = layers[layer];
    const Product product{x, rows, inputs, weight, outputs, bias, out + layer * outputs, stride};
    multiply_columns(product, first, std::min(outputs, first + task));
  });
}

}  // namespace bertgen
