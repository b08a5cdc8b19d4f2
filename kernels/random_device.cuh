// The bodies of the random kernels: one thread draws one counter block of random.h.
#pragma once

#include <stdint.h>

#include "random.h"

namespace hpcrl {

__device__ __forceinline__ PhiloxWords counter_at(const uint32_t* counters, int64_t row) {
  return {{counters[4 * row], counters[4 * row + 1], counters[4 * row + 2], counters[4 * row + 3]}};
}

// Which draw a thread makes: block k of a row, of which each gives two numbers.
struct DrawPlace {
  int64_t row, block;
  bool is_inside;
};

__device__ __forceinline__ DrawPlace draw_place(int64_t n, int64_t count) {
  const int64_t blocks = (count + 1) / 2, index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  return {index / blocks, index % blocks, index < n * blocks};
}

__device__ __forceinline__ void philox_body(uint64_t seed, const uint32_t* counters, int64_t n, uint32_t* words) {
  const DrawPlace place = draw_place(n, 2);
  if (!place.is_inside) return;
  const PhiloxWords drawn = philox(seed, counter_at(counters, place.row));
  for (int i = 0; i < 4; ++i) words[4 * place.row + i] = drawn.word[i];
}

__device__ __forceinline__ void uniforms_body(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count,
                                              double* out) {
  const DrawPlace place = draw_place(n, count);
  if (!place.is_inside) return;
  const PhiloxWords drawn = philox_block(seed, counter_at(counters, place.row), static_cast<uint32_t>(place.block));
  double* pair = out + place.row * count + 2 * place.block;
  pair[0] = uniform_from_words(drawn.word[0], drawn.word[1]);
  if (2 * place.block + 1 < count) pair[1] = uniform_from_words(drawn.word[2], drawn.word[3]);
}

__device__ __forceinline__ void normals_body(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count,
                                             float* out) {
  const DrawPlace place = draw_place(n, count);
  if (!place.is_inside) return;
  const NormalPair drawn =
      normals_from_words(philox_block(seed, counter_at(counters, place.row), static_cast<uint32_t>(place.block)));
  float* pair = out + place.row * count + 2 * place.block;
  pair[0] = drawn.first;
  if (2 * place.block + 1 < count) pair[1] = drawn.second;
}

}  // namespace hpcrl
