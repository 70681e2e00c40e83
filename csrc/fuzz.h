// Random numbers of the programs that call kernels under the sanitizers, fuzz_*.cpp.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace bertgen {

inline std::mt19937_64 randomness;

inline int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(randomness() % (high - low + 1)); }

inline std::vector<float> normal(int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = distribution(randomness);
  return numbers;
}

}  // namespace bertgen
