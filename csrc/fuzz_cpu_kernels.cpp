// The CPU kernels on random shapes against their equations in double; built under the sanitizers by `make fuzz`.
//
//     fuzz_cpu_kernels CALLS SEED
//
// Every array has exactly the size it needs, so that a read beyond its end is an error. Each call uses one of the
// instruction sets of the machine; -DBERTGEN_PORTABLE builds the kernels without any.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "decode_attention_cpu.h"
#include "decoder_step_cpu.h"
#include "fuzz.h"
#include "instruction_sets.h"
#include "int4_cpu.h"
#include "int4_int8_cpu.h"
#include "layernorm_gelu_cpu.h"
#include "linear_cpu.h"
#include "packed_attention_cpu.h"
#include "processors_cpu.h"
#include "sample_cpu.h"
#include "selection_cpu.h"

using namespace bertgen;

namespace {

// Compares a head of attention with softmax(q . k / sqrt(width)) v; *worst is the largest error so far.
void compare(const float* q, const std::vector<const float*>& keys, const std::vector<const float*>& values,
             int64_t width, const float* result, double* worst) {
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
    const double error = std::abs(exact - result[d]);
    *worst = error <= *worst ? *worst : error;  // NaN stays NaN
  }
}

Threads on(int64_t count) {
  return {count, [count](const std::function<void()>& worker) {
            for (int64_t i = 0; i < count; ++i) worker();
          }};
}

double self(FloatType type, int64_t rows, int64_t heads, int64_t width, int64_t longest) {
  const Shape shape{rows, heads, width};
  const int64_t slot = heads * width, stride = longest, pool = rows * (longest + 1);
  std::vector<float> fused = normal(rows * 3 * slot);
  Numbers keys(type, normal(pool * slot)), values(type, normal(pool * slot));
  std::vector<int64_t> slots(rows);
  std::vector<int32_t> table(rows * stride, -1), lengths(rows);
  for (int64_t r = 0; r < rows; ++r) {
    lengths[r] = static_cast<int32_t>(between(0, longest));
    slots[r] = r * (longest + 1);
    for (int64_t t = 0; t < lengths[r]; ++t) {  // any row's slots, except those that are written
      table[r * stride + t] = static_cast<int32_t>(between(0, rows - 1) * (longest + 1) + between(1, longest));
    }
  }
  std::vector<float> out(rows * slot);
  const auto part = [&](int64_t i) {  // without rows there is no memory to point into
    return Heads{rows > 0 ? fused.data() + i * slot : fused.data(), 3 * slot, width};
  };
  decode_attention(shape, part(0), part(1), part(2), {keys.data(), values.data(), type}, slots.data(),
                   table.data(), stride, lengths.data(), out.data(), on(between(1, 5)));
  keys.read();
  values.read();
  double worst = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t h = 0; h < heads; ++h) {
      const float* q = fused.data() + r * 3 * slot + h * width;
      std::vector<const float*> k, v;
      for (int64_t t = 0; t < lengths[r]; ++t) {
        k.push_back(keys.values.data() + table[r * stride + t] * slot + h * width);
        v.push_back(values.values.data() + table[r * stride + t] * slot + h * width);
      }
      k.push_back(keys.values.data() + slots[r] * slot + h * width);
      v.push_back(values.values.data() + slots[r] * slot + h * width);
      compare(q, k, v, width, out.data() + r * slot + h * width, &worst);
      const auto is_rounded = [&](const float* stored, const float* given) {
        return Numbers(type, {given, given + width}).values == std::vector<float>(stored, stored + width);
      };
      if (!is_rounded(k.back(), q + slot) || !is_rounded(v.back(), q + 2 * slot)) worst = INFINITY;
    }
  }
  return worst;
}

