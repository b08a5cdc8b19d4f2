// Everything compiled for AVX-512 (F, BW, VL, DQ).

#include "floats_avx512.h"
#include "recurrence.h"
#include "stream.h"

namespace hpcrl::avx512 {

template <class Op>
void walk(const Op& op, const RecurrenceArguments& arguments, const ChunkRange& chunks) {
  walk_chunks<Floats, Sums>(op, arguments, chunks);
}

template void walk<Gae>(const Gae&, const RecurrenceArguments&, const ChunkRange&);
template void walk<TdLambda>(const TdLambda&, const RecurrenceArguments&, const ChunkRange&);
template void walk<RewardToGo>(const RewardToGo&, const RecurrenceArguments&, const ChunkRange&);
template void walk<VTrace>(const VTrace&, const RecurrenceArguments&, const ChunkRange&);
template void walk<Retrace>(const Retrace&, const RecurrenceArguments&, const ChunkRange&);

void stream(const StreamArguments& arguments, StreamForm form) {
  stream_to<Floats>(arguments, form);
}

}  // namespace hpcrl::avx512
