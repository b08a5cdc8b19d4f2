// The steps of one tile that a lane holds: where they lie, how they come in and go out, and what an op makes of them.
#pragma once

#include "recurrence_plan.h"
#include "tile_spans.cuh"

namespace hpcrl {

// ---- Where they lie ------------------------------------------------------------------------------------------------

// Where a lane's steps lie, counted within the tile. The first and the last tile hold places without a step.
template <class Shape>
struct Place {
  int64_t tile_begin;  // may lie before step 0, see Alignment
  int64_t num_steps;
  bool is_vector;  // every place holds a step, and the columns lie on 16-byte borders
  int warp, lane;

  __device__ __forceinline__ int of_row(int row) const {
    return warp * Shape::kWarpSteps + row * Shape::kRowSteps + lane * kVector;
  }
  __device__ __forceinline__ bool holds(int place) const {
    return tile_begin + place >= 0 && tile_begin + place < num_steps;
  }
};

template <class Shape>
__device__ __forceinline__ Place<Shape> place_of(const RecurrenceTask& task, int64_t tile) {
  const int64_t begin = tile * Shape::kSteps - task.shift, num_steps = task.arguments.num_steps;
  const bool is_whole = begin >= 0 && begin + Shape::kSteps <= num_steps;
  return {begin, num_steps, task.is_vector && is_whole, static_cast<int>(threadIdx.x) / kWarpSize,
          static_cast<int>(threadIdx.x) % kWarpSize};
}

// ---- Reading and writing four steps --------------------------------------------------------------------------------

__device__ __forceinline__ float element_at(const Column& column, int64_t index) {
  if (column.element == Element::kFloat32) return static_cast<const float*>(column.data)[index];
  return bf16_to_float(static_cast<const unsigned short*>(column.data)[index]);
}

// All rows of one column. bfloat16 words come as they are, two to a register, so that no conversion waits for a load
// before the next column's loads are under way; `widen_rows` follows when all are.
template <class Shape>
__device__ __forceinline__ void load_rows(const Column& column, const Place<Shape>& place,
                                          float (&rows)[Shape::kRows][kVector]) {
  const float* floats = static_cast<const float*>(column.data) + place.tile_begin;
  const unsigned short* halves = static_cast<const unsigned short*>(column.data) + place.tile_begin;
  if (!place.is_vector) {
#pragma unroll
    for (int row = 0; row < Shape::kRows; ++row) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const int at = place.of_row(row) + i;
        rows[row][i] = 0.0f;
        if (!place.holds(at)) continue;
        rows[row][i] = column.element == Element::kFloat32 ? floats[at] : bf16_to_float(halves[at]);
      }
    }
  } else if (column.element == Element::kFloat32) {
#pragma unroll
    for (int row = 0; row < Shape::kRows; ++row) {
      const float4 four = __ldcs(reinterpret_cast<const float4*>(floats + place.of_row(row)));
      rows[row][0] = four.x, rows[row][1] = four.y, rows[row][2] = four.z, rows[row][3] = four.w;
    }
  } else {
#pragma unroll
    for (int row = 0; row < Shape::kRows; ++row) {
      const uint2 four = __ldcs(reinterpret_cast<const uint2*>(halves + place.of_row(row)));
      rows[row][0] = __uint_as_float(four.x), rows[row][1] = __uint_as_float(four.y);
    }
  }
}

template <class Shape>
__device__ __forceinline__ void widen_rows(const Column& column, const Place<Shape>& place,
                                           float (&rows)[Shape::kRows][kVector]) {
  if (column.element == Element::kFloat32 || !place.is_vector) return;
#pragma unroll
  for (int row = 0; row < Shape::kRows; ++row) {
    const unsigned low = __float_as_uint(rows[row][0]), high = __float_as_uint(rows[row][1]);
    rows[row][0] = __uint_as_float(low << 16), rows[row][1] = __uint_as_float(low & 0xFFFF0000u);
    rows[row][2] = __uint_as_float(high << 16), rows[row][3] = __uint_as_float(high & 0xFFFF0000u);
  }
}

template <class Shape>
__device__ __forceinline__ void store_four(float* column, const Place<Shape>& place, int at,
                                           const float (&four)[kVector]) {
  float* out = column + place.tile_begin;
  if (place.is_vector) {
    __stcs(reinterpret_cast<float4*>(out + at), float4{four[0], four[1], four[2], four[3]});
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (place.holds(at + i)) out[at + i] = four[i];
  }
}

// ---- A lane's steps ------------------------------------------------------------------------------------------------

