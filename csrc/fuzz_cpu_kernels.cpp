// The CPU kernels on random shapes against their equations in double; built under the sanitizers by `make fuzz`.
//
//     fuzz_cpu_kernels CALLS SEED
//
// Every array has exactly the size it needs, so that a step too far is an error. -DBERTGEN_PORTABLE builds the kernels
// that run where there is no AVX2.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "decode_attention_cpu.h"
#include "int4_cpu.h"
#include "linear_cpu.h"

using namespace bertgen;

namespace {

std::mt19937_64 randomness;

int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(randomness() % (high - low + 1)); }

std::vector<float> normal(int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = distribution(randomness);
  return numbers;
}

// softmax(q . k / sqrt(width)) v for one head, into the largest error so far
void compare(const float* q, const std::vector<const float*>& keys, const std::vector<const float*>& values,
             int64_t width, const float* got, double* worst) {
  std::vector<double> scores(keys.size());
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (size_t t = 0; t < keys.size(); ++t) {
    for (int64_t d = 0; d < width; ++d) scores[t] += double{q[d]} * keys[t][d];
    scores[t] /= std::sqrt(static_cast<double>(width));
    top = std::max(top, scores[t]);
  }
  for (double& score : scores) sum += score = std::exp(score - top);
  for (int64_t d = 0; d < width; ++d) {
    double exact = 0;
    for (size_t t = 0; t < keys.size(); ++t) exact += scores[t] / sum * values[t][d];
    const double error = std::abs(exact - got[d]);
    *worst = error <= *worst ? *worst : error;  // a NaN stays
  }
}

Threads on(int64_t count) {
  return {count, [count](const std::function<void()>& worker) {
            for (int64_t i = 0; i < count; ++i) worker();
          }};
}

double self(int64_t rows, int64_t heads, int64_t width, int64_t longest) {
  const Shape shape{rows, heads, width};
  const int64_t slot = heads * width, stride = longest, pool = rows * (longest + 1);
  std::vector<float> fused = normal(rows * 3 * slot), keys = normal(pool * slot), values = normal(pool * slot);
  std::vector<int64_t> slots(rows);
  std::vector<int32_t> table(rows * stride, -1), lengths(rows);
  for (int64_t r = 0; r < rows; ++r) {
    lengths[r] = static_cast<int32_t>(between(0, longest));
    slots[r] = r * (longest + 1);
    for (int64_t t = 0; t < lengths[r]; ++t) {  // of any row, but none that is written
      table[r * stride + t] = static_cast<int32_t>(between(0, rows - 1) * (longest + 1) + between(1, longest));
    }
  }
  std::vector<float> out(rows * slot);
  const auto part = [&](int64_t i) { return Heads{fused.data() + i * slot, 3 * slot, width}; };
  decode_attention(shape, part(0), part(1), part(2), keys.data(), values.data(), slots.data(), table.data(), stride,
                   lengths.data(), out.data(), on(between(1, 5)));
  double worst = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t h = 0; h < heads; ++h) {
      const float* q = fused.data() + r * 3 * slot + h * width;
      std::vector<const float*> k, v;
      for (int64_t t = 0; t < lengths[r]; ++t) {
        k.push_back(keys.data() + table[r * stride + t] * slot + h * width);
        v.push_back(values.data() + table[r * stride + t] * slot + h * width);
      }
      k.push_back(q + slot);
      v.push_back(q + 2 * slot);
      compare(q, k, v, width, out.data() + r * slot + h * width, &worst);
      for (int64_t d = 0; d < width; ++d) {
        if (keys[slots[r] * slot + h * width + d] != q[slot + d]) worst = INFINITY;
        if (values[slots[r] * slot + h * width + d] != q[2 * slot + d]) worst = INFINITY;
      }
    }
  }
  return worst;
}

