// The five recurrences on CUDA: kernels around the bodies of recurrence_device.cuh, and their launchers.

#include <cuda_runtime.h>

#include "recurrence_device.cuh"

namespace hpcrl {
namespace {

// ---- Kernels -------------------------------------------------------------------------------------------------------

// Blocks a multiprocessor, by the columns that an op reads: what the registers allow without a spill. An A100's memory
// needs fewer bytes in flight, and its code more registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kResidentBlocks[] = {0, 5, 5, 5, 5};  // 96 registers a thread
#else
constexpr int kResidentBlocks[] = {0, 7, 7, 6, 7};  // 72; V-trace 80
#endif

template <class Op>
__global__ void __launch_bounds__(DeviceTile<Op>::kThreads, kResidentBlocks[kNumColumns<Op>])
    recurrence_kernel(const __grid_constant__ RecurrenceTask task, const __grid_constant__ Op op) {
  __shared__ TileMemory<DeviceTile<Op>> memory;
  recurrence_block<Op, DeviceTile<Op>>(task, op, memory);
}

__global__ void __launch_bounds__(kMomentsThreads) moments_kernel(const __grid_constant__ RecurrenceTask task) {
  __shared__ MomentsMemory memory;
  moments_block(task, memory);
}

}  // namespace

// ---- Launchers -----------------------------------------------------------------------------------------------------

size_t recurrence_workspace_bytes(int64_t /*num_trajectories*/, int64_t num_steps) {
  const int64_t num_tiles = num_tiles_of(num_steps, kVector - 1, kSmallestDeviceTile);
  return workspace_of(num_tiles, kDeviceGroup).bytes;
}

template <class Op>
cudaError_t recurrence_cuda(const Op& op, const RecurrenceArguments& arguments, void* workspace, cudaStream_t stream) {
  using Shape = DeviceTile<Op>;
  const RecurrenceTask task = task_of<Shape>(arguments, workspace);
  if (task.num_tiles > 0) {
    const size_t published_bytes = workspace_of(task.num_tiles, Shape::kGroup).published_bytes;
    const cudaError_t status = cudaMemsetAsync(workspace, 0xFF, published_bytes, stream);
    if (status != cudaSuccess) return status;
    recurrence_kernel<Op><<<static_cast<unsigned>(task.num_tiles), Shape::kThreads, 0, stream>>>(task, op);
  }
  if (arguments.moments != nullptr) moments_kernel<<<1, kMomentsThreads, 0, stream>>>(task);
  return cudaGetLastError();
}

template cudaError_t recurrence_cuda(const Gae&, const RecurrenceArguments&, void*, cudaStream_t);
template cudaError_t recurrence_cuda(const TdLambda&, const RecurrenceArguments&, void*, cudaStream_t);
template cudaError_t recurrence_cuda(const RewardToGo&, const RecurrenceArguments&, void*, cudaStream_t);
template cudaError_t recurrence_cuda(const VTrace&, const RecurrenceArguments&, void*, cudaStream_t);
template cudaError_t recurrence_cuda(const Retrace&, const RecurrenceArguments&, void*, cudaStream_t);

}  // namespace hpcrl
