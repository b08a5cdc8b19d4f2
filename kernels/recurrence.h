// The walk over packed trajectories that every instruction set shares: tiles of a vector, from the end of each
// trajectory.
//
// Tiles are counted from the trajectory's end, never from an address, so a trajectory's bits depend on nothing but the
// trajectory. Inside a tile the maps x(t+1) -> x(t) are composed by a scan in registers; between tiles x is carried in
// double, so that neither the rounding of gamma nor that of 10^5 tiles adds up. Trajectories are walked from the last
// to the first: inputs and outputs are then single descending streams, which the hardware follows (2.8x over walking
// up).
//
// One Zen 4 core moves the 256 bytes of a tile of GAE in 5.5 ns, which leaves no time for a detour. So all that a tile
// needs lives in registers: no object whose address escapes, no call inside the loops, and outputs are turned in
// registers, not gathered in a buffer (whose stores and loads straddle lines: twice the time).
//
// F is a vector type of floats_*.h, S its sums. They name every instantiation, so that code compiled for one
// instruction set is never linked in the place of another's.
#pragma once

#include <cstdint>
#include <cstring>

#include "math.h"
#include "ops.h"

// Never a call inside the walk: across one, no vector would stay in its register.
#define HPCRL_INLINE inline __attribute__((always_inline))

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

// Joins tiles, which keep no alignment, into whole aligned vectors of an output and writes those: by ordinary stores,
// or past the caches. Above the size of the last cache, ordinary stores read every line of the outputs before writing
// it: half of the traffic for nothing. Below it, storing past it is what costs. And tiles written as they are would
// straddle two lines each.
//
// Steps come in descending order without a gap. The vector being filled stays in a register; the uppermost lanes of the
// next tile fill its lowest, so the tile is turned by the number of lanes missing. That number changes only from one
// trajectory to the next.
template <class F, bool kNontemporal>
class Sink {
 public:
  // Steps below `end` of `out` are to come.
  Sink(float* out, int64_t end) : out_(out), end_(end), filling_(0.0f) {
    const auto floats_below = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out + end) / sizeof(float));
    set_missing(1 + static_cast<int>((floats_below + F::kLanes - 1) % F::kLanes));
    first_ = end - missing_;
  }

  // The last n lanes of `tile` are the n steps before those put so far.
  HPCRL_INLINE void put(F tile, int n) {
    const F turned = tile.turned(turn_);
    const F filled = filling_.with_lowest(turned, turn_);
    if (n < F::kLanes && n < missing_) {
      filling_ = filled;
      set_missing(missing_ - n);
      return;
    }
    write(filled);
    filling_ = turned;
    first_ -= F::kLanes;
    if (n < F::kLanes) set_missing(missing_ - n + F::kLanes);
  }
  void finish() { write_from(missing_, filling_); }

 private:
  // How far ahead of the walk ordinary stores have their lines fetched: 2.5x at 32 MB.
  static constexpr int64_t kPrefetchSteps = 512;

  HPCRL_INLINE void set_missing(int lanes) {
    missing_ = lanes;
    turn_ = typename F::Turn(lanes);
  }
  HPCRL_INLINE void write(F vector) {
    if (__builtin_expect(first_ + F::kLanes > end_, 0)) return write_from(0, vector);  // the uppermost of all
    if constexpr (kNontemporal) {
      vector.stream(out_ + first_);
    } else {
      __builtin_prefetch(out_ + first_ - kPrefetchSteps, 1);
      vector.store(out_ + first_);
    }
  }
  // Lanes from `lane` on, but none at or above the end: those steps are another thread's, or nobody's.
  HPCRL_INLINE void write_from(int lane, F vector) const {
    const int64_t ours = end_ - first_;
    vector.store_lanes(out_ + first_, lane, ours < F::kLanes ? static_cast<int>(ours) : F::kLanes);
  }

  float* out_;
  int64_t end_, first_;  // first_: the step of the lowest lane of `filling_`
  int missing_;          // of its lanes, the lowest 1 .. kLanes are still to come
  typename F::Turn turn_;
  F filling_;
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

