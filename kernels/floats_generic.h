// A vector of one float: with it the vector walk of recurrence.h becomes the plain loop, the oracle of the others.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "math.h"

namespace hpcrl::generic {

struct Floats {
  static constexpr int kLanes = 1;
  float lane;

  Floats() = default;
  explicit Floats(float all) : lane(all) {}

  static Floats load(const void* from) {
    Floats v;
    std::memcpy(&v.lane, from, sizeof v.lane);
    return v;
  }
  static Floats load_bf16(const void* from) {
    uint16_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return Floats(bf16_to_float(bits));
  }
  // The ..._upper forms touch the last n lanes only and give 0 in the others.
  static Floats load_upper(const void* from, int) { return load(from); }
  static Floats load_bf16_upper(const void* from, int) { return load_bf16(from); }
  void store(void* to) const { std::memcpy(to, &lane, sizeof lane); }
  // Lanes `first` to `end` - 1 only.
  void store_lanes(float* to, int first, int end) const {
    if (first < end) store(to);
  }
  Floats upper(int) const { return *this; }

  float first() const { return lane; }
  // Lane i takes lane i + kBy; the uppermost take the lowest of `fill`.
  template <int kBy>
  Floats later(Floats fill) const {
    return fill;
  }
  // How a vector is turned upwards by 1 to kLanes lanes, those at the top coming in again at the bottom.
  struct Turn {
    Turn() = default;
    explicit Turn(int) {}
  };
  Floats turned(const Turn&) const { return *this; }
  // This one, with the lowest lanes of a vector that was turned: as many as it was turned by.
  Floats with_lowest(Floats turned, const Turn&) const { return turned; }
  // Past the caches; `to` is aligned to the vector's size. Not so here: single floats of two outputs in turn leave the
  // CPU's write-combining buffers before a line is whole, forty times slower.
  void stream(float* to) const { store(to); }
  // 16 floats past the caches; `to` is aligned to 64 bytes.
  static void stream_line(float* to, const float* from) {
#if defined(__SSE2__)
    for (int i = 0; i < 16; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
#else
    std::memcpy(to, from, 64);
#endif
  }
  static void stream_fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
  }
};

inline Floats operator+(Floats a, Floats b) {
  return Floats(a.lane + b.lane);
}
inline Floats operator-(Floats a, Floats b) {
  return Floats(a.lane - b.lane);
}
inline Floats operator*(Floats a, Floats b) {
  return Floats(a.lane * b.lane);
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return Floats(hpcrl::multiply_add(a.lane, b.lane, c.lane));
}
inline Floats lesser(Floats limit, Floats value) {
  return Floats(hpcrl::lesser(limit.lane, value.lane));
}

struct Sums {
  double sum = 0.0, squares = 0.0;

  void add(Floats v) {
    const double number = v.lane;
    sum += number;
    squares += number * number;
  }
  double total() const { return sum; }
  double total_squares() const { return squares; }
};

}  // namespace hpcrl::generic