double cross(FloatType type, int64_t sources, int64_t heads, int64_t width, int64_t longest) {
  const int64_t slot = heads * width, pool = 1 + longest;
  std::vector<int32_t> starts{0}, lengths(sources), table(sources * longest, -1);
  for (int64_t b = 0; b < sources; ++b) {
    starts.push_back(starts[b] + static_cast<int32_t>(between(0, 4)));
    lengths[b] = static_cast<int32_t>(between(0, longest));
    for (int64_t t = 0; t < lengths[b]; ++t) table[b * longest + t] = static_cast<int32_t>(between(0, pool - 1));
  }
  const std::vector<float> q = normal(starts[sources] * slot);
  Numbers keys(type, normal(pool * slot)), values(type, normal(pool * slot));
  std::vector<float> out(q.size(), NAN);
  cross_decode_attention({starts[sources], heads, width}, {q.data(), slot, width},
                         {keys.data(), values.data(), type}, table.data(), longest, lengths.data(),
                         starts.data(), sources, out.data(), on(between(1, 5)));
  double worst = 0;
  for (int64_t b = 0; b < sources; ++b) {
    for (int64_t r = starts[b]; r < starts[b + 1]; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<const float*> k, v;
        for (int64_t t = 0; t < lengths[b]; ++t) {
          k.push_back(keys.values.data() + table[b * longest + t] * slot + h * width);
          v.push_back(values.values.data() + table[b * longest + t] * slot + h * width);
        }
        const float* result = out.data() + r * slot + h * width;
        if (!k.empty()) compare(q.data() + r * slot + h * width, k, v, width, result, &worst);
        for (int64_t d = 0; k.empty() && d < width; ++d) worst = result[d] == 0 ? worst : INFINITY;
      }
    }
  }
  return worst;
}

double packed(int64_t sequences, int64_t heads, int64_t width, int64_t longest) {
  const int64_t slot = heads * width;
  const bool causal = between(0, 1), masked = between(0, 3) == 0;
  std::vector<int32_t> cu_q{0}, cu_k{0};
  std::vector<int64_t> start(sequences), length(sequences);
  for (int64_t b = 0; b < sequences; ++b) {
    cu_q.push_back(cu_q[b] + static_cast<int32_t>(between(0, longest)));
    cu_k.push_back(cu_k[b] + static_cast<int32_t>(between(0, longest)));
    start[b] = between(-5, longest);
    length[b] = between(0, 2) ? longest : between(-1, longest);
  }
  const std::unique_ptr<bool[]> mask(new bool[sequences * longest]);
  for (int64_t i = 0; i < sequences * longest; ++i) mask[i] = !masked || between(0, 2) == 0;
  const FloatType type = any_type();
  const Numbers q(type, normal(cu_q[sequences] * slot)), fused(type, normal(cu_k[sequences] * 2 * slot));
  Numbers out(type, std::vector<float>(q.values.size(), NAN));
  // Keys and values side by side; without tokens there is no memory to point into.
  const TokenHeads keys{fused.data(), 2 * slot, width};
  const TokenHeads values{fused.at(fused.values.empty() ? 0 : slot), 2 * slot, width};
  packed_attention({type, heads, width, sequences, {q.data(), slot, width}, keys, values, cu_q.data(), cu_k.data(),
                    causal, start.data(), length.data(), masked ? mask.get() : nullptr, longest, out.stored.data()},
                   on(between(1, 5)));
  dispatch_type(type, [&](auto number) {
    for (size_t i = 0; i < out.values.size(); ++i) {
      std::memcpy(&number, out.at(static_cast<int64_t>(i)), sizeof number);
      out.values[i] = to_float(number);
    }
  });
  double worst = 0;
  for (int64_t b = 0; b < sequences; ++b) {
    for (int64_t t = cu_q[b]; t < cu_q[b + 1]; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        std::vector<const float*> k, v;
        for (int64_t j = 0; j < cu_k[b + 1] - cu_k[b]; ++j) {
          if (j >= length[b] || !mask[b * longest + j] || (causal && j > start[b] + t - cu_q[b])) continue;
          k.push_back(fused.values.data() + (cu_k[b] + j) * 2 * slot + h * width);
          v.push_back(k.back() + slot);
        }
        const float* result = out.values.data() + t * slot + h * width;
        double error = 0;
        if (!k.empty()) compare(q.values.data() + t * slot + h * width, k, v, width, result, &error);
        for (int64_t d = 0; k.empty() && d < width; ++d) error = result[d] == 0 ? error : INFINITY;
        error *= type == kFloat32 ? 1 : 1e-4;  // of rounding the result
        worst = error <= worst ? worst : error;
      }
    }
  }
  return worst;
}

