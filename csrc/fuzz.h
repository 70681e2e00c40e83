// Random numbers of the programs that call kernels under the sanitizers, fuzz_*.cpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "float_types.h"

namespace bertgen {

inline std::mt19937_64 randomness;

inline int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(randomness() % (high - low + 1)); }

inline std::vector<float> normal(int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = distribution(randomness);
  return numbers;
}

// Numbers as they are stored in a type, and their values.
struct Numbers {
  FloatType type = kFloat32;
  std::vector<uint8_t> stored;
  std::vector<float> values;

  Numbers() = default;
  Numbers(FloatType kind, const std::vector<float>& numbers) : type(kind), values(numbers) {
    stored.resize(numbers.size() * bytes_of(type));
    for (size_t i = 0; i < numbers.size(); ++i) {
      dispatch_type(type, [&](auto number) {
        number = from_float<decltype(number)>(numbers[i]);
        std::memcpy(stored.data() + i * sizeof number, &number, sizeof number);
      });
    }
    read();
  }

  // Sets the values to what is stored.
  void read() {
    for (size_t i = 0; i < values.size(); ++i) {
      dispatch_type(type, [&](auto number) {
        std::memcpy(&number, stored.data() + i * sizeof number, sizeof number);
        values[i] = to_float(number);
      });
    }
  }

  const void* at(int64_t i) const { return stored.data() + i * bytes_of(type); }
  const void* data() const { return at(0); }
  void* data() { return stored.data(); }
  const float& operator[](int64_t i) const { return values[i]; }
};

inline FloatType any_type() { return static_cast<FloatType>(between(kFloat32, kFloat16)); }

}  // namespace bertgen
