// Splitting a range of work over threads.
#pragma once

#include <cstdint>
#include <functional>

namespace hpcrl {

// Calls work(first, last) on disjoint shares that together cover 0..n-1, the upper ones first; returns when all are
// done. Several shares a thread, taken as threads come free: a thread that the system puts aside holds up only one of
// them. `work` must not throw. Where the system refuses a thread, the others do its work.
void run_shares(int64_t n, int num_threads, const std::function<void(int64_t first, int64_t last)>& work);

}  // namespace hpcrl
