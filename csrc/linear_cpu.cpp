#include "linear_cpu.h"

#include <algorithm>

#include "product.h"

namespace bertgen {
namespace {

// What a task asks for in advance at its end may be another's: so there are few tasks to a thread, and none is small.
constexpr int64_t kTask = 48;    // rows of the weight, at least
constexpr int64_t kWhole = 12;   // a multiple of what a body takes at a time
constexpr int64_t kShares = 4;

void multiply_anywhere(const Product& p, int64_t first, int64_t last) { multiply<kOutputs>(p, first, last); }

#if defined(BERTGEN_X86)
BERTGEN_AVX2 void multiply_avx2(const Product& p, int64_t first, int64_t last) { multiply<kOutputs>(p, first, last); }
BERTGEN_AVX512 void multiply_avx512(const Product& p, int64_t first, int64_t last) {
  multiply<kOutputsAvx512>(p, first, last);
}
#else
constexpr auto *multiply_avx2 = multiply_anywhere, *multiply_avx512 = multiply_anywhere;
#endif

}  // namespace

void linear(const float* x, int64_t rows, int64_t inputs, const Linear* layers, int64_t count, int64_t outputs,
            float* out, int64_t stride, const Threads& threads) {
  const auto multiply_here = choose(multiply_anywhere, multiply_avx2, multiply_avx512);
  const int64_t share = count * outputs / (kShares * threads.count), task = std::max(kTask, share / kWhole * kWhole);
  const int64_t tasks = (outputs + task - 1) / task;  // of a layer
  for_each<Nothing>(count * tasks, count * outputs * inputs, threads, [&](int64_t i, Nothing&) {
    const int64_t layer = i / tasks, first = i % tasks * task;
    const Linear& given = layers[layer];
    const Product product{x, rows, inputs, given.weight, outputs, given.bias, out + layer * outputs, stride};
    multiply_here(product, first, std::min(outputs, first + task));
  });
}

}  // namespace bertgen
