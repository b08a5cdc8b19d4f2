// Everything compiled for AVX2 and FMA.

#include "floats_avx2.h"
#include "recurrence.h"
#include "stream.h"

namespace hpcrl::avx2 {

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

}  // namespace hpcrl::avx2
