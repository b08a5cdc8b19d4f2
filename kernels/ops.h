// Every op once, on two devices: declarations.
//
// Nothing is checked here: bindings.cpp checks. Pointers need no alignment beyond their element's; offsets start at 0,
// never fall, and end at num_steps. Outputs overlap no input and no other output.
//
// The launchers for CUDA take a stream, return the launch's cudaError_t, never allocate (each has a
// ..._workspace_bytes; the caller passes the buffer, aligned to 256 bytes, contents irrelevant before and after), never
// synchronise, and read no device memory from the host, so that a CUDA graph can capture them. Empty batches are legal.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "math.h"

#ifdef HPCRL_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace hpcrl {

enum class Element : int32_t { kFloat32, kBfloat16 };

// A borrowed one-dimensional input; nullptr where an op does not read it.
struct Column {
  const void* data;
  Element element;
};

// ---- Recurrences over packed trajectories -------------------------------------------------------------------------

// One struct for all five ops of math.h. num_steps = offsets[num_trajectories].
struct RecurrenceArguments {
  Column rewards;           // [num_steps]
  Column values;            // [num_steps]           if Op::kReadsValues
  Column action_values;     // [num_steps]           if Op::kReadsActionValues
  Column ratios;            // [num_steps]           if Op::kReadsRatios
  Column bootstrap_values;  // [num_trajectories]
  const int64_t* offsets;   // [num_trajectories + 1]
  int64_t num_trajectories;
  int64_t num_steps;
  float* advantages;  // [num_steps]           if Op::kWritesAdvantages, else nullptr
  float* returns;     // [num_steps]
  double* moments;    // [3] = (n, sum, sum of squares) of the advantages (else of the returns), or nullptr
};

// Ops: Gae, TdLambda, RewardToGo, VTrace, Retrace (instantiated in the .cpp and the .cu). A trajectory's outputs have
// the same bits wherever it lies in the packed arrays and whatever lies beside it; all outputs have the same bits for
// any num_threads.
template <class Op>
void recurrence_cpu(const Op& op, const RecurrenceArguments& arguments, int num_threads);

#ifdef HPCRL_WITH_CUDA
// On CUDA, every run gives the same bits; where a trajectory lies among the tiles changes its outputs by rounding only.
size_t recurrence_workspace_bytes(int64_t num_trajectories, int64_t num_steps);
template <class Op>
cudaError_t recurrence_cuda(const Op& op, const RecurrenceArguments& arguments, void* workspace, cudaStream_t stream);
#endif

// Bytes of inputs and outputs together from which the CPU writes past the caches (non-temporal stores).
// Starts as environment variable HPCRL_NONTEMPORAL_BYTES, else a default measured on a server CPU.
int64_t nontemporal_bytes();
void set_nontemporal_bytes(int64_t bytes);

// ---- Counted random numbers -----------------------------------------------------------------------------------------

// counters: u32[n, 4]. philox: words u32[n, 4]. The others use counter block k = 0, 1, ... of each row (random.h):
// uniforms f64[n, count] takes two words a number, normals f32[n, count] one block a pair (Box-Muller).
// Requires the low kDrawBits bits alone set in each counter's last word, and count <= 2 * kMaxWordBlocks.
void philox_cpu(uint64_t seed, const uint32_t* counters, int64_t n, uint32_t* words);
void uniforms_cpu(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, double* out);
void normals_cpu(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, float* out);
// A permutation of 0..n-1 (Fisher-Yates from the end), n <= 2 * kMaxWordBlocks. Host only: it is a serial walk.
void permutation_cpu(uint64_t seed, const uint32_t counter[4], int64_t n, int64_t* out);

#ifdef HPCRL_WITH_CUDA
cudaError_t philox_cuda(uint64_t seed, const uint32_t* counters, int64_t n, uint32_t* words, cudaStream_t stream);
cudaError_t uniforms_cuda(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, double* out,
                          cudaStream_t stream);
cudaError_t normals_cuda(uint64_t seed, const uint32_t* counters, int64_t n, int64_t count, float* out,
                         cudaStream_t stream);
#endif

}  // namespace hpcrl