// Of several layers, with weights anywhere in memory.
double product(int64_t rows, int64_t inputs, int64_t outputs, bool biased) {
  const int64_t count = between(1, 3), stride = count * outputs;
  const FloatType type = any_type();
  std::vector<Numbers> weights, biases;
  std::vector<Linear> layers;
  for (int64_t i = 0; i < count; ++i) {
    weights.emplace_back(type, normal(outputs * inputs));
    biases.emplace_back(type, normal(outputs));
  }
  for (int64_t i = 0; i < count; ++i) layers.push_back({weights[i].data(), biased ? biases[i].data() : nullptr});
  const std::vector<float> x = normal(rows * inputs);
  std::vector<float> out(rows * stride, NAN);
  linear(x.data(), rows, inputs, layers.data(), count, outputs, type, out.data(), stride, on(between(1, 5)));
  double worst = 0;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < stride; ++n) {
      const int64_t layer = n / outputs, row = n % outputs;
      double exact = biased ? biases[layer][row] : 0;
      for (int64_t k = 0; k < inputs; ++k) exact += double{x[m * inputs + k]} * double{weights[layer][row * inputs + k]};
      const double error = std::abs(exact - out[m * stride + n]) / 10;  // a sum of up to 200 products
      worst = error <= worst ? worst : error;
    }
  }
  return worst;
}

// Whether the products of two layers in one call are, to the last bit, `alone`, the product of the first; the second
// layer is a copy of the first in other memory.
template <class F>
bool equals_alone(const F& multiply, const std::vector<float>& x, int64_t rows, const Int4Linear& layer,
                   const std::vector<float>& alone) {
  const Int4& w = layer.weight;
  const int64_t groups = w.rows * w.columns / w.group, stride = 2 * w.rows;
  const auto copy = [](const auto* from, int64_t count) {
    return from == nullptr ? std::vector<std::decay_t<decltype(*from)>>() : std::vector(from, from + count);
  };
  const auto packed = copy(w.packed, w.rows * w.columns / 2);
  const auto scale = copy(w.scale, groups), zero = copy(w.zero, groups), bias = copy(layer.bias, w.rows);
  const Int4 second{packed.data(), scale.data(), w.zero == nullptr ? nullptr : zero.data(), w.codebook, w.rows,
                    w.columns,     w.group};
  const Int4Linear layers[] = {layer, {second, layer.bias == nullptr ? nullptr : bias.data()}};
  std::vector<float> out(rows * stride, NAN);
  multiply(x.data(), rows, layers, 2, out.data(), stride, on(between(1, 5)));
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < stride; ++n) {
      if (std::memcmp(&out[m * stride + n], &alone[m * w.rows + n % w.rows], sizeof(float)) != 0) return false;
    }
  }
  return true;
}

// The unpacked weight must equal its definition in every value.
double int4_product(int64_t rows, int64_t groups, int64_t outputs, int64_t form, bool biased) {
  const int64_t group = int64_t{32} << between(0, 2), inputs = groups * group;
  const std::vector<float> x = normal(rows * inputs), scale = normal(outputs * groups), bias = normal(outputs);
  const std::vector<float> zero = normal(outputs * groups), codebook = normal(16);
  std::vector<uint8_t> packed(outputs * inputs / 2);
  for (uint8_t& byte : packed) byte = static_cast<uint8_t>(randomness());
  const Int4 weight{packed.data(), scale.data(), form == 1 ? zero.data() : nullptr,
                    form == 2 ? codebook.data() : nullptr, outputs, inputs, group};
  std::vector<float> out(rows * outputs, NAN), values(outputs * inputs, NAN);
  const Int4Linear layer{weight, biased ? bias.data() : nullptr};
  int4_matmul(x.data(), rows, &layer, 1, out.data(), outputs, on(between(1, 5)));
  if (!equals_alone(int4_matmul, x, rows, layer, out)) return INFINITY;
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

double gelu_of(double x) { return x * std::erfc(-x / std::sqrt(2.0)) / 2; }

// x + residual, normalized
void norm(std::vector<double>& x, const std::vector<double>& residual, int64_t columns, const float* weight,
          const float* shift, double eps) {
  for (size_t start = 0; start < x.size(); start += columns) {
    double mean = 0, square = 0;
    for (int64_t k = 0; k < columns; ++k) mean += (x[start + k] += residual[start + k]) / columns;
    for (int64_t k = 0; k < columns; ++k) square += (x[start + k] - mean) * (x[start + k] - mean) / columns;
    for (int64_t k = 0; k < columns; ++k) {
      x[start + k] = (x[start + k] - mean) / std::sqrt(square + eps) * weight[k] + shift[k];
    }
  }
}

double norm_and_gelu(int64_t rows, int64_t columns) {
  const std::vector<float> x = normal(rows * columns), residual = normal(rows * columns);
  const FloatType type = any_type();
  const Numbers weight(type, normal(columns)), shift(type, normal(columns));
  const Norm parameters{weight.data(), shift.data(), type};
  std::vector<float> normed = x, activated = x;
  for (float& value : activated) value *= 4;
  std::vector<double> exact(x.begin(), x.end());
  if (columns > 4) {  // of few columns the variance may be close to 0
    norm(exact, {residual.begin(), residual.end()}, columns, &weight[0], &shift[0], 1e-3);
    add_layer_norm(normed.data(), residual.data(), rows, columns, parameters, 1e-3f, on(between(1, 5)));
  }
  gelu(activated.data(), rows * columns, on(between(1, 5)));
  std::vector<float> both(rows * columns, NAN), apart = activated, alone(rows * columns, NAN), zeros(rows * columns);
  std::vector<float> scaled = x;
  for (float& value : scaled) value *= 4;
  gelu_layer_norm(scaled.data(), rows, columns, parameters, 1e-3f, both.data(), on(between(1, 5)));
  add_layer_norm(activated.data(), nullptr, rows, columns, parameters, 1e-3f, alone.data(), on(2));
  add_layer_norm(apart.data(), zeros.data(), rows, columns, parameters, 1e-3f, on(between(1, 5)));
  if (both != apart || alone != apart) return INFINITY;
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double error = std::max(std::abs(exact[i] - normed[i]), std::abs(gelu_of(4.0 * x[i]) - activated[i]));
    worst = error <= worst ? worst : error;
  }
  return worst;
}