// The ends among a lane's four steps of one row. Rows without any, most of them, go without the checks.
template <bool kHasEnds>
struct RowEnds {
  unsigned flags;           // one byte a step
  const float* bootstraps;  // of each step that is an end

  __device__ __forceinline__ bool is_end(int i) const { return kHasEnds && (flags >> (8 * i) & 1u) != 0; }
};

template <class Op, class Shape>
struct LaneSteps {
  static constexpr int kValues = 1, kActionValues = kValues + Op::kReadsValues;
  static constexpr int kRatios = kActionValues + Op::kReadsActionValues;

  float columns[kNumColumns<Op>][Shape::kRows][kVector];
  float value_behind;  // V after the warp's last step, on lane 0

  __device__ __forceinline__ void load(const RecurrenceArguments& arguments, const Place<Shape>& place) {
    load_rows(arguments.rewards, place, columns[0]);
    if constexpr (Op::kReadsValues) load_rows(arguments.values, place, columns[kValues]);
    if constexpr (Op::kReadsActionValues) load_rows(arguments.action_values, place, columns[kActionValues]);
    if constexpr (Op::kReadsRatios) load_rows(arguments.ratios, place, columns[kRatios]);
    value_behind = 0.0f;
    if constexpr (Op::kReadsValues) {
      const int64_t step = place.tile_begin + (place.warp + 1) * Shape::kWarpSteps;
      if (place.lane == 0 && step < arguments.num_steps) value_behind = element_at(arguments.values, step);
    }
    widen_rows(arguments.rewards, place, columns[0]);
    if constexpr (Op::kReadsValues) widen_rows(arguments.values, place, columns[kValues]);
    if constexpr (Op::kReadsActionValues) widen_rows(arguments.action_values, place, columns[kActionValues]);
    if constexpr (Op::kReadsRatios) widen_rows(arguments.ratios, place, columns[kRatios]);
  }

  // V after the lane's four steps: from the lane after this one; for the last lane, from lane 0 of the next row.
  __device__ __forceinline__ float next_value(int row, int lane) const {
    if constexpr (!Op::kReadsValues) return 0.0f;
    const float next_row = row + 1 < Shape::kRows ? columns[kValues][(row + 1) % Shape::kRows][0] : value_behind;
    return __shfl_sync(kAllLanes, lane == 0 ? next_row : columns[kValues][row][0], (lane + 1) % kWarpSize);
  }

  // Step i of a row. `row_next`: V after the row's four steps.
  template <bool kHasEnds>
  __device__ __forceinline__ StepInputs<float> inputs(int row, int i, float row_next,
                                                      const RowEnds<kHasEnds>& ends) const {
    StepInputs<float> in = {};
    in.reward = columns[0][row][i];
    if constexpr (Op::kReadsValues) {
      in.value = columns[kValues][row][i];
      in.next_value = i + 1 < kVector ? columns[kValues][row][(i + 1) % kVector] : row_next;
      if (ends.is_end(i)) in.next_value = ends.bootstraps[i];
    }
    if constexpr (Op::kReadsActionValues) in.action_value = columns[kActionValues][row][i];
    if constexpr (Op::kReadsRatios) in.ratio = columns[kRatios][row][i];
    return in;
  }
};

// What a lane's four steps of a row make of x behind them.
template <bool kHasEnds, class Op, class Shape>
__device__ __forceinline__ Span row_span(const Op& op, const LaneSteps<Op, Shape>& steps, int row, float row_next,
                                         const RowEnds<kHasEnds>& ends) {
  Span span = empty_span();
#pragma unroll
  for (int i = kVector - 1; i >= 0; --i) {
    const Affine<float> map = op.map(steps.inputs(row, i, row_next, ends));
    if (ends.is_end(i)) {
      span = {{map(op.start(ends.bootstraps[i])), 0.0f}, true};
    } else {
      span.map = compose(map, span.map);
    }
  }
  return span;
}

// x before the row's four steps, from x behind them, and what they write.
template <bool kHasEnds, class Op, class Shape>
__device__ __forceinline__ void row_outputs(const Op& op, const LaneSteps<Op, Shape>& steps, int row, float row_next,
                                            const RowEnds<kHasEnds>& ends, float x, float (&advantages)[kVector],
                                            float (&returns)[kVector]) {
#pragma unroll
  for (int i = kVector - 1; i >= 0; --i) {
    const StepInputs<float> in = steps.inputs(row, i, row_next, ends);
    const float next = ends.is_end(i) ? op.start(ends.bootstraps[i]) : x;
    x = op.map(in)(next);
    const StepOutputs<float> out = op.outputs(in, x, next);
    advantages[i] = out.advantage, returns[i] = out.target;
  }
}

}  // namespace hpcrl
