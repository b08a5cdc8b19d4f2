// The body of the recurrence kernel: what one block does with one tile of packed steps.
//
// A batch is cut into tiles of equal size, wherever trajectories begin and end, so that a million short trajectories
// and one long trajectory are the same work. A block loads its tile once, scans it in registers, tells the tiles before
// it (in time) what its steps make of x behind them, learns the same from the tiles behind, and writes the outputs:
// every byte moves once. GAE: 16 bytes a step; TD(lambda) 12; reward-to-go 8; V-trace 20; Retrace 24; plus 12 a
// trajectory. A first pass for the tiles' spans alone would read the inputs twice (24 for GAE: at most 67 % of a device
// copy, as neither 16M nor 64M steps stay in any L2).
//
// Tiles are taken from the end of the batch by a ticket, so that a tile waits only for tiles that already run: it
// always ends, whatever order the hardware starts blocks in. The tree of joins is fixed by the tile's number alone
// (rows in a warp, warps in a tile, tiles in a group of 256, groups in a chain): the same bits on every run, unlike a
// look-back that takes whichever of aggregate and prefix is there. A tile whose last step ends a trajectory waits for
// nothing, and one that follows a border within the next 32 tiles reads one row of words, so short and medium
// trajectories see no chain. One long trajectory does: a hop a group = 524288 steps = 2 us at 4.3 TB/s, where a hop
// costs about 1 us.
//
// Prediction (not measured), of a device copy at 4.3 TB/s: launch and memset 3 us, first and last wave 3 us, 92 %
// between: 16M steps 84-88 % (68 us + 6), 64M steps 90 %; the 8 x 2M form loses 1-2 us more at either end.
#pragma once

#include "lane_steps.cuh"
#include "recurrence_plan.h"
#include "tile_spans.cuh"

