#include "linear_cpu.h"

#include <algorithm>

#include "product.h"

namespace bertgen {
namespace {

// What a task asks for in advance at its end may be another's: so there are few tasks to a thread, and none is small.
constexpr int64_t kTask = 48;  // rows of the weight, at least
constexpr int64_t kShares = 4;

void multiply_anywhere(const Product& p, int64_t first, int64_t last) { multiply(p, first, last); }

#if defined(BERTGEN_AVX2)
BERTGEN_AVX2 void multiply_avx2(const Product& p, int64_t first, int64_t last) { multiply(p, first, last); }
#else
constexpr auto* multiply_avx2 = multiply_anywhere;
#endif

}  // namespace

void linear(const float* x, int64_t rows, int64_t inputs, const float* weight, int64_t outputs, const float* bias,
            float* out, const Threads& threads) {
  static const auto multiply_here = choose(multiply_anywhere, multiply_avx2);
  const Product product{x, rows, inputs, weight, outputs, bias, out, outputs};
  const int64_t share = outputs / (kShares * threads.count), task = std::max(kTask, share / kOutputs * kOutputs);
  for_each<Nothing>((outputs + task - 1) / task, outputs * inputs, threads, [&](int64_t i, Nothing&) {
    multiply_here(product, i * task, std::min(outputs, (i + 1) * task));
  });
}

}  // namespace bertgen
