#include "threads.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace hpcrl {

void run_shares(int64_t n, int num_threads, const std::function<void(int64_t, int64_t)>& work) {
  constexpr int64_t kSharesPerThread = 8;
  if (n <= 0) return;
  if (num_threads <= 1 || n == 1) return work(0, n);
  const int64_t shares = std::min<int64_t>(kSharesPerThread * num_threads, n);
  std::atomic<int64_t> left{shares};
  const auto take_shares = [&] {
    for (int64_t share = --left; share >= 0; share = --left) {
      work(share * n / shares, (share + 1) * n / shares);
    }
  };
  std::vector<std::thread> threads;
  const auto others = static_cast<size_t>(std::min<int64_t>(num_threads, shares) - 1);
  threads.reserve(others);
  try {
    while (threads.size() < others) threads.emplace_back(take_shares);
  } catch (const std::system_error&) {
    // Fewer threads than wanted: the bits are the same.
  }
  take_shares();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace hpcrl
