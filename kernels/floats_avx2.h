// Eight floats. Included only by the translation unit compiled for AVX2 and FMA; members as in floats_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "math.h"

namespace hpcrl::avx2 {

// Loading 8 words from kUpperMask + n gives a mask of the last n lanes.
alignas(32) inline constexpr int32_t kUpperMask[16] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};

inline __m256i upper_mask(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kUpperMask + n));
}

struct Floats {
  static constexpr int kLanes = 8;
  __m256 lanes;

  Floats() = default;
  explicit Floats(float all) : lanes(_mm256_set1_ps(all)) {}
  explicit Floats(__m256 v) : lanes(v) {}

  static Floats load(const void* from) { return Floats(_mm256_loadu_ps(static_cast<const float*>(from))); }
  static Floats load_upper(const void* from, int n) {
    return Floats(_mm256_maskload_ps(static_cast<const float*>(from), upper_mask(n)));
  }
  static Floats widen(__m128i bits) {
    return Floats(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
  }
  static Floats load_bf16(const void* from) { return widen(_mm_loadu_si128(static_cast<const __m128i*>(from))); }
  static Floats load_bf16_upper(const void* from, int n) {
    alignas(16) uint16_t bits[8] = {};
    std::memcpy(bits + 8 - n, static_cast<const char*>(from) + 2 * (8 - n), 2 * static_cast<size_t>(n));
    return widen(_mm_load_si128(reinterpret_cast<const __m128i*>(bits)));
  }
  void store(void* to) const { _mm256_storeu_ps(static_cast<float*>(to), lanes); }
  void store_lanes(float* to, int first, int end) const {
    const __m256i wanted = _mm256_andnot_si256(below(first), below(end));
    _mm256_maskstore_ps(to, wanted, lanes);
  }
  Floats upper(int n) const { return Floats(_mm256_and_ps(lanes, _mm256_castsi256_ps(upper_mask(n)))); }

  float first() const { return _mm256_cvtss_f32(lanes); }
  template <int kBy>
  Floats later(Floats fill) const {
    const __m256i self = _mm256_castps_si256(lanes);
    const __m256i middle = _mm256_permute2x128_si256(self, _mm256_castps_si256(fill.lanes), 0x21);
    if constexpr (kBy == 4) {
      return Floats(_mm256_castsi256_ps(middle));
    } else {
      return Floats(_mm256_castsi256_ps(_mm256_alignr_epi8(middle, self, 4 * kBy)));
    }
  }
  // A mask of the lowest n lanes.
  static __m256i below(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  struct Turn {
    __m256i from, wrapped;

    Turn() = default;
    explicit Turn(int by)
        : from(_mm256_sub_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(by))),
          wrapped(below(by)) {}
  };
  Floats turned(const Turn& turn) const { return Floats(_mm256_permutevar8x32_ps(lanes, turn.from)); }
  Floats with_lowest(Floats turned, const Turn& turn) const {
    return Floats(_mm256_blendv_ps(lanes, turned.lanes, _mm256_castsi256_ps(turn.wrapped)));
  }
  void stream(float* to) const { _mm256_stream_ps(to, lanes); }
  static void stream_line(float* to, const float* from) {
    _mm256_stream_ps(to, _mm256_loadu_ps(from));
    _mm256_stream_ps(to + 8, _mm256_loadu_ps(from + 8));
  }
  static void stream_fence() { _mm_sfence(); }
};

inline Floats operator+(Floats a, Floats b) {
  return Floats(_mm256_add_ps(a.lanes, b.lanes));
}
inline Floats operator-(Floats a, Floats b) {
  return Floats(_mm256_sub_ps(a.lanes, b.lanes));
}
inline Floats operator*(Floats a, Floats b) {
  return Floats(_mm256_mul_ps(a.lanes, b.lanes));
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return Floats(_mm256_fmadd_ps(a.lanes, b.lanes, c.lanes));
}
// The instruction gives its second operand when either is NaN.
inline Floats lesser(Floats limit, Floats value) {
  return Floats(_mm256_min_ps(limit.lanes, value.lanes));
}

struct Sums {
  __m256d sum = _mm256_setzero_pd(), squares = _mm256_setzero_pd();

  void add_half(__m128 half) {
    const __m256d wide = _mm256_cvtps_pd(half);
    sum = _mm256_add_pd(sum, wide);
    squares = _mm256_fmadd_pd(wide, wide, squares);
  }
  void add(Floats v) {
    add_half(_mm256_castps256_ps128(v.lanes));
    add_half(_mm256_extractf128_ps(v.lanes, 1));
  }
  static double across(__m256d v) {
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, v);
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
  double total() const { return across(sum); }
  double total_squares() const { return across(squares); }
};

}  // namespace hpcrl::avx2
