#include "threads.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

namespace hpcrl {

void run_shares(int64_t n, int num_threads, const std::function<void(int64_t, int64_t)>& work) {
  const int64_t shares = std::min<int64_t>(std::max(num_threads, 1), n);
  if (shares <= 1) {
    if (n > 0) work(0, n);
    return;
  }
  std::vector<std::thread> threads;
  threads.reserve(static_cast<size_t>(shares - 1));
  for (int64_t share = 1; share < shares; ++share) {
    const int64_t first = share * n / shares, last = (share + 1) * n / shares;
    try {
      threads.emplace_back(work, first, last);
    } catch (const std::system_error&) {
      work(first, last);
    }
  }
  work(0, n / shares);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace hpcrl
