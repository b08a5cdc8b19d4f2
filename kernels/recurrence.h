// The walk over packed trajectories that every instruction set shares: tiles of a vector, from the end of each
// trajectory.
//
// Tiles are counted from the trajectory's end, never from an address, so a trajectory's bits depend on nothing but the
// trajectory. Inside a tile the maps x(t+1) -> x(t) are composed by a scan in registers; between tiles x is carried in
// double, so that neither the rounding of gamma nor that of 10^5 tiles adds up. Trajectories are walked from the last
// to the first: inputs and outputs are then single descending streams, which the hardware follows (2.8x over walking
// up).
//
// F is a vector type of floats_*.h, S its sums. They name every instantiation, so that code compiled for one
// instruction set is never linked in the place of another's.
#pragma once

#include <cstdint>
#include <cstring>

#include "math.h"
#include "ops.h"

namespace hpcrl {

// Sums over one chunk of trajectories; chunks are cut by the offsets alone and combined in order.
struct ChunkSums {
  double sum;
  double squares;
};

// Consecutive chunks, one thread's share. Chunk k holds trajectories [bounds[k], bounds[k + 1]).
struct ChunkRange {
  const int64_t* bounds;
  int64_t num_chunks;
  ChunkSums* sums;  // [num_chunks], or nullptr
  bool nontemporal;
};

namespace generic {
template <class Op>
void walk(const Op& op, const RecurrenceArguments& arguments, const ChunkRange& chunks);
}
namespace avx2 {
template <class Op>
void walk(const Op& op, const RecurrenceArguments& arguments, const ChunkRange& chunks);
}
namespace avx512 {
template <class Op>
void walk(const Op& op, const RecurrenceArguments& arguments, const ChunkRange& chunks);
}

// Gathers tiles in the first cache and writes them on as whole aligned lines: by ordinary stores, or past the caches.
// Above the size of the last cache, ordinary stores read every line of the outputs before writing it: half of the
// traffic for nothing. Below it, storing past it is what costs. And tiles, which keep no alignment, would straddle two
// lines each.
template <class F, bool kNontemporal>
class LineSink {
 public:
  LineSink(float* out, int64_t end) : out_(out), base_(end - kStaged), low_(end), high_(end) {}

  // The last n lanes of `tile` are steps t + kLanes - n .. t + kLanes - 1.
  void put(int64_t t, F tile, int n) {
    if constexpr (!kNontemporal) __builtin_prefetch(out_ + t - kStaged, 1);  // the next window's lines: 2.5x at 32 MB
    if (t < base_) flush();
    tile.store(staged_ +
               (t - base_));  // lanes below the last n are overwritten by the tile that follows, or never flushed
    low_ = t + F::kLanes - n;
  }
  void finish() {
    flush();
    write(low_, high_);
  }

 private:
  static constexpr int64_t kStaged = 512, kLine = 16;

  // Steps between `t` and the line boundary at or below it.
  int64_t past_line(int64_t t) const {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(out_ + t) / sizeof(float)) % kLine;
  }
  void write(int64_t from, int64_t to) {
    std::memcpy(out_ + from, staged_ + (from - base_), sizeof(float) * static_cast<size_t>(to - from));
  }
  // Everything down to the lowest whole line; the rest (less than a line) moves to the top of the next window.
  void flush() {
    const int64_t bottom = low_ + (kLine - past_line(low_)) % kLine, top = high_ - past_line(high_);
    if (bottom > top) return;
    write(top, high_);
    for (int64_t t = top - kLine; t >= bottom; t -= kLine) {
      if constexpr (kNontemporal) {
        F::stream_line(out_ + t, staged_ + (t - base_));
      } else {
        std::memcpy(out_ + t, staged_ + (t - base_), kLine * sizeof(float));
      }
    }
    const int64_t next_base = bottom - kStaged;
    std::memmove(staged_ + (low_ - next_base), staged_ + (low_ - base_),
                 sizeof(float) * static_cast<size_t>(bottom - low_));
    high_ = bottom;
    base_ = next_base;
  }