// x [columns] as `int4_matmul_int8` rounds it: integers, and their scale in the last element.
std::vector<double> rounded(const float* x, int64_t columns) {
  float largest = 0;
  for (int64_t k = 0; k < columns; ++k) largest = std::max(largest, std::abs(x[k]));
  const float scale = largest / 127;
  std::vector<double> whole(columns + 1);
  for (int64_t k = 0; k < columns; ++k) whole[k] = scale > 0 ? std::nearbyint(x[k] / scale) : 0;
  whole[columns] = scale;
  return whole;
}

double integer_product(int64_t rows, int64_t groups, int64_t outputs, bool zeros, bool biased) {
  const int64_t group = int64_t{32} << between(0, 2), inputs = groups * group;
  std::vector<float> x = normal(rows * inputs);
  const std::vector<float> scale = normal(outputs * groups), zero = normal(outputs * groups), bias = normal(outputs);
  std::vector<uint8_t> packed(outputs * inputs / 2);
  for (uint8_t& byte : packed) byte = static_cast<uint8_t>(randomness());
  const int64_t odd = x.empty() ? 0 : between(0, 3);  // a row of zeros, with an infinity, with a NaN; most have none
  for (int64_t k = 0; odd == 1 && k < inputs; ++k) x[k] = 0;
  if (odd == 2) x[inputs - 1] = -INFINITY;
  if (odd == 3) x[0] = NAN;
  const Int4 weight{packed.data(), scale.data(), zeros ? zero.data() : nullptr, nullptr, outputs, inputs, group};
  std::vector<float> out(rows * outputs, NAN);
  const Int4Linear layer{weight, biased ? bias.data() : nullptr};
  int4_matmul_int8(x.data(), rows, &layer, 1, out.data(), outputs, on(between(1, 5)));
  if (!equals_alone(int4_matmul_int8, x, rows, layer, out)) return INFINITY;
  double worst = 0;
  for (int64_t m = 0; m < rows; ++m) {
    const std::vector<double> whole = rounded(x.data() + m * inputs, inputs);
    for (int64_t n = 0; n < outputs; ++n) {
      if (m == 0 && odd > 1) {
        if (!std::isnan(out[n])) return INFINITY;
        continue;
      }
      double exact = 0;
      for (int64_t k = 0; k < inputs; ++k) {
        const int64_t g = (n * inputs + k) / group;
        const int nibble = packed[(n * inputs + k) / 2] >> (k % 2 * 4) & 15;
        exact += whole[k] * (nibble - double{zeros ? zero[g] : 8.0f}) * scale[g];
      }
      exact = exact * whole[inputs] + (biased ? bias[n] : 0);
      const double error = std::abs(exact - out[m * outputs + n]) / 200;  // as above
      worst = error <= worst ? worst : error;
    }
  }
  return worst;
}

