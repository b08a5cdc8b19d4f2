// A CUDA grid on the host: one std::thread per CUDA thread, so that the bodies of the CUDA kernels run under
// ThreadSanitizer and AddressSanitizer on a machine without a GPU.
//
//   __syncthreads          std::barrier over the block
//   __shfl_*, __ballot     32 slots and a std::barrier over the warp; the mask must be full, as in the kernels
//   __shared__             a fresh heap object per block, filled with 0xCD: AddressSanitizer sees its ends
//   published words        std::atomic_ref, with random pauses so that blocks meet in many orders
//   blocks                 `resident` of them at a time, begun in a random order
//
// Include this file before a *_device.cuh: it gives the names that nvcc knows by itself.
#pragma once

#undef HPCRL_WITH_CUDA  // the emulation stands in for the toolkit, whose headers name the same types

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#define HPCRL_EMULATION 1
#define __device__
#define __global__
#define __forceinline__ inline
#define __restrict__ __restrict

struct EmulatedIndex {
  unsigned x = 0, y = 0, z = 0;
};
inline thread_local EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

namespace emulation {

constexpr int kWarpSize = 32;

struct Warp {
  std::barrier<> barrier{kWarpSize};
  std::uint64_t slots[2][kWarpSize] = {};  // two sets in turn: one barrier an exchange is then enough
};

struct Block {
  explicit Block(int threads) : barrier(threads), warps(threads / kWarpSize) {}
  std::barrier<> barrier;
  std::vector<Warp> warps;
};

struct Thread {
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  int exchanges = 0;  // warp exchanges so far: its parity picks the set of slots
  int barriers = 0;   // __syncthreads passed in this block
  std::minstd_rand random;
};
inline thread_local Thread self;

struct Launch {
  int grid = 1;
  int threads = 32;          // per block, a multiple of 32
  int resident = 1;          // blocks that run at the same time
  unsigned seed = 0;         // order of the blocks and pauses
  int skipped_barrier = -1;  // this __syncthreads of every block is left out: a planted fault
  int max_pause_microseconds = 0;
};
inline Launch launched;  // written before the threads start, only read while they run

inline void pause() {
  if (launched.max_pause_microseconds == 0) return;
  std::this_thread::sleep_for(std::chrono::microseconds(self.random() % launched.max_pause_microseconds));
}

template <class Value>
std::uint64_t bits_of(Value value) {
  static_assert(sizeof(Value) <= 8 && std::is_trivially_copyable_v<Value>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(Value));
  return bits;
}

// Every lane gives a value; the slots of all 32 come back.
template <class Value>
const std::uint64_t* exchange(Value value) {
  std::uint64_t* slots = self.warp->slots[self.exchanges++ & 1];
  slots[self.lane] = bits_of(value);
  self.warp->barrier.arrive_and_wait();
  return slots;
}

template <class Value>
Value value_of(std::uint64_t bits) {
  Value value;
  std::memcpy(&value, &bits, sizeof(Value));
  return value;
}

// Runs body(shared) for every thread of every block; `Shared` is the block's shared memory.
template <class Shared, class Body>
void run(const Launch& launch, Body body) {
  launched = launch;
  std::vector<int> order(launch.grid);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::minstd_rand(launch.seed + 1));
  std::atomic<int> begun{0};

  struct Multiprocessor {  // runs one block after the other
    std::unique_ptr<Block> block;
    std::unique_ptr<Shared> shared;
    int index = -1;
  };
  const int resident = std::min(launch.resident, launch.grid);
  std::vector<Multiprocessor> multiprocessors(resident);
  std::vector<std::thread> threads;
  for (int m = 0; m < resident; ++m) {
    multiprocessors[m].block = std::make_unique<Block>(launch.threads);
    for (int t = 0; t < launch.threads; ++t) {
      threads.emplace_back([&, m, t] {
        Multiprocessor& here = multiprocessors[m];
        self = {here.block.get(),
                &here.block->warps[t / kWarpSize],
                t % kWarpSize,
                0,
                0,
                std::minstd_rand(launch.seed * 7919u + m * 1024u + t + 1)};
        threadIdx.x = t;
        blockDim.x = launch.threads;
        gridDim.x = launch.grid;
        for (;;) {
          if (t == 0) {
            const int next = begun.fetch_add(1);
            here.index = next < launch.grid ? order[next] : -1;
            here.shared.reset();
            if (here.index >= 0) {
              here.shared = std::make_unique_for_overwrite<Shared>();
              std::memset(static_cast<void*>(here.shared.get()), 0xCD, sizeof(Shared));
            }
          }
          here.block->barrier.arrive_and_wait();
          const int index = here.index;
          if (index < 0) return;
          blockIdx.x = index;
          self.barriers = 0;
          body(*here.shared);
          here.block->barrier.arrive_and_wait();
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace emulation

// ---- the names that nvcc knows by itself --------------------------------------------------------------------------

inline void __syncthreads() {
  if (emulation::self.barriers++ == emulation::launched.skipped_barrier) return;
  emulation::self.block->barrier.arrive_and_wait();
}

template <class Value>
Value __shfl_sync(unsigned, Value value, int lane) {
  return emulation::value_of<Value>(emulation::exchange(value)[lane & 31]);
}

template <class Value>
Value __shfl_down_sync(unsigned, Value value, unsigned distance) {
  const int source = emulation::self.lane + static_cast<int>(distance);
  return emulation::value_of<Value>(emulation::exchange(value)[source < 32 ? source : emulation::self.lane]);
}

inline unsigned __ballot_sync(unsigned, bool predicate) {
  const std::uint64_t* slots = emulation::exchange<std::uint32_t>(predicate ? 1u : 0u);
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane) ballot |= static_cast<unsigned>(slots[lane]) << lane;
  return ballot;
}

inline int __ffs(int bits) {
  return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1;
}
inline int __clz(int bits) {
  return std::countl_zero(static_cast<unsigned>(bits));
}
inline float __uint_as_float(unsigned bits) {
  return std::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return std::bit_cast<unsigned>(value);
}
inline void __nanosleep(unsigned) {
  std::this_thread::yield();
}

template <class Value>
Value __ldcs(const Value* address) {
  return *address;
}
template <class Value>
void __stcs(Value* address, Value value) {
  *address = value;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return std::atomic_ref<unsigned>(*address).fetch_add(value);
}

// Relaxed accesses at device scope; the device's own are in tile_spans.cuh.
inline std::uint64_t load_word(const std::uint64_t* address) {
  emulation::pause();
  return std::atomic_ref<std::uint64_t>(*const_cast<std::uint64_t*>(address)).load(std::memory_order_relaxed);
}
inline void store_word(std::uint64_t* address, std::uint64_t word) {
  emulation::pause();
  std::atomic_ref<std::uint64_t>(*address).store(word, std::memory_order_relaxed);
}
