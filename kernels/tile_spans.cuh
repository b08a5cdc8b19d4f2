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
// One word written by one thread and read by others while the kernel runs. All that is told lies in the word itself, so that
// no other access needs an order: relaxed is enough, and the L1 cache is passed by.
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
// run is map.add whatever comes after it. The flag, not a zero factor: 0 * NaN would let a NaN into the next trajectory.
struct Span {
  Affine<float> map;
  bool cut;

  __device__ __forceinline__ float operator()(float x_after) const { return cut ? map.add : map(x_after); }
};

__device__ __forceinline__ Span empty_span() { return {{0.0f, 1.0f}, false}; }

__device__ __forceinline__ Span join(const Span& earlier, const Span& later) {
  if (earlier.cut) return earlier;
  return {compose(earlier.map, later.map), later.cut};
}

// ---- Within a warp -------------------------------------------------------------------------------------------------

// The map of this lane's span and all later ones up to the first cut. `cuts`: ballot of the lanes whose span is cut.
__device__ __forceinline__ Affine<float> scan_from_end(Affine<float> map, unsigned cuts, int lane) {
  const unsigned from_here = cuts >> lane;
  const int reach = from_here != 0 ? __ffs(static_cast<int>(from_here)) - 1 : kWarpSize;  // lane + reach is the first cut
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const Affine<float> later = {__shfl_down_sync(kAllLanes, map.add, distance),
                                 __shfl_down_sync(kAllLanes, map.mul, distance)};
    if (distance <= reach && lane + distance < kWarpSize) map = compose(map, later);
  }
  return map;
}

struct WarpSpans {
  Span after;  // of the lanes after this one
  Span whole;  // of all lanes
};

__device__ __forceinline__ WarpSpans join_lanes(const Span& mine, int lane) {
  const unsigned cuts = __ballot_sync(kAllLanes, mine.cut);
  const Affine<float> inclusive = scan_from_end(mine.map, cuts, lane);
  const Affine<float> next = {__shfl_down_sync(kAllLanes, inclusive.add, 1),
                              __shfl_down_sync(kAllLanes, inclusive.mul, 1)};
  const Affine<float> first = {__shfl_sync(kAllLanes, inclusive.add, 0), __shfl_sync(kAllLanes, inclusive.mul, 0)};
  const bool is_last = lane == kWarpSize - 1;
  return {is_last ? empty_span() : Span{next, (cuts >> lane) > 1u}, Span{first, cuts != 0}};
}

// ---- Between tiles -------------------------------------------------------------------------------------------------

// A span in one word: mul in the upper half, add in the lower. A memset to 0xFF says "not yet published". Both marks are
// NaNs that no arithmetic makes; a NaN that comes from the caller's data is made the usual one.
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

// The words behind a tile, in time: those of the later tiles of its group, then the next group's, which ends every search.
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
      mine.cut = mine.cut && ready;
      return join_lanes(mine, lane).whole;
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