// Scores of all kinds: some equal, some not finite, some far apart.
std::vector<float> scores_of(int64_t count) {
  std::vector<float> scores = normal(count);
  const int64_t kind = between(0, 5);
  const float width = static_cast<float>(between(0, 1) ? 3 : between(0, 40));
  for (float& score : scores) {
    score = kind == 1 ? std::nearbyint(2 * score) : kind == 2 ? 0.0f : score * width;
    if (kind > 2 && between(0, 9) == 0) score = kind == 3 ? -INFINITY : kind == 4 ? NAN : INFINITY;
    if (kind == 5 && between(0, 9) == 0) score = -std::numeric_limits<float>::max();
  }
  return scores;
}

// Whether two logarithms of probabilities agree; both may be NaN or infinite.
double distance(double exact, float value) {
  if (std::isnan(exact) || std::isinf(exact)) {
    return std::isnan(exact) == std::isnan(value) && (std::isnan(exact) || exact == value) ? 0 : INFINITY;
  }
  return std::abs(exact - value) / std::max(1.0, std::abs(exact));
}

double selection(int64_t groups, int64_t group, int64_t vocabulary) {
  const int64_t rows = groups * group, count = between(1, std::min<int64_t>(64, group * vocabulary));
  const std::vector<float> scores = scores_of(rows * vocabulary), offsets = normal(rows);
  const bool offset = between(0, 1);
  std::vector<float> values(groups * count, NAN), out(rows * vocabulary, NAN);
  std::vector<int64_t> indices(groups * count, -1), tokens(rows, -1);
  top_log_probs(scores.data(), rows, vocabulary, count, offset ? offsets.data() : nullptr, group, values.data(),
                indices.data(), on(between(1, 5)));
  best_of_rows(scores.data(), rows, vocabulary, tokens.data(), on(between(1, 5)));
  log_softmax_of_rows(scores.data(), rows, vocabulary, out.data(), on(between(1, 5)));
  double worst = 0;
  const auto better = [](float a, float b) { return std::isnan(a) ? !std::isnan(b) : a > b; };
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = scores.data() + r * vocabulary;
    const auto most = std::max_element(row, row + vocabulary, [&](float a, float b) { return better(b, a); });
    if (tokens[r] != most - row) return INFINITY;
    double sum = 0;
    for (int64_t v = 0; v < vocabulary; ++v) sum += std::exp(double{row[v]} - *most);
    const double all = *most + std::log(sum);  // NaN where the best is NaN or infinite
    for (int64_t v = 0; v < vocabulary; ++v) {
      worst = std::max(worst, distance(row[v] - all, out[r * vocabulary + v]));
    }
    const float total = log_sum_exp(row, vocabulary);
    worst = std::max(worst, std::isinf(*most) ? (total == *most ? 0 : INFINITY) : distance(all, total));
    std::vector<float> some(vocabulary);
    std::vector<int64_t> order(vocabulary);
    const int64_t wanted = between(1, vocabulary);
    best_scores(row, vocabulary, wanted, some.data(), order.data());
    for (int64_t i = 1; i < wanted; ++i) {
      const float before = row[order[i - 1]], now = row[order[i]];
      if (better(now, before) || (!better(before, now) && order[i - 1] > order[i])) return INFINITY;
    }
    for (int64_t g = r / group, j = 0; j < count; ++j) {
      const int64_t index = indices[g * count + j];
      if (index < 0 || index >= group * vocabulary) return INFINITY;
      if (index / vocabulary != r % group) continue;
      const float score = row[index % vocabulary], value = values[g * count + j];
      const double exact = score == -INFINITY ? -INFINITY : score - all + (offset ? offsets[r] : 0);
      worst = std::max(worst, distance(exact, value));
      if (j > 0 && better(value, values[g * count + j - 1])) return INFINITY;
    }
  }
  return worst / 2;  // of sums of two numbers of up to 100
}

