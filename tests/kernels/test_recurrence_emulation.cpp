// The recurrence kernels' bodies on emulated blocks, against float64 loops.
//
//   test_recurrence_emulation                    the cases
//   test_recurrence_emulation --skip-barrier N   one case with every block's N-th __syncthreads left out: a planted
//   fault
//
// Exit status: 0 all well; 1 a wrong number (then the case is named). Compiled with -DHPCRL_FEW_CASES it holds one case
// of each kind: enough for the sanitizers, which make compiling and running slow.

#include "emulation.h"

#include <cstdio>
#include <cstdlib>

#include "kernels/recurrence_device.cuh"
#include "packed_batch.h"

namespace {

using hpcrl::Element;
using hpcrl::TileShape;

#ifdef HPCRL_FEW_CASES
constexpr bool kFewCases = true;
#else
constexpr bool kFewCases = false;
#endif
constexpr double kTolerance = 1e-6;
int failures = 0;

void check(bool holds, const std::string& name, const std::string& what) {
  if (holds) return;
  std::printf("FAILED %s: %s\n", name.c_str(), what.c_str());
  ++failures;
}

struct Options {
  Element rewards = Element::kFloat32, others = Element::kFloat32;
  int input_skew = 0, output_skew = 0, other_skew = 0;
  bool moments = false;
  emulation::Launch launch = {};
};

struct Result {
  std::vector<float> advantages, returns;
  double moments[3] = {-1, -1, -1};
  bool guards_are_whole = false;
  bool operator==(const Result& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), 4 * a.size()) == 0);
    };
    return same(advantages, other.advantages) && same(returns, other.returns) &&
           std::memcmp(moments, other.moments, sizeof(moments)) == 0;
  }
};

// What recurrence_cuda does, on emulated blocks. The workspace is as large as promised, and starts full of other bits.
template <class Shape, class Op>
Result run(const Op& op, const packed::Batch& batch, const Options& options) {
  const packed::Input rewards(batch.rewards, options.rewards, options.input_skew);
  const packed::Input values(batch.values, options.others,
                             options.other_skew ? options.other_skew : options.input_skew);
  const packed::Input action_values(batch.action_values, options.others, options.input_skew);
  const packed::Input ratios(batch.ratios, options.others, options.input_skew);
  const packed::Input bootstrap_values(batch.bootstrap_values, options.others, 1);
  packed::Output advantages(batch.num_steps(), options.output_skew), returns(batch.num_steps(), options.output_skew);
  Result result;
  hpcrl::RecurrenceArguments arguments = {};
  arguments.rewards = rewards.column();
  if (Op::kReadsValues) arguments.values = values.column();
  if (Op::kReadsActionValues) arguments.action_values = action_values.column();
  if (Op::kReadsRatios) arguments.ratios = ratios.column();
  arguments.bootstrap_values = bootstrap_values.column();
  arguments.offsets = batch.offsets.data();
  arguments.num_trajectories = batch.num_trajectories();
  arguments.num_steps = batch.num_steps();
  if (Op::kWritesAdvantages) arguments.advantages = advantages.data();
  arguments.returns = returns.data();
  if (options.moments) arguments.moments = result.moments;

  const int64_t most_tiles = hpcrl::num_tiles_of(batch.num_steps(), hpcrl::kVector - 1, Shape::kSteps);
  const size_t bytes = hpcrl::workspace_of(most_tiles, Shape::kGroup).bytes;
  std::unique_ptr<char, void (*)(void*)> workspace(
      static_cast<char*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256)), std::free);
  std::memset(workspace.get(), 0xA5, bytes);
  const hpcrl::RecurrenceTask task = hpcrl::task_of<Shape>(arguments, workspace.get());
  std::memset(workspace.get(), 0xFF, hpcrl::workspace_of(task.num_tiles, Shape::kGroup).published_bytes);
  emulation::Launch launch = options.launch;
  launch.grid = static_cast<int>(task.num_tiles);
  launch.threads = Shape::kThreads;
  if (launch.grid > 0) {
    emulation::run<hpcrl::TileMemory<Shape>>(
        launch, [&](hpcrl::TileMemory<Shape>& memory) { hpcrl::recurrence_block<Op, Shape>(task, op, memory); });
  }
  if (options.moments) {
    emulation::Launch one = {.grid = 1, .threads = hpcrl::kMomentsThreads, .skipped_barrier = launch.skipped_barrier};
    emulation::run<hpcrl::MomentsMemory>(one,
                                         [&](hpcrl::MomentsMemory& memory) { hpcrl::moments_block(task, memory); });
  }
  result.advantages = Op::kWritesAdvantages ? advantages.numbers() : std::vector<float>();
  result.returns = returns.numbers();
  result.guards_are_whole = advantages.guards_are_whole() && returns.guards_are_whole();
  return result;
}