namespace hpcrl {

template <class Shape>
struct TileMemory {                              // shared by a block
  alignas(16) unsigned ends[Shape::kSteps / 4];  // one byte a step: 1 where a trajectory ends
  float bootstraps[Shape::kSteps];               // only where a trajectory ends
  Span spans[Shape::kWarps], near, far[Shape::kWarps];
  double sums[Shape::kWarps][2];
  unsigned ticket;
  int64_t first_trajectory;
};

// ---- Where trajectories end ----------------------------------------------------------------------------------------

// The last trajectory that begins at or before `step`; the only one of them that can hold it. One warp, 32 pivots a
// round: four rounds for a million trajectories, while the tile's own loads are under way.
__device__ __forceinline__ int64_t find_trajectory(const int64_t* offsets, int64_t num_trajectories, int64_t step,
                                                   int lane) {
  int64_t low = 0, high = num_trajectories;  // it lies in [low, high)
  while (high - low > 1) {
    const int64_t width = (high - low + kWarpSize - 1) / kWarpSize;
    const int64_t pivot = low + lane * width;
    const unsigned begun = __ballot_sync(kAllLanes, pivot < high && offsets[pivot] <= step);
    const int last = begun != 0 ? kWarpSize - 1 - __clz(static_cast<int>(begun)) : 0;
    low += last * width;
    high = low + width < high ? low + width : high;
  }
  return low;
}

// Marks the last step of every trajectory that ends in the tile, and puts its bootstrap value there.
template <class Shape>
__device__ __forceinline__ void mark_ends(const RecurrenceArguments& arguments, int64_t tile_begin,
                                          TileMemory<Shape>& memory) {
  unsigned char* ends = reinterpret_cast<unsigned char*>(memory.ends);
  for (int64_t i = memory.first_trajectory + threadIdx.x; i < arguments.num_trajectories; i += Shape::kThreads) {
    const int64_t begin = arguments.offsets[i], end = arguments.offsets[i + 1];
    if (begin >= tile_begin + Shape::kSteps) break;
    const int64_t last = end - 1 - tile_begin;
    if (end > begin && last >= 0 && last < Shape::kSteps) {  // an empty trajectory has no last step
      ends[last] = 1;
      memory.bootstraps[last] = element_at(arguments.bootstrap_values, i);
    }
  }
}

// ---- The block -----------------------------------------------------------------------------------------------------

// x after the tile's last step, told by the tiles behind it: by the first 32 words, or, where no trajectory ends in
// those tiles, by all of the group. The whole block calls it.
template <class Shape>
__device__ __forceinline__ float wait_for_carry(const WordsBehind& behind, int64_t tile, int warp, int lane,
                                                TileMemory<Shape>& memory) {
  static_assert(Shape::kGroup <= 8 * kWarpSize && 8 % Shape::kWarps == 0);
  constexpr int kWordsPerLane = 8 / Shape::kWarps;
  if (warp == 0) {
    const Span near = wait_for_spans<1>(behind, tile + 1, lane);
    if (lane == 0) memory.near = near;
  }
  __syncthreads();
  if (memory.near.cut) return memory.near.map.add;
  const Span mine = wait_for_spans<kWordsPerLane>(behind, tile + 1 + kWarpSize * (1 + warp * kWordsPerLane), lane);
  if (lane == 0) memory.far[warp] = mine;
  __syncthreads();
  Span span = memory.near;
  for (int other = 0; other < Shape::kWarps; ++other) span = join(span, memory.far[other]);
  return span.map.add;  // cut: at the latest by the next group's word
}

// Tells the tiles before this one what it is, and returns x after its last step. `whole` on thread 0. The whole block.
template <class Shape>
__device__ __forceinline__ float exchange_with_tiles(const RecurrenceTask& task, int64_t tile, const Span& whole,
                                                     const Place<Shape>& place, TileMemory<Shape>& memory) {
  const TileWords words = {task.tiles, task.groups, task.num_tiles};
  const bool speaks_for_group = threadIdx.x == 0 && tile % Shape::kGroup == 0;
  if (threadIdx.x == 0) store_word(words.tiles + tile, word_of(whole));
  if (speaks_for_group && whole.cut) store_word(words.groups + tile / Shape::kGroup, word_of(whole));
  const bool is_closed = (memory.ends[Shape::kSteps / 4 - 1] >> 24) != 0;  // a trajectory ends on the tile's last step
  if (is_closed || tile + 1 == task.num_tiles) return 0.0f;
  const float carry = wait_for_carry(words_behind<Shape::kGroup>(words, tile), tile, place.warp, place.lane, memory);
  if (speaks_for_group && !whole.cut)
    store_word(words.groups + tile / Shape::kGroup, word_of({{whole(carry), 0.0f}, true}));
  return carry;
}

template <class Shape>
__device__ __forceinline__ void add_to_sums(const Place<Shape>& place, int at, const float (&four)[kVector],
                                            double (&sums)[2]) {
#pragma unroll
  for (int i = kVector - 1; i >= 0; --i) {
    if (!place.holds(at + i)) continue;
    const double summed = four[i];
    sums[0] += summed;
    sums[1] += summed * summed;
  }
}

// Runs back through a lane's steps, writes their outputs, and sums what the moments are of.
template <class Op, class Shape>
__device__ __forceinline__ void write_steps(const RecurrenceTask& task, const Op& op, const LaneSteps<Op, Shape>& steps,
                                            const TileMemory<Shape>& memory, const Place<Shape>& place,
                                            const Span (&after)[Shape::kRows], float x_after_warp, double (&sums)[2]) {
#pragma unroll
  for (int row = Shape::kRows - 1; row >= 0; --row) {
    const int at = place.of_row(row);
    const unsigned flags = memory.ends[at / 4];
    const float row_next = steps.next_value(row, place.lane), x = after[row](x_after_warp);
    float advantages[kVector], returns[kVector];
    if (flags == 0) {
      row_outputs(op, steps, row, row_next, RowEnds<false>{}, x, advantages, returns);
    } else {
      row_outputs(op, steps, row, row_next, RowEnds<true>{flags, memory.bootstraps + at}, x, advantages, returns);
    }
    if constexpr (Op::kWritesAdvantages) store_four(task.arguments.advantages, place, at, advantages);
    store_four(task.arguments.returns, place, at, returns);
    if (task.arguments.moments != nullptr) add_to_sums(place, at, Op::kWritesAdvantages ? advantages : returns, sums);
  }
}

// The tile's sums, lanes by a fixed tree, warps in order.
template <class Shape>
__device__ __forceinline__ void write_sums(const Place<Shape>& place, double (&sums)[2], TileMemory<Shape>& memory,
                                           double* out) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    sums[0] += __shfl_down_sync(kAllLanes, sums[0], distance);
    sums[1] += __shfl_down_sync(kAllLanes, sums[1], distance);
  }
  if (place.lane == 0) memory.sums[place.warp][0] = sums[0], memory.sums[place.warp][1] = sums[1];
  __syncthreads();
  if (threadIdx.x < 2) {
    double sum = 0.0;
    for (int warp = 0; warp < Shape::kWarps; ++warp) sum += memory.sums[warp][threadIdx.x];
    out[threadIdx.x] = sum;
  }
}