// A draw is a token that the limits keep, with the log-probability that it has among these; limits that keep one token
// take it.
double draw(int64_t vocabulary) {
  const std::vector<float> scores = scores_of(vocabulary);
  const SampleKey key{static_cast<int64_t>(randomness()), static_cast<int64_t>(randomness()), between(0, 1000)};
  SampleLimits limits{between(0, 3) ? 0.1f * static_cast<float>(between(1, 20)) : 0.0f,
                      between(0, 1) ? between(0, vocabulary + 1) : 0,
                      between(0, 1) ? 0.01f * static_cast<float>(between(-1, 101)) : 1.0f,
                      between(0, 1) ? 0.001f * static_cast<float>(between(0, 1001)) : 0.0f};
  std::vector<float> workspace(between(0, 100), NAN);
  float log_prob = NAN, again = NAN;
  const int64_t token = sample(scores.data(), vocabulary, key, limits, workspace, &log_prob);
  if (token < 0 || token >= vocabulary || std::isnan(log_prob) || log_prob > 1e-6f) return INFINITY;
  if (sample(scores.data(), vocabulary, key, limits, workspace, &again) != token || again != log_prob) return INFINITY;
  const auto usable = [](float score) {
    return std::isnan(score) ? -INFINITY : std::min(score, std::numeric_limits<float>::max());
  };
  int64_t better = 0;
  float most = -INFINITY;
  for (const float score : scores) {
    better += usable(score) > usable(scores[token]);
    most = std::max(most, usable(score));
  }
  if (most == -INFINITY) return token == 0 && log_prob == -INFINITY ? 0 : INFINITY;
  const bool greedy = limits.temperature == 0 || limits.top_k == 1 || limits.top_p <= 0 || limits.min_p >= 1;
  if (better > 0 && (greedy || (limits.top_k > 0 && better >= limits.top_k))) return INFINITY;
  if (limits.temperature == 0) return log_prob == 0 ? 0 : INFINITY;
  if (limits.top_k != 0 || limits.top_p < 1 || limits.min_p > 0) return 0;
  double sum = 0;  // of a token that is far below the best it is 0: then there is nothing to compare
  for (const float score : scores) sum += std::exp((double{usable(score)} - most) / double{limits.temperature});
  return distance((double{usable(scores[token])} - most) / double{limits.temperature} - std::log(sum), log_prob) / 10;
}

// Processors with ids of the vocabulary, and tokens that may be outside.
double processing(int64_t vocabulary, int64_t width) {
  const auto ids = [&](std::vector<int64_t> numbers, int64_t count) {
    for (int64_t i = 0; i < count; ++i) numbers.push_back(between(0, vocabulary - 1));
    return numbers;
  };
  const int64_t length = between(0, width);
  std::vector<int64_t> history(width);
  for (int64_t& token : history) token = between(between(0, 9) ? 0 : -1, std::min<int64_t>(vocabulary, 4));
  std::vector<std::vector<int64_t>> integers;
  std::vector<std::vector<double>> floats;
  std::vector<Processor> processors;
  for (int64_t count = between(0, 6); count > 0; --count) {
    const auto kind = static_cast<ProcessorKind>(between(kBias, kNormalize));
    const int64_t size = between(0, 5);
    floats.emplace_back();
    switch (kind) {
      case kBias: {
        std::vector<int64_t> numbers{size};
        for (int64_t i = 0; i < size; ++i) {
          const int64_t n = between(1, 3);
          numbers.push_back(n);
          numbers = ids(numbers, n);
          floats.back().push_back(0.5);
        }
        integers.push_back(numbers);
        break;
      }
      case kRepetition: integers.emplace_back(), floats.back() = {1.25}; break;
      case kNgram: integers.push_back({between(1, 4)}); break;
      case kSuppress: integers.push_back(ids({between(0, 5), between(0, 20)}, size)); break;
      case kForce: integers.push_back(ids({between(0, width)}, size)); break;
      case kDecay: integers.push_back(ids({between(0, 5)}, size)), floats.back() = {1.5}; break;
      default: integers.emplace_back();
    }
    processors.push_back({kind, nullptr, 0, nullptr, 0});
  }
  for (size_t i = 0; i < processors.size(); ++i) {
    processors[i] = {processors[i].kind, integers[i].data(), static_cast<int64_t>(integers[i].size()),
                     floats[i].data(), static_cast<int64_t>(floats[i].size())};
    if (why_not_processor(processors[i], vocabulary) != nullptr) return INFINITY;
  }
  std::vector<float> scores = scores_of(vocabulary), other = scores;
  ProcessorWorkspace workspace;
  process(processors, history.data(), length, scores.data(), vocabulary, workspace);
  const std::vector<int64_t> ends = ids({}, 2);
  std::vector<uint8_t> banned(vocabulary);
  for (uint8_t& ban : banned) ban = between(0, 3) == 0;
  const uint8_t* bans = between(0, 1) ? banned.data() : nullptr;
  const RowOptions options{1.5f, between(0, 4), between(0, 20), ends.data(), 2, bans};
  process_row(options, history.data(), width, between(-1, width + 1), other.data(), vocabulary, workspace);
  for (int64_t v = 0; v < vocabulary && options.banned != nullptr; ++v) {
    if (banned[v] != 0 && other[v] != -INFINITY) return INFINITY;
  }
  return 0;
}