template <class Shape, class Op>
Result check_case(const std::string& name, const Op& op, const packed::Batch& batch, const Options& options = {}) {
  const Result given = run<Shape>(op, batch, options);
  const packed::Expected wanted = packed::expected(op, batch);
  const double advantages = Op::kWritesAdvantages ? packed::relative_error(given.advantages, wanted.advantages) : 0.0;
  const double returns = packed::relative_error(given.returns, wanted.returns);
  char line[200];
  std::snprintf(line, sizeof(line), "relative error %.2g (advantages), %.2g (returns), want <= %.2g", advantages,
                returns, kTolerance);
  check(advantages <= kTolerance && returns <= kTolerance, name, line);
  check(given.guards_are_whole, name, "wrote outside its outputs");
  if (options.moments) {
    double sum = 0, squares = 0;
    for (const float number : Op::kWritesAdvantages ? given.advantages : given.returns) {
      sum += number, squares += static_cast<double>(number) * number;
    }
    check(given.moments[0] == static_cast<double>(batch.num_steps()), name, "moments: wrong n");
    check(std::abs(given.moments[1] - sum) <= 1e-12 * (squares + 1), name, "moments: wrong sum");
    check(std::abs(given.moments[2] - squares) <= 1e-12 * (squares + 1), name, "moments: wrong sum of squares");
  }
  std::printf("%-58s %7lld steps  %.1e\n", name.c_str(), static_cast<long long>(batch.num_steps()),
              std::fmax(advantages, returns));
  std::fflush(stdout);
  return given;
}

constexpr hpcrl::Gae kGae = {0.99, 0.95};
constexpr hpcrl::TdLambda kTdLambda = {0.99, 0.9};
constexpr hpcrl::RewardToGo kRewardToGo = {0.97};
constexpr hpcrl::VTrace kVTrace = {0.99, 0.95, 1.0, 1.0};
constexpr hpcrl::Retrace kRetrace = {0.99, 0.95};

using Tiny = TileShape<32, 1, 4>;       // 128 steps, groups of 4 tiles
using Small = TileShape<64, 2, 4>;      // 512 steps, two warps of two rows
using Grouped = TileShape<64, 1, 256>;  // 256 steps, the groups of the real kernel
using Wide = TileShape<128, 2, 8>;      // 1024 steps, four warps

// Lengths at every border: of a lane, a row, a tile; empty ones first, between and last.
std::vector<int64_t> ragged_lengths(int64_t tile) {
  return {0, 0, 1, 3, 4,        5,    0,        31, 32,           33, 127, 128, 129,
          1, 1, 1, 0, tile - 1, tile, tile + 1, 2,  3 * tile + 7, 0,  1,   0};
}

template <class Shape, class Op>
void check_op(const std::string& name, const Op& op) {
  check_case<Shape>(name + " ragged", op, packed::batch_of(ragged_lengths(Shape::kSteps), 1),
                    {.moments = true, .launch = {.resident = 3}});
  check_case<Shape>(name + " one step", op, packed::batch_of({1}, 2), {.moments = true});
  check_case<Shape>(name + " long", op, packed::batch_of({9 * Shape::kSteps + 5}, 3),
                    {.launch = {.resident = 4, .seed = 5}});
  check_case<Shape>(name + " bfloat16", op, packed::batch_of({3, Shape::kSteps, 17}, 4),
                    {.rewards = Element::kBfloat16, .others = Element::kBfloat16});
  check_case<Shape>(name + " float32 and bfloat16", op, packed::batch_of({3, Shape::kSteps, 17}, 4),
                    {.others = Element::kBfloat16});
}