  float* out_;
  int64_t base_, low_, high_;  // staged_[t - base_] holds step t of [low_, high_)
  alignas(64) float staged_[kStaged];
};

// The powers of a constant mul, each rounded once from double.
template <class F>
struct Powers {
  F scan[4];    // mul^1, mul^2, mul^4, mul^8: how far each round of the scan reaches
  F to_next;    // lane i: mul^(kLanes - i), from a lane's step to the step after the tile
  double tile;  // mul^kLanes

  explicit Powers(double mul) {
    double power = mul;
    for (F& round : scan) {
      round = F(narrow(power));
      power *= power;
    }
    float lanes[F::kLanes];
    tile = 1.0;
    for (int i = F::kLanes - 1; i >= 0; --i) {
      tile *= mul;
      lanes[i] = narrow(tile);
    }
    to_next = F::load(lanes);
  }

 private:
  // Subnormal numbers cost a hundred cycles each and change nothing here.
  static float narrow(double power) { return power < 1e-37 ? 0.0f : static_cast<float>(power); }
};

// How far ahead of the walk inputs are fetched: the hardware follows a descending stream, but starts anew at each page.
constexpr int64_t kPrefetchBytes = 2048;

template <class F>
inline F load_tile(const Column& column, int64_t t, int n) {
  if (column.element == Element::kBfloat16) {
    const char* from = static_cast<const char*>(column.data) + 2 * t;
    if constexpr (F::kLanes > 1) __builtin_prefetch(from - kPrefetchBytes);
    return n == F::kLanes ? F::load_bf16(from) : F::load_bf16_upper(from, n);
  }
  const char* from = static_cast<const char*>(column.data) + 4 * t;
  if constexpr (F::kLanes > 1) __builtin_prefetch(from - kPrefetchBytes);
  return n == F::kLanes ? F::load(from) : F::load_upper(from, n);
}

template <class F>
inline float load_one(const Column& column, int64_t i) {
  const char* data = static_cast<const char*>(column.data);
  if (column.element == Element::kBfloat16) {
    unsigned short bits;
    std::memcpy(&bits, data + 2 * i, sizeof bits);
    return bf16_to_float(bits);
  }
  float number;
  std::memcpy(&number, data + 4 * i, sizeof number);
  return number;
}

// Lane i becomes the map from the step after the tile to its own step. Lanes shifted in are the identity {0, 1}.
template <class Op, class F>
inline void scan(Affine<F>& map, const Powers<F>& powers) {
  const F zero(0.0f), one(1.0f);
  const auto round = [&](Affine<F> later, const F& power) {
    if constexpr (Op::kConstantMul) {
      map.add = multiply_add(power, later.add, map.add);
    } else {
      map = compose(map, later);
    }
  };
  if constexpr (F::kLanes > 1) {
    round({map.add.template later<1>(zero), map.mul.template later<1>(one)}, powers.scan[0]);
    round({map.add.template later<2>(zero), map.mul.template later<2>(one)}, powers.scan[1]);
    round({map.add.template later<4>(zero), map.mul.template later<4>(one)}, powers.scan[2]);
  }
  if constexpr (F::kLanes > 8) {
    round({map.add.template later<8>(zero), map.mul.template later<8>(one)}, powers.scan[3]);
  }
}

template <class F, class S, class Op, class Sink>
class Walk {
 public:
  Walk(const Op& op, const RecurrenceArguments& arguments, int64_t end)
      : op_(op),
        arguments_(arguments),
        powers_(op.constant_mul()),
        advantages_(arguments.advantages, end),
        returns_(arguments.returns, end) {}

