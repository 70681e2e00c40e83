// Sums, powers, logarithms and transposes of vectors of eight floats.
#pragma once

#include <cstdint>
#include <cstring>

#include "instruction_sets.h"
#include "lanes.h"

namespace bertgen {

// sums = sums of pairs of neighbours, those of a and b in turns of two: each half of the result is made of the same
// half of a and b, as the 256-bit instructions do it.
BERTGEN_INLINE void add_pairs(const Vector& a, const Vector& b, Vector& sums) {
  sums = BERTGEN_SHUFFLE(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + BERTGEN_SHUFFLE(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

// sums[j] -> the sum of its elements, as element j of the result
BERTGEN_INLINE void add_across(Vector (&sums)[kLanes], Vector& result) {
  for (int j = 0; j < 4; ++j) add_pairs(sums[2 * j], sums[2 * j + 1], sums[j]);
  for (int j = 0; j < 2; ++j) add_pairs(sums[2 * j], sums[2 * j + 1], sums[j]);
  // Now sums[i] holds halves of the sums 4 i + j, at j and at 4 + j.
  result = BERTGEN_SHUFFLE(sums[0], sums[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           BERTGEN_SHUFFLE(sums[0], sums[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

constexpr int whole_vectors(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

// vectors[j] -> the sum of its elements, as totals[j]; kCount is a multiple of kLanes.
template <int kCount>
BERTGEN_INLINE void add_across(Vector (&vectors)[kCount], float (&totals)[kCount]) {
  static_assert(kCount == whole_vectors(kCount), "sums are made eight at a time");
  for (int first = 0; first < kCount; first += kLanes) {
    Vector eight;
    add_across(reinterpret_cast<Vector(&)[kLanes]>(vectors[first]), eight);
    vector_at(totals + first).value = eight;
  }
}

// x -> 2^x, in place, for x of at most 0. Below -126 the result is about 2^-126, negligible in a sum with 2^0. NaN
// stays NaN.
BERTGEN_INLINE void power_of_two(Vector& x) {
  const Vector least = Vector{} - 126.0f;
  x = BERTGEN_SELECT(x < least, least, x);
  const Vector shifted = x + 12582912.0f;  // 1.5 * 2^23: the last bits are x rounded to an integer
  const Vector r = x - (shifted - 12582912.0f);
  Vector y = r * 1.52527338e-5f + 1.54035304e-4f;  // ln(2)^k / k!, k = 7 .. 0
  y = y * r + 1.33335581e-3f;
  y = y * r + 9.61812911e-3f;
  y = y * r + 5.55041087e-2f;
  y = y * r + 2.40226507e-1f;
  y = y * r + 6.93147181e-1f;
  y = y * r + 1.0f;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  Vector power;
  std::memcpy(&power, &bits, sizeof power);
  x = y * power;
}

// x -> e^x, in place, for x of at most 0, with an error of about 1e-7 of the result. Below -87 the result is about
// 1.6e-38, negligible in a sum with e^0. NaN stays NaN.
//
// The logarithm of 2 is subtracted in two parts, of which the products with the first are exact; the polynomial is that
// of Moshier's Cephes, expf.c.
BERTGEN_INLINE void exponential(Vector& x) {
  const Vector least = Vector{} - 87.0f;
  x = BERTGEN_SELECT(x < least, least, x);
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the last bits are x / ln(2) rounded
  const Vector n = shifted - 12582912.0f;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  Bits bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;
  Vector power;
  std::memcpy(&power, &bits, sizeof power);
  x = y * power;
}

// x -> log(x), in place, for positive normal x, with an error of about 1e-7 of the result; the polynomial is that of
// Cephes, logf.c.
BERTGEN_INLINE void logarithm(Vector& x) {
  constexpr uint32_t kRootOfHalf = 0x3f3504f3u;  // as bits; x is a power of 2 times f from sqrt(1/2) to sqrt(2)
  Bits bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = bits + (0x3f800000u - kRootOfHalf);
  const Bits exponent_bits = (bits >> 23) - 127u;
  bits = (bits & 0x7fffffu) + kRootOfHalf;
  Words exponents;
  std::memcpy(&exponents, &exponent_bits, sizeof exponents);
  Vector n, f;
  to_floats(exponents, n);
  std::memcpy(&f, &bits, sizeof f);
  f = f - 1.0f;
  const Vector square = f * f;
  Vector y = f * 7.0376836292e-2f - 1.1514610310e-1f;
  y = y * f + 1.1676998740e-1f;
  y = y * f - 1.2420140846e-1f;
  y = y * f + 1.4249322787e-1f;
  y = y * f - 1.6668057665e-1f;
  y = y * f + 2.0000714765e-1f;
  y = y * f - 2.4999993993e-1f;
  y = y * f + 3.3333331174e-1f;
  y = y * f * square - n * 2.12194440e-4f - square * 0.5f;
  x = f + y + n * 0.693359375f;
}

// Element j of rows[i] <-> element i of rows[j]
BERTGEN_INLINE void transpose(Vector (&rows)[kLanes]) {
  Vector pairs[kLanes], fours[kLanes];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = BERTGEN_SHUFFLE(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = BERTGEN_SHUFFLE(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; ++j) {
      fours[i + 2 * j] = BERTGEN_SHUFFLE(pairs[i + j], pairs[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * j + 1] = BERTGEN_SHUFFLE(pairs[i + j], pairs[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = BERTGEN_SHUFFLE(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = BERTGEN_SHUFFLE(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

}  // namespace bertgen