template <class Op>
void check_device_tile(const std::string& name, const Op& op) {
  using Shape = hpcrl::DeviceTile<Op>;
  check_case<Shape>(name + " device tile, ragged", op,
                    packed::batch_of({5, Shape::kSteps, 64, 64, 700, 0, Shape::kSteps + 9}, 6),
                    {.launch = {.resident = 2}});
}

void check_empty() {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{}, std::vector<int64_t>{0, 0, 0}}) {
    const Result result = check_case<Tiny>("gae empty batch", kGae, packed::batch_of(lengths, 1), {.moments = true});
    check(result.moments[1] == 0 && result.moments[2] == 0, "gae empty batch", "moments are not 0");
  }
}

void check_many_empty_trajectories() {
  std::vector<int64_t> lengths(700, 0);
  lengths[300] = 200, lengths[301] = 1, lengths[650] = 90;
  check_case<Tiny>("gae many empty trajectories", kGae, packed::batch_of(lengths, 9));
}

void check_alignment() {
  const packed::Batch batch = packed::batch_of({100, 1, Small::kSteps, 700, 5}, 11);
  for (int skew = 1; skew < (kFewCases ? 2 : 4); ++skew) {
    const std::string at = " off by " + std::to_string(skew);
    check_case<Small>("gae all columns" + at, kGae, batch, {.input_skew = skew, .output_skew = skew});
    check_case<Small>("gae inputs alone" + at, kGae, batch, {.input_skew = skew});
    check_case<Small>("gae values alone" + at, kGae, batch, {.other_skew = skew});
    check_case<Small>(
        "vtrace bfloat16, all columns" + at, kVTrace, batch,
        {.rewards = Element::kBfloat16, .others = Element::kBfloat16, .input_skew = skew, .output_skew = skew});
  }
}

// Every order of blocks and every pause gives the same bits.
void check_same_bits() {
  const packed::Batch batch = packed::batch_of({50, 0, 21 * Tiny::kSteps + 3, 7, 300}, 12);
  Options options = {.moments = true, .launch = {.resident = 1}};
  const Result first = check_case<Tiny>("gae blocks in turn", kGae, batch, options);
  for (unsigned seed = 1; seed <= (kFewCases ? 1u : 4u); ++seed) {
    options.launch = {.resident = 3 + static_cast<int>(seed), .seed = seed, .max_pause_microseconds = 300};
    check(run<Tiny>(kGae, batch, options) == first, "same bits", "seed " + std::to_string(seed) + " gives others");
  }
}

// The same where a tile waits for more than 32 others, so that all warps of its block read words: the real kernel's
// groups.
void check_groups() {
  const hpcrl::Gae undiscounted = {1.0, 1.0};  // every step depends on all later ones, in whatever group
  const packed::Batch batch = packed::batch_of({9, (kFewCases ? 40 : 300) * Grouped::kSteps}, 13);
  const Result first = check_case<Grouped>("gae across groups of 256 tiles", undiscounted, batch);
  const Options options = {.launch = {.resident = 7, .seed = 3, .max_pause_microseconds = 200}};
  check(run<Grouped>(undiscounted, batch, options) == first, "same bits", "across groups: others");
}

