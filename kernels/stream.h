// The limit that benchmarks/bench_recurrence.py compares with: two arrays in, two out, 16 bytes an element, almost no
// arithmetic.
#pragma once

#include <cstdint>

#include "math.h"

namespace hpcrl {

struct StreamArguments {
  const float* first;  // all four [num_lines * 16], aligned to 64 bytes
  const float* second;
  float* sums;
  float* differences;
  int64_t num_lines;
};

// How a stream is written and walked: benchmarks take the fastest of the four.
struct StreamForm {
  bool nontemporal;
  bool descending;
};

namespace generic {
void stream(const StreamArguments& arguments, StreamForm form);
}
namespace avx2 {
void stream(const StreamArguments& arguments, StreamForm form);
}
namespace avx512 {
void stream(const StreamArguments& arguments, StreamForm form);
}

// On num_threads threads, with the instruction set in use (isa.h).
void stream_cpu(const StreamArguments& arguments, StreamForm form, int num_threads);

template <class F, bool kNontemporal>
void stream_lines(const StreamArguments& arguments, bool descending) {
  constexpr int64_t kLine = 16;
  for (int64_t i = 0; i < arguments.num_lines; ++i) {
    const int64_t at = kLine * (descending ? arguments.num_lines - 1 - i : i);
    alignas(64) float sums[kLine], differences[kLine];
    float* sums_to = kNontemporal ? sums : arguments.sums + at;
    float* differences_to = kNontemporal ? differences : arguments.differences + at;
    for (int64_t lane = 0; lane < kLine; lane += F::kLanes) {
      const F a = F::load(arguments.first + at + lane), b = F::load(arguments.second + at + lane);
      multiply_add(F(0.5f), b, a).store(sums_to + lane);
      multiply_add(F(-0.5f), b, a).store(differences_to + lane);
    }
    if (kNontemporal) {
      F::stream_line(arguments.sums + at, sums);
      F::stream_line(arguments.differences + at, differences);
    }
  }
  F::stream_fence();
}

template <class F>
void stream_to(const StreamArguments& arguments, StreamForm form) {
  if (form.nontemporal) {
    stream_lines<F, true>(arguments, form.descending);
  } else {
    stream_lines<F, false>(arguments, form.descending);
  }
}

}  // namespace hpcrl
