#include "stream.h"

#include "isa.h"
#include "threads.h"

namespace hpcrl {

void stream_cpu(const StreamArguments& arguments, StreamForm form, int num_threads) {
  const Isa chosen = isa();
  run_shares(arguments.num_lines, num_threads, [&](int64_t first, int64_t last) {
    const int64_t at = 16 * first;
    const StreamArguments share{arguments.first + at, arguments.second + at, arguments.sums + at,
                                arguments.differences + at, last - first};
#ifdef HPCRL_X86_64
    if (chosen == Isa::kAvx512) return avx512::stream(share, form);
    if (chosen == Isa::kAvx2) return avx2::stream(share, form);
#endif
    (void)chosen;
    generic::stream(share, form);
  });
}

}  // namespace hpcrl