// A NaN reaches the earlier steps of its own trajectory, and no bit of any other.
void check_nan() {
  packed::Batch batch = packed::batch_of({130, 3, 2, 400, 1, 300}, 14);
  const Options options = {.launch = {.resident = 2}};
  const Result clean = run<Tiny>(kGae, batch, options);
  for (const int64_t poisoned : kFewCases ? std::vector<int64_t>{3} : std::vector<int64_t>{1, 3, 5}) {
    const int64_t begin = batch.offsets[poisoned], last = batch.offsets[poisoned + 1] - 1;
    packed::Batch bad = batch;
    bad.rewards[last] = std::bit_cast<float>(0xFFFF0000u);  // a NaN near the marks of the tiles' words
    bad.bootstrap_values[poisoned] = std::numeric_limits<float>::quiet_NaN();
    const Result given = run<Tiny>(kGae, bad, options);
    bool is_confined = true, is_complete = true;
    for (int64_t t = 0; t < batch.num_steps(); ++t) {
      if (t >= begin && t <= last) {
        is_complete = is_complete && std::isnan(given.advantages[t]);
      } else {
        is_confined = is_confined && given.advantages[t] == clean.advantages[t];
      }
    }
    check(is_confined, "gae NaN", "left trajectory " + std::to_string(poisoned));
    check(is_complete, "gae NaN", "got lost in trajectory " + std::to_string(poisoned));
  }
  for (float& ratio : batch.ratios)
    ratio = std::bit_cast<float>(0xFFFFFFFFu);  // reaches mul: must never read as "not yet"
  const Result given = run<Tiny>(kVTrace, batch, options);
  bool all_nan = true;
  for (const float number : given.returns) all_nan = all_nan && std::isnan(number);
  check(all_nan, "vtrace NaN ratios", "became numbers");
}

// Limits that hold by algebra: lambda = 0 is the one-step error; lambda = 1 without values is reward-to-go.
void check_limits() {
  packed::Batch batch = packed::batch_of({300, 5, 64, 200}, 15);
  const Result one_step = check_case<Tiny>("gae lambda 0", hpcrl::Gae{0.9, 0.0}, batch);
  batch.values.assign(batch.values.size(), 0.0f);
  const Result monte_carlo = check_case<Tiny>("gae lambda 1", hpcrl::Gae{0.9, 1.0}, batch);
  const Result to_go = check_case<Tiny>("reward-to-go as gae", hpcrl::RewardToGo{0.9}, batch);
  std::vector<double> wanted(to_go.returns.begin(), to_go.returns.end());
  check(packed::relative_error(monte_carlo.advantages, wanted) < kTolerance, "limits", "lambda 1 is not reward-to-go");
  check(one_step.advantages.size() == wanted.size(), "limits", "lambda 0");
}

// A template, so that its cases are compiled only where they are wanted.
template <class Tile>
void check_more() {
  check_op<Small>("gae, small tile,", kGae);
  check_op<Tile>("td_lambda, tiny tile,", kTdLambda);
  check_op<Tile>("reward_to_go, tiny tile,", kRewardToGo);
  check_op<Tile>("vtrace, tiny tile,", kVTrace);
  check_op<Tile>("retrace, tiny tile,", kRetrace);
  check_op<Wide>("gae, wide tile,", kGae);
  check_device_tile("gae", kGae);
  check_device_tile("td_lambda", kTdLambda);
  check_device_tile("reward_to_go", kRewardToGo);
  check_device_tile("vtrace", kVTrace);
  check_device_tile("retrace", kRetrace);
  check_many_empty_trajectories();
  check_limits();
}

template <class Tile>
void check_all() {
  check_empty();
  check_op<Tile>("gae, tiny tile,", kGae);
  check_op<Small>("vtrace, small tile,", kVTrace);
  check_nan();
  check_alignment();
  check_same_bits();
  check_groups();
  if constexpr (!kFewCases) check_more<Tile>();
}

// Short trajectories and one of 40 tiles, moments: a block passes every barrier there is.
void check_planted(int skipped_barrier) {
  const packed::Batch batch = packed::batch_of({7, 40 * Grouped::kSteps, 90, 2}, 16);
  check_case<Grouped>("gae with a barrier left out", kGae, batch,
                      {.moments = true, .launch = {.skipped_barrier = skipped_barrier}});
}

}  // namespace

int main(int count, char** arguments) {
  const std::string mode = count > 1 ? arguments[1] : "";
  if (mode == "--skip-barrier" && count == 3) {
    check_planted(std::atoi(arguments[2]));
  } else if (mode.empty()) {
    check_all<Tiny>();
  } else {
    std::fprintf(stderr, "usage: %s [--skip-barrier N]\n", arguments[0]);
    return 2;
  }
  std::printf("%s\n", failures == 0 ? "all well" : "FAILED");
  return failures == 0 ? 0 : 1;
}
