// Sixteen floats. Included only by the translation unit compiled for AVX-512 (F, BW, VL, DQ); members as in
// floats_generic.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "math.h"

namespace hpcrl::avx512 {

inline __mmask16 upper_mask(int n) {
  return static_cast<__mmask16>(0xFFFF0000u >> n);
}

struct Floats {
  static constexpr int kLanes = 16;
  __m512 lanes;

  Floats() = default;
  explicit Floats(float all) : lanes(_mm512_set1_ps(all)) {}
  explicit Floats(__m512 v) : lanes(v) {}

  static Floats load(const void* from) { return Floats(_mm512_loadu_ps(from)); }
  static Floats load_upper(const void* from, int n) { return Floats(_mm512_maskz_loadu_ps(upper_mask(n), from)); }
  static Floats widen(__m256i bits) {
    return Floats(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
  }
  static Floats load_bf16(const void* from) { return widen(_mm256_loadu_si256(static_cast<const __m256i*>(from))); }
  static Floats load_bf16_upper(const void* from, int n) {
    return widen(_mm256_maskz_loadu_epi16(upper_mask(n), from));
  }
  void store(void* to) const { _mm512_storeu_ps(to, lanes); }
  void store_lanes(float* to, int first, int end) const {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << end) - (1u << first)), lanes);
  }
  Floats upper(int n) const { return Floats(_mm512_maskz_mov_ps(upper_mask(n), lanes)); }

  float first() const { return _mm512_cvtss_f32(lanes); }
  template <int kBy>
  Floats later(Floats fill) const {
    return Floats(
        _mm512_castsi512_ps(_mm512_alignr_epi32(_mm512_castps_si512(fill.lanes), _mm512_castps_si512(lanes), kBy)));
  }
  struct Turn {
    __m512i from;
    __mmask16 wrapped;

    Turn() = default;
    explicit Turn(int by)
        : from(_mm512_sub_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                _mm512_set1_epi32(by))),
          wrapped(static_cast<__mmask16>((1u << by) - 1u)) {}
  };
  Floats turned(const Turn& turn) const { return Floats(_mm512_permutexvar_ps(turn.from, lanes)); }
  Floats with_lowest(Floats turned, const Turn& turn) const {
    return Floats(_mm512_mask_mov_ps(lanes, turn.wrapped, turned.lanes));
  }
  void stream(float* to) const { _mm512_stream_ps(to, lanes); }
  static void stream_line(float* to, const float* from) { _mm512_stream_ps(to, _mm512_loadu_ps(from)); }
  static void stream_fence() { _mm_sfence(); }
};

inline Floats operator+(Floats a, Floats b) {
  return Floats(_mm512_add_ps(a.lanes, b.lanes));
}
inline Floats operator-(Floats a, Floats b) {
  return Floats(_mm512_sub_ps(a.lanes, b.lanes));
}
inline Floats operator*(Floats a, Floats b) {
  return Floats(_mm512_mul_ps(a.lanes, b.lanes));
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return Floats(_mm512_fmadd_ps(a.lanes, b.lanes, c.lanes));
}
// The instruction gives its second operand when either is NaN.
inline Floats lesser(Floats limit, Floats value) {
  return Floats(_mm512_min_ps(limit.lanes, value.lanes));
}

struct Sums {
  __m512d sum = _mm512_setzero_pd(), squares = _mm512_setzero_pd();

  void add_half(__m256 half) {
    const __m512d wide = _mm512_cvtps_pd(half);
    sum = _mm512_add_pd(sum, wide);
    squares = _mm512_fmadd_pd(wide, wide, squares);
  }
  void add(Floats v) {
    add_half(_mm512_castps512_ps256(v.lanes));
    add_half(_mm512_extractf32x8_ps(v.lanes, 1));
  }
  static double across(__m512d v) {
    alignas(64) double lanes[8];
    _mm512_store_pd(lanes, v);
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  }
  double total() const { return across(sum); }
  double total_squares() const { return across(squares); }
};

}  // namespace hpcrl::avx512