double cross(int64_t sources, int64_t heads, int64_t width, int64_t longest) {
  const int64_t slot = heads * width, pool = 1 + longest;
  std::vector<int32_t> starts{0}, lengths(sources), table(sources * longest, -1);
  for (int64_t b = 0; b < sources; ++b) {
    starts.push_back(starts[b] + static_cast<int32_t>(between(0, 4)));
    lengths[b] = static_cast<int32_t>(between(0, longest));
    for (int64_t t = 0; t < lengths[b]; ++t) table[b * longest + t] = static_cast<int32_t>(between(0, pool - 1));
  }
  const std::vector<float> q = normal(starts[sources] * slot), keys = normal(pool * slot), values = normal(pool * slot);
  std::vector<float> out(q.size(), NAN);
  cross_decode_attention({starts[sources], heads, width}, {q.data(), slot, width}, keys.data(), values.data(),
                         table.data(), longest, lengths.data(), starts.data(), sources, out.data(), on(between(1, 5)));
  double worst = 0;
  for (int64_t b = 0; b < sources; ++b) {
    for (int64_t r = starts[b]; r < starts[b + 1]; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<const float*> k, v;
        for (int64_t t = 0; t < lengths[b]; ++t) {
          k.push_back(keys.data() + table[b * longest + t] * slot + h * width);
          v.push_back(values.data() + table[b * longest + t] * slot + h * width);
        }
        const float* got = out.data() + r * slot + h * width;
        if (!k.empty()) compare(q.data() + r * slot + h * width, k, v, width, got, &worst);
        for (int64_t d = 0; k.empty() && d < width; ++d) worst = got[d] == 0 ? worst : INFINITY;
      }
    }
  }
  return worst;
}

double product(int64_t rows, int64_t inputs, int64_t outputs, bool biased) {
  const std::vector<float> x = normal(rows * inputs), weight = normal(outputs * inputs), bias = normal(outputs);
  std::vector<float> out(rows * outputs, NAN);
  linear(x.data(), rows, inputs, weight.data(), outputs, biased ? bias.data() : nullptr, out.data(), on(between(1, 5)));
  double worst = 0;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < outputs; ++n) {
      double exact = biased ? bias[n] : 0;
      for (int64_t k = 0; k < inputs; ++k) exact += double{x[m * inputs + k]} * weight[n * inputs + k];
      const double error = std::abs(exact - out[m * outputs + n]) / 10;  // a sum of up to 200 products
      worst = error <= worst ? worst : error;
    }
  }
  return worst;
}

// With the weight as its definition has it, of which every value must be equal.
double int4_product(int64_t rows, int64_t groups, int64_t outputs, int64_t form, bool biased) {
  const int64_t group = int64_t{32} << between(0, 2), inputs = groups * group;
  const std::vector<float> x = normal(rows * inputs), scale = normal(outputs * groups), bias = normal(outputs);
  const std::vector<float> zero = normal(outputs * groups), codebook = normal(16);
  std::vector<uint8_t> packed(outputs * inputs / 2);
  for (uint8_t& byte : packed) byte = static_cast<uint8_t>(randomness());
  const Int4 weight{packed.data(), scale.data(), form == 1 ? zero.data() : nullptr,
                    form == 2 ? codebook.data() : nullptr, outputs, inputs, group};
  std::vector<float> out(rows * outputs, NAN), values(outputs * inputs, NAN);
  int4_matmul(x.data(), rows, weight, biased ? bias.data() : nullptr, out.data(), on(between(1, 5)));
  int4_dequantize(weight, values.data(), on(between(1, 5)));
  for (int64_t i = 0; i < outputs * inputs; ++i) {
    const int nibble = packed[i / 2] >> (i % 2 * 4) & 15;
    const float plain = static_cast<float>(nibble) - (form == 1 ? zero[i / group] : 8.0f);
    const float value = (form == 2 ? codebook[nibble] : plain) * scale[i / group];
    if (std::memcmp(&value, &values[i], sizeof value) != 0) return INFINITY;
  }
  double worst = 0;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < outputs; ++n) {
      double exact = biased ? bias[n] : 0;
      for (int64_t k = 0; k < inputs; ++k) exact += double{x[m * inputs + k]} * values[n * inputs + k];
      const double error = std::abs(exact - out[m * outputs + n]) / 200;  // a sum of up to 640 products with up to 15
      worst = error <= worst ? worst : error;
    }
  }
  return worst;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CALLS SEED\n", argv[0]);
    return 2;
  }
  randomness.seed(std::atoll(argv[2]));
  for (int64_t call = 0; call < std::atoll(argv[1]); ++call) {
    const int64_t width = between(0, 1) ? 64 : between(1, 150);
    const int64_t groups = between(0, 5), heads = between(1, 5), longest = between(1, between(0, 9) ? 40 : 700);
    const double worst =
        call % 4 == 0   ? self(groups, heads, width, longest)
        : call % 4 == 1 ? cross(groups, heads, width, longest)
        : call % 4 == 2 ? product(between(0, 13), between(0, 200), between(0, 120), between(0, 1))
                        : int4_product(between(0, 13), between(0, 5), between(0, 60), between(0, 2), between(0, 1));
    if (!(worst < 1e-5)) {
      std::fprintf(stderr, "call %lld: the largest error is %g, allowed are 1e-5\n", static_cast<long long>(call), worst);
      return 1;
    }
  }
  std::printf("%s calls: all right\n", argv[1]);
  return 0;
}