// The weights of one or more layers, in floats of a type or in 4 bits; `part` is some rows of them as a layer.
struct Weights {
  Numbers numbers, bias;
  std::vector<float> values, scale;
  std::vector<uint8_t> packed;
  int64_t outputs, inputs;

  Weights(int64_t rows, int64_t columns, bool in_4_bits, FloatType type = kFloat32) : outputs(rows), inputs(columns) {
    values = normal(outputs * inputs);
    for (float& value : values) value /= std::sqrt(static_cast<float>(inputs));
    bias = {in_4_bits ? kFloat32 : type, normal(outputs)};
    if (!in_4_bits) {
      numbers = {type, values};
      values = numbers.values;
      return;
    }
    scale.assign(outputs * inputs / 32, 0.02f);
    packed.resize(outputs * inputs / 2);
    for (uint8_t& byte : packed) byte = static_cast<uint8_t>(randomness());
    int4_dequantize(int4(0, outputs), values.data(), on(1));
  }

  Int4 int4(int64_t first, int64_t count) const {
    const uint8_t* rows = packed.data() + first * inputs / 2;
    return {rows, scale.data() + first * inputs / 32, nullptr, nullptr, count, inputs, 32};
  }

  Dense part(int64_t first, int64_t count) const {
    if (packed.empty()) return {numbers.at(first * inputs), {}, bias.at(first), bias.type, count, inputs};
    return {nullptr, int4(first, count), bias.at(first), bias.type, count, inputs};
  }

  Dense all() const { return part(0, outputs); }

  std::vector<double> times(const std::vector<double>& x) const {
    std::vector<double> y(x.size() / inputs * outputs);
    for (size_t i = 0; i < y.size(); ++i) {
      const size_t m = i / outputs, n = i % outputs;
      y[i] = bias[n];
      for (int64_t k = 0; k < inputs; ++k) y[i] += x[m * inputs + k] * values[n * inputs + k];
    }
    return y;
  }
};