template <class Op, class Shape>
__device__ __forceinline__ void recurrence_block(const RecurrenceTask& task, const Op& op, TileMemory<Shape>& memory) {
  if (threadIdx.x == 0) memory.ticket = atomicAdd(task.ticket, 1u) + 1u;
#pragma unroll
  for (int row = 0; row < Shape::kRows; ++row) memory.ends[row * Shape::kThreads + threadIdx.x] = 0;
  __syncthreads();
  const int64_t tile = task.num_tiles - 1 - memory.ticket;
  const Place<Shape> place = place_of<Shape>(task, tile);

  LaneSteps<Op, Shape> steps;
  steps.load(task.arguments, place);
  if (place.warp == 0) {
    const RecurrenceArguments& arguments = task.arguments;
    const int64_t first_step = place.tile_begin > 0 ? place.tile_begin : 0;
    const int64_t first = find_trajectory(arguments.offsets, arguments.num_trajectories, first_step, place.lane);
    if (place.lane == 0) memory.first_trajectory = first;
  }
  __syncthreads();
  mark_ends(task.arguments, place.tile_begin, memory);
  __syncthreads();

  Span after[Shape::kRows], rows[Shape::kRows], warp_span = empty_span();
#pragma unroll
  for (int row = 0; row < Shape::kRows; ++row) {
    const unsigned flags = memory.ends[place.of_row(row) / 4];
    const float row_next = steps.next_value(row, place.lane);
    after[row] = flags == 0
                     ? row_span(op, steps, row, row_next, RowEnds<false>{})
                     : row_span(op, steps, row, row_next, RowEnds<true>{flags, memory.bootstraps + place.of_row(row)});
  }
  join_lanes(after, rows, place.lane);
#pragma unroll
  for (int row = Shape::kRows - 1; row >= 0; --row) {
    after[row] = join(after[row], warp_span);  // from the lane's four steps of the row to the warp's last step
    warp_span = join(rows[row], warp_span);
  }
  if (place.lane == 0) memory.spans[place.warp] = warp_span;
  __syncthreads();
  Span later_warps = empty_span();
#pragma unroll
  for (int other = Shape::kWarps - 1; other > 0; --other) {
    if (other > place.warp) later_warps = join(memory.spans[other], later_warps);
  }

  const float carry = exchange_with_tiles(task, tile, join(warp_span, later_warps), place, memory);
  double sums[2] = {0.0, 0.0};
  write_steps(task, op, steps, memory, place, after, later_warps(carry), sums);
  if (task.arguments.moments != nullptr) write_sums(place, sums, memory, task.sums + 2 * tile);
}

// ---- The moments ---------------------------------------------------------------------------------------------------

constexpr int kMomentsThreads = 512;

struct MomentsMemory {
  double sums[kMomentsThreads][2];
};

// (n, sum, sum of squares) from the tiles' sums by one block: each thread takes every kMomentsThreads-th tile, then a
// tree.
__device__ __forceinline__ void moments_block(const RecurrenceTask& task, MomentsMemory& memory) {
  double sum = 0.0, squares = 0.0;
  for (int64_t tile = threadIdx.x; tile < task.num_tiles; tile += kMomentsThreads) {
    sum += task.sums[2 * tile];
    squares += task.sums[2 * tile + 1];
  }
  memory.sums[threadIdx.x][0] = sum, memory.sums[threadIdx.x][1] = squares;
  for (unsigned half = kMomentsThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      memory.sums[threadIdx.x][0] += memory.sums[threadIdx.x + half][0];
      memory.sums[threadIdx.x][1] += memory.sums[threadIdx.x + half][1];
    }
  }
  if (threadIdx.x == 0) {
    task.arguments.moments[0] = static_cast<double>(task.arguments.num_steps);
    task.arguments.moments[1] = memory.sums[0][0];
    task.arguments.moments[2] = memory.sums[0][1];
  }
}

}  // namespace hpcrl
