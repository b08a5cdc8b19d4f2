// Counted random numbers on CUDA: the bits of random.cpp, a thread for each counter block.

#include <cuda_runtime.h>

#include "ops.h"
#include "random_device.cuh"

namespace hpcrl {
namespace {

constexpr int kThreads = 256;

// ---- Kernels -------------------------------------------------------------------------------------------------------

__global__ void philox_kernel(uint64_t seed, const uint32_t* counters, int64_t n, uint32_t* words) {
  philox_body(seed, counters, n, words);
}
__global__ void uniforms_kernel(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, double* out) {
  uniforms_body(seed, counters, n, count, out);
}
__global__ void normals_kernel(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, float* out) {
  normals_body(seed, counters, n, count, out);
}

unsigned grid_of(int64_t n, int64_t count) {
  return static_cast<unsigned>((n * ((count + 1) / 2) + kThreads - 1) / kThreads);
}

}  // namespace

// ---- Launchers -----------------------------------------------------------------------------------------------------

cudaError_t philox_cuda(uint64_t seed, const uint32_t* counters, int64_t n, uint32_t* words, cudaStream_t stream) {
  if (n == 0) return cudaSuccess;
  philox_kernel<<<grid_of(n, 2), kThreads, 0, stream>>>(seed, counters, n, words);
  return cudaGetLastError();
}

cudaError_t uniforms_cuda(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, double* out,
                          cudaStream_t stream) {
  if (n == 0 || count == 0) return cudaSuccess;
  uniforms_kernel<<<grid_of(n, count), kThreads, 0, stream>>>(seed, counters, n, count, out);
  return cudaGetLastError();
}

cudaError_t normals_cuda(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, float* out,
                         cudaStream_t stream) {
  if (n == 0 || count == 0) return cudaSuccess;
  normals_kernel<<<grid_of(n, count), kThreads, 0, stream>>>(seed, counters, n, count, out);
  return cudaGetLastError();
}

}  // namespace hpcrl