// One layer, with a history of one slot that all rows read, and with a source of one token or none. `self` and `cross`
// test attention itself; here it is small, and the composition is tested.
double layer_step(int64_t rows, int64_t heads, int64_t width, int64_t inner, bool sources, bool in_4_bits) {
  const int64_t hidden = heads * width;
  const bool apart_in_4_bits = between(0, 1) && hidden % 32 == 0;
  const FloatType type = any_type();
  const Weights qkv(3 * hidden, hidden, in_4_bits, type), apart(hidden, hidden, apart_in_4_bits, any_type());
  const Weights out(hidden, hidden, in_4_bits, type);
  const Weights cross_q(hidden, hidden, in_4_bits, type), cross_out(hidden, hidden, false, type);
  const Weights in(inner, hidden, in_4_bits, type), outer(hidden, inner, false, type);
  const bool together = between(0, 1);
  const std::vector<float> input = normal(rows * hidden);
  const Numbers scales(type, normal(3 * hidden)), shifts(type, normal(3 * hidden));
  const auto norm_of = [&](int64_t i) { return Norm{scales.at(i * hidden), shifts.at(i * hidden), type}; };
  const auto norm_exactly = [&](std::vector<double>& sum, const std::vector<double>& residual, int64_t i) {
    norm(sum, residual, hidden, &scales[i * hidden], &shifts[i * hidden], 1e-3);
  };
  std::vector<float> keys = normal((rows + 1) * hidden), values = normal((rows + 1) * hidden), x = input;
  std::vector<float> source_keys = normal(hidden), source_values = normal(hidden);
  std::vector<int64_t> slots(rows);
  const std::vector<int32_t> table(rows, static_cast<int32_t>(rows)), lengths(rows, 1), source_table{0}, one{1};
  const std::vector<int32_t> starts{0, static_cast<int32_t>(rows)};
  for (int64_t r = 0; r < rows; ++r) slots[r] = r;
  DecoderLayer layer{};
  layer.query = qkv.part(0, hidden);
  layer.key = qkv.part(hidden, hidden);
  layer.value = together ? qkv.part(2 * hidden, hidden) : apart.all();
  layer.attention_output = out.all();
  layer.attention_norm = norm_of(0);
  layer.pools = {keys.data(), values.data(), kFloat32};
  layer.cross_query = cross_q.all();
  layer.cross_output = cross_out.all();
  layer.cross_norm = norm_of(1);
  layer.source_pools = {source_keys.data(), source_values.data(), kFloat32};
  layer.intermediate = in.all();
  layer.output = outer.all();
  layer.output_norm = norm_of(2);
  DecoderWorkspace workspace;
  decoder_step({layer}, {rows, heads, width, 1e-3f, false, slots.data(), table.data(), 1, lengths.data(), sources,
                         source_table.data(), 1, one.data(), starts.data()},
               x.data(), workspace, on(between(1, 5)));
  std::vector<double> exact(input.begin(), input.end()), inside = qkv.times(exact), other = apart.times(exact);
  std::vector<double> attended(rows * hidden);
  for (int64_t r = 0; r < rows; ++r) {
    const double* q = inside.data() + r * 3 * hidden;
    const double* value = together ? q + 2 * hidden : other.data() + r * hidden;
    for (int64_t h = 0; h < heads; ++h) {
      double gain = 0;  // of the new token's score over that of the slot
      for (int64_t d = h * width; d < (h + 1) * width; ++d) gain += q[d] * (q[hidden + d] - keys[rows * hidden + d]);
      const double weight = 1 / (1 + std::exp(-gain / std::sqrt(static_cast<double>(width))));
      for (int64_t d = h * width; d < (h + 1) * width; ++d) {
        attended[r * hidden + d] = weight * value[d] + (1 - weight) * values[rows * hidden + d];
      }
    }
  }
  std::vector<double> next = out.times(attended);
  norm_exactly(next, exact, 0);
  if (sources) {
    for (int64_t i = 0; i < rows * hidden; ++i) attended[i] = source_values[i % hidden];
    exact = cross_out.times(attended);
    norm_exactly(exact, next, 1);
    next = exact;
  }
  inside = in.times(next);
  for (double& value : inside) value = gelu_of(value);
  exact = outer.times(inside);
  norm_exactly(exact, next, 2);
  double worst = 0;
  for (int64_t i = 0; i < rows * hidden; ++i) {
    const double error = std::abs(exact[i] - x[i]) / 10;  // norms of few columns enlarge earlier errors
    worst = error <= worst ? worst : error;
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
    use_instruction_set(between(kPortable, best_instruction_set()));
    const FloatType type = any_type();  // of pools
    const double worst =
        call % 11 == 8    ? selection(between(0, 4), between(1, 5), between(1, between(0, 1) ? 40 : 1500))
        : call % 11 == 9  ? draw(between(1, between(0, 1) ? 40 : 3000))
        : call % 11 == 10 ? processing(between(1, 60), between(0, 20))
        : call % 11 == 7  ? packed(groups, heads, width, between(1, between(0, 9) ? 40 : 300))
        : call % 7 == 6
            ? integer_product(between(0, 13), between(0, 5), between(0, 60), between(0, 1), between(0, 1))
        : call % 6 == 0 ? self(type, groups, heads, width, longest)
        : call % 6 == 1 ? cross(type, groups, heads, width, longest)
        : call % 6 == 2 ? product(between(0, 13), between(0, 200), between(0, 120), between(0, 1))
        : call % 6 == 3 ? norm_and_gelu(between(0, 9), between(1, 200))
        : call % 6 == 4 ? layer_step(between(1, 9), heads, 8 * between(1, 8), between(1, 150), between(0, 1), false)
        : call % 6 == 5 && call % 4 == 1
            ? layer_step(between(1, 9), heads, 32, between(1, 150), between(0, 1), true)
                        : int4_product(between(0, 13), between(0, 5), between(0, 60), between(0, 2), between(0, 1));
    if (!(worst < 1e-5)) {
      std::fprintf(stderr, "call %lld: the largest error is %g, the limit 1e-5\n", static_cast<long long>(call), worst);
      return 1;
    }
  }
  std::printf("%s calls: all right\n", argv[1]);
  return 0;
}
