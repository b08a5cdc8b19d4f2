// Splitting a range of work over threads.
#pragma once

#include <cstdint>
#include <functional>

namespace hpcrl {

// Calls work(first, last) on disjoint shares that together cover 0..n-1; no share is empty unless n is 0. Returns when all are done.
// `work` must not throw. Where the system refuses a thread, the caller does that share itself.
void run_shares(int64_t n, int num_threads, const std::function<void(int64_t first, int64_t last)>& work);

}  // namespace hpcrl
