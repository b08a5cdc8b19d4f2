// Spans of steps, how lanes and tiles join them, and how a tile learns x after its last step from the tiles behind it.
//
// Compiled by nvcc, and by g++ under tests/kernels/emulation.h, which then gives the names below that begin with __ and
// load_word and store_word.
#pragma once

#include <stdint.h>

#include "math.h"

namespace hpcrl {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

#if defined(__CUDACC__)
// One word written by one thread and read by others while the kernel runs. All that is told lies in the word itself, so
// that no other access needs an order: relaxed is enough, and the L1 cache is passed by.
__device__ __forceinline__ uint64_t load_word(const uint64_t* address) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(address) : "memory");
  return word;
}
__device__ __forceinline__ void store_word(uint64_t* address, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(word) : "memory");
}
#endif

// What a run of consecutive steps makes of x after its last step. `cut`: a trajectory ends inside, so that x before the
// run is map.add whatever comes after it. The flag, not a zero factor: 0 * NaN would let a NaN into the next
// trajectory.
struct Span {
  Affine<float> map;
  bool cut;

  __device__ __forceinline__ float operator()(float x_after) const { return cut ? map.add : map(x_after); }
};

__device__ __forceinline__ Span empty_span() {
  return {{0.0f, 1.0f}, false};
}

__device__ __forceinline__ Span join(const Span& earlier, const Span& later) {
  if (earlier.cut) return earlier;
  return {compose(earlier.map, later.map), later.cut};
}

// ---- Within a warp -------------------------------------------------------------------------------------------------

// Joins each of kRows rows of 32 spans, one a lane. spans[row] becomes the span of the lanes after this one, and
// whole[row] that of all lanes. The rows go side by side, so that their shuffles hide each other's latency.
template <int kRows>
__device__ __forceinline__ void join_lanes(Span (&spans)[kRows], Span (&whole)[kRows], int lane) {
  unsigned cuts[kRows];
#pragma unroll
  for (int row = 0; row < kRows; ++row) cuts[row] = __ballot_sync(kAllLanes, spans[row].cut);
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const unsigned between = (1u << distance) - 1u;  // a cut there, or on this lane, hides what comes later
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      Affine<float>& map = spans[row].map;
      const Affine<float> later = {__shfl_down_sync(kAllLanes, map.add, distance),
                                   __shfl_down_sync(kAllLanes, map.mul, distance)};
      if (lane + distance < kWarpSize && (cuts[row] >> lane & between) == 0) map = compose(map, later);
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const Affine<float> map = spans[row].map;
    whole[row] = {{__shfl_sync(kAllLanes, map.add, 0), __shfl_sync(kAllLanes, map.mul, 0)}, cuts[row] != 0};
    const Affine<float> next = {__shfl_down_sync(kAllLanes, map.add, 1), __shfl_down_sync(kAllLanes, map.mul, 1)};
    spans[row] = lane == kWarpSize - 1 ? empty_span() : Span{next, (cuts[row] >> lane) > 1u};
  }
}

// ---- Between tiles -------------------------------------------------------------------------------------------------

// A span in one word: mul in the upper half, add in the lower. A memset to 0xFF says "not yet published". Both marks
// are NaNs that no arithmetic makes; a NaN that comes from the caller's data is made the usual one.
constexpr uint64_t kUnpublished = ~uint64_t{0};
constexpr unsigned kCutMark = 0xFFFFFFFEu;
constexpr unsigned kQuietNaN = 0x7FC00000u;

__device__ __forceinline__ uint64_t word_of(const Span& span) {
  const unsigned mul = span.map.mul == span.map.mul ? __float_as_uint(span.map.mul) : kQuietNaN;
  return static_cast<uint64_t>(span.cut ? kCutMark : mul) << 32 | __float_as_uint(span.map.add);
}

__device__ __forceinline__ Span span_of(uint64_t word) {
  const unsigned mul = static_cast<unsigned>(word >> 32);
  return {{__uint_as_float(static_cast<unsigned>(word)), __uint_as_float(mul)}, mul == kCutMark};
}

// The words of all tiles, and for each group of tiles the constant span of x before its first step.
struct TileWords {
  uint64_t* tiles;   // [num_tiles]
  uint64_t* groups;  // [(num_tiles - 1) / group + 1]
  int64_t num_tiles;
};

// The words behind a tile, in time: those of the later tiles of its group, then the next group's, which ends every
// search.
struct WordsBehind {
  const TileWords& words;
  int64_t group_end;  // first tile of the next group, or num_tiles
  int64_t next_group;

  __device__ __forceinline__ uint64_t operator()(int64_t tile) const {
    if (tile < group_end) return load_word(words.tiles + tile);
    if (group_end < words.num_tiles) return load_word(words.groups + next_group);
    return static_cast<uint64_t>(kCutMark) << 32;  // behind the last step: x = 0, read only if offsets fall short of it
  }
};

// Waits for kPerLane * 32 words from `first` on, or for as many as the first cut needs, and joins them, always in this
// order: which words are there first changes when the answer comes, never its bits. All lanes of one warp call it.
template <int kPerLane>
__device__ __forceinline__ Span wait_for_spans(const WordsBehind& behind, int64_t first, int lane) {
  for (;;) {
    uint64_t words[kPerLane];
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) words[i] = behind(first + lane * kPerLane + i);  // all in flight at once
    Span mine = empty_span();
    bool ready = true;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (!mine.cut && ready) {
        ready = words[i] != kUnpublished;
        if (ready) mine = join(mine, span_of(words[i]));
      }
    }
    const unsigned waiting = __ballot_sync(kAllLanes, !ready);
    const unsigned cuts = __ballot_sync(kAllLanes, ready && mine.cut);
    // A lane still waiting behind the first cut does not count: the lowest bit set of the two decides.
    if (waiting == 0 || (cuts != 0 && __ffs(static_cast<int>(cuts)) < __ffs(static_cast<int>(waiting)))) {
      Span spans[1] = {{mine.map, mine.cut && ready}}, whole[1];
      join_lanes(spans, whole, lane);
      return whole[0];
    }
    __nanosleep(32);
  }
}

template <int kGroup>
__device__ __forceinline__ WordsBehind words_behind(const TileWords& words, int64_t tile) {
  const int64_t next_group = tile / kGroup + 1, group_end = next_group * kGroup;
  return {words, group_end < words.num_tiles ? group_end : words.num_tiles, next_group};
}

}  // namespace hpcrl
