// The recurrences on the CPU: chunks, threads, the choice of instruction set.

#include "recurrence.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace hpcrl {
namespace {

// Steps whose trajectories (by their first step) share a chunk: what a thread takes and what one partial sum covers.
// Fixed, so that sums do not depend on the number of threads; 64 Ki steps take about 50 us.
constexpr int64_t kChunkSteps = 65536;

// Between the sizes at which non-temporal stores lose (9 MB: 2-6x slower) and win (256 MB: 1.7x faster) on a server
// CPU.
constexpr int64_t kDefaultNontemporalBytes = int64_t{96} << 20;

int64_t initial_nontemporal_bytes() {
  const char* text = std::getenv("HPCRL_NONTEMPORAL_BYTES");
  if (text == nullptr || *text == '\0') return kDefaultNontemporalBytes;
  char* end = nullptr;
  const long long bytes = std::strtoll(text, &end, 10);
  if (*end != '\0' || bytes < 0) {
    throw std::invalid_argument(std::string("HPCRL_NONTEMPORAL_BYTES: want a number of bytes >= 0, got '") + text +
                                "'");
  }
  return bytes;
}

std::atomic<int64_t>& nontemporal_setting() {
  static std::atomic<int64_t> bytes{initial_nontemporal_bytes()};
  return bytes;
}

template <class Op>
auto walk_of(Isa isa) {
#ifdef HPCRL_X86_64
  if (isa == Isa::kAvx512) return &avx512::walk<Op>;
  if (isa == Isa::kAvx2) return &avx2::walk<Op>;
#endif
  (void)isa;
  return &generic::walk<Op>;
}

std::vector<int64_t> chunk_bounds(const RecurrenceArguments& arguments) {
  const int64_t* offsets = arguments.offsets;
  const int64_t num_chunks = (arguments.num_steps + kChunkSteps - 1) / kChunkSteps;
  std::vector<int64_t> bounds;
  bounds.reserve(static_cast<size_t>(num_chunks + 1));
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
    const int64_t* first = std::lower_bound(offsets, offsets + arguments.num_trajectories, chunk * kChunkSteps);
    bounds.push_back(first - offsets);
  }
  bounds.push_back(arguments.num_trajectories);
  return bounds;
}

int64_t traffic_bytes(const RecurrenceArguments& arguments) {
  int64_t bytes_per_step = 0;
  for (const Column& column : {arguments.rewards, arguments.values, arguments.action_values, arguments.ratios}) {
    if (column.data != nullptr) bytes_per_step += column.element == Element::kBfloat16 ? 2 : 4;
  }
  for (const float* out : {arguments.advantages, arguments.returns}) bytes_per_step += out != nullptr ? 4 : 0;
  return bytes_per_step * arguments.num_steps;
}

}  // namespace

int64_t nontemporal_bytes() {
  return nontemporal_setting().load(std::memory_order_relaxed);
}

void set_nontemporal_bytes(int64_t bytes) {
  nontemporal_setting().store(bytes, std::memory_order_relaxed);
}

template <class Op>
void recurrence_cpu(const Op& op, const RecurrenceArguments& arguments, int num_threads) {
  const std::vector<int64_t> bounds = chunk_bounds(arguments);
  const auto num_chunks = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<ChunkSums> sums(arguments.moments != nullptr ? static_cast<size_t>(num_chunks) : 0);
  const bool nontemporal = traffic_bytes(arguments) >= nontemporal_bytes();
  const auto walk = walk_of<Op>(isa());
  run_shares(num_chunks, num_threads, [&](int64_t first, int64_t last) {
    walk(op, arguments,
         {bounds.data() + first, last - first, sums.empty() ? nullptr : sums.data() + first, nontemporal});
  });
  if (arguments.moments == nullptr) return;
  ChunkSums all{0.0, 0.0};
  for (const ChunkSums& chunk : sums) {
    all.sum += chunk.sum;
    all.squares += chunk.squares;
  }
  arguments.moments[0] = static_cast<double>(arguments.num_steps);
  arguments.moments[1] = all.sum;
  arguments.moments[2] = all.squares;
}

template void recurrence_cpu<Gae>(const Gae&, const RecurrenceArguments&, int);
template void recurrence_cpu<TdLambda>(const TdLambda&, const RecurrenceArguments&, int);
template void recurrence_cpu<RewardToGo>(const RewardToGo&, const RecurrenceArguments&, int);
template void recurrence_cpu<VTrace>(const VTrace&, const RecurrenceArguments&, int);
template void recurrence_cpu<Retrace>(const Retrace&, const RecurrenceArguments&, int);

}  // namespace hpcrl