  void trajectory(int64_t start, int64_t end, float bootstrap) {
    double x = op_.start(bootstrap);
    F next_value(bootstrap);  // its lowest lane is V of the step after the tile
    int64_t t = end - F::kLanes;
    for (; t >= start; t -= F::kLanes) tile(t, F::kLanes, &x, &next_value);
    if (const int rest = static_cast<int>(t + F::kLanes - start); rest > 0) tile(t, rest, &x, &next_value);
  }

  ChunkSums take_sums() {
    const ChunkSums taken{sums_.total(), sums_.total_squares()};
    sums_ = S();
    return taken;
  }
  void finish() {
    if constexpr (Op::kWritesAdvantages) advantages_.finish();
    returns_.finish();
    F::stream_fence();
  }

 private:
  // The last n lanes of steps t .. t + kLanes - 1; n < kLanes only in the tile that holds the trajectory's first step.
  inline __attribute__((always_inline)) void tile(int64_t t, int n, double* x_next, F* next_value) {
    StepInputs<F> in{};
    in.reward = load_tile<F>(arguments_.rewards, t, n);
    if constexpr (Op::kReadsValues) {
      in.value = load_tile<F>(arguments_.values, t, n);
      in.next_value = in.value.template later<1>(*next_value);
      *next_value = in.value;
    }
    if constexpr (Op::kReadsActionValues) in.action_value = load_tile<F>(arguments_.action_values, t, n);
    if constexpr (Op::kReadsRatios) in.ratio = load_tile<F>(arguments_.ratios, t, n);

    Affine<F> map = op_.map(in);
    scan<Op>(map, powers_);
    const F after(static_cast<float>(*x_next));
    const F x = multiply_add(Op::kConstantMul ? powers_.to_next : map.mul, after, map.add);
    const double tile_mul = Op::kConstantMul ? powers_.tile : static_cast<double>(map.mul.first());
    *x_next = multiply_add(tile_mul, *x_next, static_cast<double>(map.add.first()));

    const StepOutputs<F> out = op_.outputs(in, x, x.template later<1>(after));
    if constexpr (Op::kWritesAdvantages) advantages_.put(t, out.advantage, n);
    returns_.put(t, out.target, n);
    if (arguments_.moments != nullptr) {
      const F& counted = Op::kWritesAdvantages ? out.advantage : out.target;
      sums_.add(n == F::kLanes ? counted : counted.upper(n));
    }
  }

  const Op op_;
  const RecurrenceArguments arguments_;
  const Powers<F> powers_;
  Sink advantages_, returns_;
  S sums_;
};

template <class F, class S, class Op, bool kNontemporal>
void walk_to(const Op& op, const RecurrenceArguments& arguments, const ChunkRange& chunks) {
  const int64_t* offsets = arguments.offsets;
  Walk<F, S, Op, LineSink<F, kNontemporal>> walk(op, arguments, offsets[chunks.bounds[chunks.num_chunks]]);
  for (int64_t chunk = chunks.num_chunks - 1; chunk >= 0; --chunk) {
    for (int64_t i = chunks.bounds[chunk + 1] - 1; i >= chunks.bounds[chunk]; --i) {
      if (offsets[i] == offsets[i + 1]) continue;
      walk.trajectory(offsets[i], offsets[i + 1], load_one<F>(arguments.bootstrap_values, i));
    }
    if (chunks.sums != nullptr) chunks.sums[chunk] = walk.take_sums();
  }
  walk.finish();
}

template <class F, class S, class Op>
void walk_chunks(const Op& op, const RecurrenceArguments& arguments, const ChunkRange& chunks) {
  // Non-temporal stores want aligned lines, so an output whose floats straddle them is written by ordinary stores.
  const auto aligned = [](const float* out) { return reinterpret_cast<uintptr_t>(out) % sizeof(float) == 0; };
  if (chunks.nontemporal && aligned(arguments.advantages) && aligned(arguments.returns)) {
    walk_to<F, S, Op, true>(op, arguments, chunks);
  } else {
    walk_to<F, S, Op, false>(op, arguments, chunks);
  }
}

}  // namespace hpcrl
