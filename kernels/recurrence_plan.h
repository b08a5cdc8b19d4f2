// How a packed batch is divided into tiles, and what lies where in the workspace. Host only; no CUDA.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "ops.h"

namespace hpcrl {

constexpr int kVector = 4;  // consecutive steps a lane reads at once: 16 bytes of float32, 8 bytes of bfloat16

// The shape of a tile: kThreads threads, each with kVector steps in kRows rows. kGroup: tiles that look at each other.
template <int kThreads_, int kRows_, int kGroup_>
struct TileShape {
  static constexpr int kThreads = kThreads_, kRows = kRows_, kGroup = kGroup_;
  static constexpr int kWarps = kThreads / 32, kRowSteps = 32 * kVector, kWarpSteps = kRows * kRowSteps;
  static constexpr int kSteps = kWarps * kWarpSteps;
  static_assert(kThreads % 32 == 0);
};

// Columns that a lane holds in registers.
template <class Op>
constexpr int kNumColumns = 1 + Op::kReadsValues + Op::kReadsActionValues + Op::kReadsRatios;

// Rows by columns: as many as go into registers while six or seven blocks of 128 threads stay on a multiprocessor. What
// these read and write (GAE: 7 * 2048 steps * 16 bytes = 229 KB; the others 172 to 184 KB) covers a block's lifetime of
// 7 us (5.3 us) at 4.3 TB/s on 132 multiprocessors; the ticket, the loads, the scan and the wait are thought to take
// about 4 us.
constexpr int kRowsByColumns[] = {0, 6, 4, 3, 2};
constexpr int kDeviceThreads = 128, kDeviceGroup = 256;
template <class Op>
using DeviceTile = TileShape<kDeviceThreads, kRowsByColumns[kNumColumns<Op>], kDeviceGroup>;
constexpr int kSmallestDeviceTile = TileShape<kDeviceThreads, 2, kDeviceGroup>::kSteps;

// Steps that the first tile begins before step 0, so that all columns are read on 16-byte borders; or, where the arrays
// lie differently to those borders, is_vector = false, and every step is read alone.
struct Alignment {
  int shift;
  bool is_vector;
};

inline Alignment alignment_of(const RecurrenceArguments& arguments) {
  const Column columns[] = {arguments.rewards, arguments.values, arguments.action_values, arguments.ratios};
  const float* outputs[] = {arguments.advantages, arguments.returns};
  int shift = -1;
  bool is_vector = true;
  const auto look_at = [&](const void* data, size_t element_bytes) {
    if (data == nullptr) return;
    const int here = static_cast<int>(reinterpret_cast<uintptr_t>(data) / element_bytes % kVector);
    is_vector = is_vector && (shift < 0 || shift == here);
    shift = here;
  };
  for (const Column& column : columns) look_at(column.data, column.element == Element::kBfloat16 ? 2 : 4);
  for (const float* output : outputs) look_at(output, 4);
  return is_vector ? Alignment{shift, true} : Alignment{0, false};
}

// Offsets in bytes into the workspace. [0, published_bytes) is set to 0xFF before the kernel; the rest needs no value.
struct Workspace {
  static constexpr size_t kTicket = 0, kTiles = 256;
  size_t groups, published_bytes, sums, bytes;
};

inline Workspace workspace_of(int64_t num_tiles, int group) {
  const auto rounded_up = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  Workspace layout;
  layout.groups = Workspace::kTiles + sizeof(uint64_t) * static_cast<size_t>(num_tiles);
  layout.published_bytes = layout.groups + sizeof(uint64_t) * static_cast<size_t>(num_tiles / group + 1);
  layout.sums = rounded_up(layout.published_bytes);
  layout.bytes = layout.sums + 2 * sizeof(double) * static_cast<size_t>(num_tiles);
  return layout;
}

inline int64_t num_tiles_of(int64_t num_steps, int shift, int tile_steps) {
  return num_steps == 0 ? 0 : (num_steps + shift + tile_steps - 1) / tile_steps;
}

// Everything a block reads from its launch.
struct RecurrenceTask {
  RecurrenceArguments arguments;
  int shift;
  bool is_vector;
  int64_t num_tiles;
  unsigned* ticket;  // ~0 before the first block takes one
  uint64_t* tiles;
  uint64_t* groups;
  double* sums;  // [num_tiles, 2] = (sum, sum of squares) of each tile
};

template <class Shape>
RecurrenceTask task_of(const RecurrenceArguments& arguments, void* workspace) {
  const Alignment alignment = alignment_of(arguments);
  const int64_t num_tiles = num_tiles_of(arguments.num_steps, alignment.shift, Shape::kSteps);
  const Workspace layout = workspace_of(num_tiles, Shape::kGroup);
  char* base = static_cast<char*>(workspace);
  return {arguments,
          alignment.shift,
          alignment.is_vector,
          num_tiles,
          reinterpret_cast<unsigned*>(base + Workspace::kTicket),
          reinterpret_cast<uint64_t*>(base + Workspace::kTiles),
          reinterpret_cast<uint64_t*>(base + layout.groups),
          reinterpret_cast<double*>(base + layout.sums)};
}

}  // namespace hpcrl
