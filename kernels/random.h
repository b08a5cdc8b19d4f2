// Counted randomness: Philox4x32-10 and what is made of its words, the same bits on host and device.
//
// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", doi:10.1145/2063384.2063405.
// The logarithm, sine and cosine are our own, made of correctly rounded operations alone (+, -, *, /, sqrt), because
// those of libm and CUDA differ in the last bit. So no multiplication here may be contracted with an addition: the
// build sets -ffp-contract=off, and on the device the _rn intrinsics are never contracted. Input words are [.., 4], C
// order.
#pragma once

#include <stdint.h>

#include "math.h"

namespace hpcrl {

struct PhiloxWords {
  uint32_t word[4];
};

// One round: two 32 x 32 -> 64 bit products, crosswise mixed with the key.
HPCRL_HD PhiloxWords philox_round(PhiloxWords in, uint32_t key_low, uint32_t key_high) {
  const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * in.word[0];
  const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * in.word[2];
  return {{static_cast<uint32_t>(product1 >> 32) ^ in.word[1] ^ key_low, static_cast<uint32_t>(product1),
           static_cast<uint32_t>(product0 >> 32) ^ in.word[3] ^ key_high, static_cast<uint32_t>(product0)}};
}

// Philox4x32 with ten rounds. key = seed (low word first), counter = (trajectory, step, iteration, stage and draw).
HPCRL_HD PhiloxWords philox(uint64_t seed, PhiloxWords counter) {
  uint32_t key_low = static_cast<uint32_t>(seed), key_high = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    counter = philox_round(counter, key_low, key_high);
    key_low += 0x9E3779B9u;   // golden ratio
    key_high += 0xBB67AE85u;  // sqrt(3) - 1
  }
  return counter;
}

// A caller's counter names one draw; draws of more than four words count on in the upper 24 bits of its last word.
constexpr int kDrawBits = 8;
constexpr int64_t kMaxWordBlocks = int64_t{1} << (32 - kDrawBits);

HPCRL_HD PhiloxWords philox_block(uint64_t seed, PhiloxWords counter, uint32_t block) {
  counter.word[3] |= block << kDrawBits;
  return philox(seed, counter);
}

// Two words, the first one high, to a double in [0, 1): the upper 53 of 64 bits.
HPCRL_HD double uniform_from_words(uint32_t high, uint32_t low) {
  const uint64_t bits = (static_cast<uint64_t>(high) << 32 | low) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

// Two words to an integer in [0, bound), bound < 2^32: the high part of the 96-bit product. Bias below bound / 2^64.
HPCRL_HD uint32_t bounded_from_words(uint32_t high, uint32_t low, uint32_t bound) {
  const uint64_t carried = static_cast<uint64_t>(low) * bound >> 32;
  return static_cast<uint32_t>((static_cast<uint64_t>(high) * bound + carried) >> 32);
}

namespace rounded {  // one operation, one rounding, on both devices
HPCRL_HD double add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}
HPCRL_HD double multiply(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
HPCRL_HD double divide(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __ddiv_rn(a, b);
#else
  return a / b;
#endif
}
HPCRL_HD double square_root(double a) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(a);
#else
  return __builtin_sqrt(a);
#endif
}
HPCRL_HD float to_float(double a) {
#if defined(__CUDA_ARCH__)
  return __double2float_rn(a);
#else
  return static_cast<float>(a);
#endif
}
}  // namespace rounded

// Natural logarithm of a normal positive number, relative error below 1e-15.
// x = m 2^e with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s) = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1).
HPCRL_HD double logarithm(double x) {
  union {
    double number;
    uint64_t bits;
  } parts;
  parts.number = x;
  int exponent = static_cast<int>(parts.bits >> 52) - 1023;
  parts.bits = (parts.bits & 0x000FFFFFFFFFFFFFull) | 0x3FF0000000000000ull;
  if (parts.number > 0x1.6a09e667f3bcdp0) {  // sqrt(2)
    parts.number = rounded::multiply(parts.number, 0.5);
    exponent += 1;
  }
  const double s = rounded::divide(rounded::add(parts.number, -1.0), rounded::add(parts.number, 1.0));
  const double square = rounded::multiply(s, s);
  double series = 0.0;
  for (int odd = 23; odd >= 3; odd -= 2) {  // |s| <= 0.1716, so the first term left out is below 1e-19
    series = rounded::multiply(square, rounded::add(rounded::divide(1.0, static_cast<double>(odd)), series));
  }
  const double mantissa = rounded::multiply(2.0, rounded::add(s, rounded::multiply(s, series)));
  return rounded::add(rounded::multiply(static_cast<double>(exponent), 0x1.62e42fefa39efp-1), mantissa);  // ln 2
}

// sin and cos of 2 pi u for u in [0, 1): u = quarter / 4 + f with |f| <= 1/8, then Taylor series at |angle| <= pi/4.
HPCRL_HD void sine_cosine_of_turn(double u, double* sine, double* cosine) {
  const int quarter = static_cast<int>(rounded::add(rounded::multiply(u, 4.0), 0.5));
  const double angle =
      rounded::multiply(rounded::add(u, -0.25 * static_cast<double>(quarter)), 0x1.921fb54442d18p2);  // 2 pi
  const double square = rounded::multiply(angle, angle);
  double s = 1.0, c = 1.0;
  for (int n = 18; n >= 2; n -= 2) {  // the first term left out is below 1e-18
    s = rounded::add(1.0, -rounded::divide(rounded::multiply(square, s), static_cast<double>(n * (n + 1))));
    c = rounded::add(1.0, -rounded::divide(rounded::multiply(square, c), static_cast<double>((n - 1) * n)));
  }
  s = rounded::multiply(angle, s);
  const bool swapped = (quarter & 1) != 0;
  *sine = swapped ? c : s;
  *cosine = swapped ? s : c;
  if ((quarter & 2) != 0) *sine = -*sine;            // quarters 2 and 3
  if (((quarter + 1) & 2) != 0) *cosine = -*cosine;  // quarters 1 and 2
}

struct NormalPair {
  float first;
  float second;
};

// Box & Muller 1958, doi:10.1214/aoms/1177706645: four words to two independent standard normal numbers.
// 1 - u lies in (0, 1], so the logarithm is finite; the largest magnitude is sqrt(2 * 53 ln 2) = 8.57.
HPCRL_HD NormalPair normals_from_words(PhiloxWords words) {
  const double u = uniform_from_words(words.word[0], words.word[1]);
  const double turn = uniform_from_words(words.word[2], words.word[3]);
  const double radius = rounded::square_root(rounded::multiply(-2.0, logarithm(rounded::add(1.0, -u))));
  double sine, cosine;
  sine_cosine_of_turn(turn, &sine, &cosine);
  return {rounded::to_float(rounded::multiply(radius, cosine)), rounded::to_float(rounded::multiply(radius, sine))};
}

}  // namespace hpcrl
