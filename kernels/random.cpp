// Counted random numbers on the CPU: loops over random.h.

#include "random.h"

#include "ops.h"

namespace hpcrl {
namespace {

PhiloxWords load_counter(const uint32_t* counters, int64_t row) {
  return {{counters[4 * row], counters[4 * row + 1], counters[4 * row + 2], counters[4 * row + 3]}};
}

}  // namespace

void philox_cpu(uint64_t seed, const uint32_t* counters, int64_t n, uint32_t* words) {
  for (int64_t row = 0; row < n; ++row) {
    const PhiloxWords drawn = philox(seed, load_counter(counters, row));
    for (int i = 0; i < 4; ++i) words[4 * row + i] = drawn.word[i];
  }
}

void uniforms_cpu(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, double* out) {
  for (int64_t row = 0; row < n; ++row, out += count) {
    for (int64_t i = 0; i < count; i += 2) {
      const PhiloxWords drawn = philox_block(seed, load_counter(counters, row), static_cast<uint32_t>(i / 2));
      out[i] = uniform_from_words(drawn.word[0], drawn.word[1]);
      if (i + 1 < count) out[i + 1] = uniform_from_words(drawn.word[2], drawn.word[3]);
    }
  }
}

void normals_cpu(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, float* out) {
  for (int64_t row = 0; row < n; ++row, out += count) {
    for (int64_t i = 0; i < count; i += 2) {
      const PhiloxWords drawn = philox_block(seed, load_counter(counters, row), static_cast<uint32_t>(i / 2));
      const NormalPair pair = normals_from_words(drawn);
      out[i] = pair.first;
      if (i + 1 < count) out[i + 1] = pair.second;
    }
  }
}

void permutation_cpu(uint64_t seed, const uint32_t counter[4], int64_t n, int64_t* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = i;
  PhiloxWords drawn{};
  for (int64_t i = n - 1, draw = 0; i > 0; --i, ++draw) {
    if (draw % 2 == 0) drawn = philox_block(seed, load_counter(counter, 0), static_cast<uint32_t>(draw / 2));
    const int half = 2 * static_cast<int>(draw % 2);
    const int64_t j = bounded_from_words(drawn.word[half], drawn.word[half + 1], static_cast<uint32_t>(i + 1));
    const int64_t kept = out[i];
    out[i] = out[j];
    out[j] = kept;
  }
}

}  // namespace hpcrl