// What the walk carries from tile to tile.
template <class F, class S, bool kNontemporal>
struct Carried {
  double x;      // of the step after the tile
  F next_value;  // its lowest lane is V of the step after the tile
  Sink<F, kNontemporal> advantages, returns;
  S sums;
};

// The last n lanes of steps t .. t + kLanes - 1; n < kLanes only in the tile that holds the trajectory's first step.
template <class F, class S, class Op, bool kNontemporal>
HPCRL_INLINE void walk_tile(const Op& op, const RecurrenceArguments& arguments, const Powers<F>& powers, int64_t t,
                            int n, Carried<F, S, kNontemporal>& carried) {
  StepInputs<F> in{};
  in.reward = load_tile<F>(arguments.rewards, t, n);
  if constexpr (Op::kReadsValues) {
    in.value = load_tile<F>(arguments.values, t, n);
    in.next_value = in.value.template later<1>(carried.next_value);
    carried.next_value = in.value;
  }
  if constexpr (Op::kReadsActionValues) in.action_value = load_tile<F>(arguments.action_values, t, n);
  if constexpr (Op::kReadsRatios) in.ratio = load_tile<F>(arguments.ratios, t, n);

  Affine<F> map = op.map(in);
  scan<Op>(map, powers);
  const F after(static_cast<float>(carried.x));
  const F x = multiply_add(Op::kConstantMul ? powers.to_next : map.mul, after, map.add);
  const double tile_mul = Op::kConstantMul ? powers.tile : static_cast<double>(map.mul.first());
  carried.x = multiply_add(tile_mul, carried.x, static_cast<double>(map.add.first()));

  const StepOutputs<F> out = op.outputs(in, x, x.template later<1>(after));
  if constexpr (Op::kWritesAdvantages) carried.advantages.put(out.advantage, n);
  carried.returns.put(out.target, n);
  if (arguments.moments != nullptr) {
    const F& counted = Op::kWritesAdvantages ? out.advantage : out.target;
    carried.sums.add(n == F::kLanes ? counted : counted.upper(n));
  }
}

template <class F, class S, class Op, bool kNontemporal>
HPCRL_INLINE void walk_trajectory(const Op& op, const RecurrenceArguments& arguments, const Powers<F>& powers,
                                  int64_t i, Carried<F, S, kNontemporal>& carried) {
  const int64_t start = arguments.offsets[i], end = arguments.offsets[i + 1];
  if (start == end) return;
  const float bootstrap = load_one<F>(arguments.bootstrap_values, i);
  carried.x = op.start(bootstrap);
  carried.next_value = F(bootstrap);
  int64_t t = end - F::kLanes;
  for (; t >= start; t -= F::kLanes) walk_tile(op, arguments, powers, t, F::kLanes, carried);
  if (const int rest = static_cast<int>(t + F::kLanes - start); rest > 0) {
    walk_tile(op, arguments, powers, t, rest, carried);
  }
}

// Takes everything by value: a vector's store could change what a reference refers to, so that would be read anew for
// every tile.
template <class F, class S, class Op, bool kNontemporal>
void walk_to(const Op op, const RecurrenceArguments arguments, const ChunkRange chunks) {
  const int64_t end = arguments.offsets[chunks.bounds[chunks.num_chunks]];
  const Powers<F> powers(op.constant_mul());
  Carried<F, S, kNontemporal> carried{0.0, F(0.0f), {arguments.advantages, end}, {arguments.returns, end}, S()};
  for (int64_t chunk = chunks.num_chunks - 1; chunk >= 0; --chunk) {
    for (int64_t i = chunks.bounds[chunk + 1] - 1; i >= chunks.bounds[chunk]; --i) {
      walk_trajectory(op, arguments, powers, i, carried);
    }
    if (chunks.sums != nullptr) {
      chunks.sums[chunk] = {carried.sums.total(), carried.sums.total_squares()};
      carried.sums = S();
    }
  }
  if constexpr (Op::kWritesAdvantages) carried.advantages.finish();
  carried.returns.finish();
  F::stream_fence();
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
