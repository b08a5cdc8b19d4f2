// The random kernels' bodies on emulated blocks: bit for bit what random.cpp gives, and nothing beside the outputs.

#include "emulation.h"

#include <cstdio>

#include "kernels/ops.h"
#include "kernels/random_device.cuh"

namespace {

constexpr uint64_t kSeed = 0x0123456789ABCDEFull;
constexpr int kThreads = 64;
int failures = 0;

struct Nothing {};

std::vector<uint32_t> counters_of(int64_t n) {
  std::mt19937 random(7);
  std::vector<uint32_t> counters(4 * n);
  for (int64_t i = 0; i < 4 * n; ++i)
    counters[i] = i % 4 == 3 ? random() % 256 : random();  // the last word names a draw
  return counters;
}

// `launch(out)` fills n * width numbers from many threads; `expect(out)` from one loop.
template <class Number, class Launch, class Expect>
void check(const char* name, int64_t size, Launch launch, Expect expect) {
  std::vector<Number> given(size, Number(-7)), wanted(size, Number(-9));
  launch(given.data());
  expect(wanted.data());
  const bool same = size == 0 || std::memcmp(given.data(), wanted.data(), sizeof(Number) * size) == 0;
  std::printf("%s%s, %lld numbers\n", same ? "" : "FAILED ", name, static_cast<long long>(size));
  failures += !same;
}

template <class Body>
void emulate(int64_t draws, Body body) {
  const int grid = static_cast<int>((draws + kThreads - 1) / kThreads);
  if (grid == 0) return;
  emulation::run<Nothing>({.grid = grid, .threads = kThreads, .resident = 2}, [&](Nothing&) { body(); });
}

void check_rows(int64_t n, int64_t count) {
  const std::vector<uint32_t> counters = counters_of(n);
  const int64_t draws = n * ((count + 1) / 2);
  check<double>(
      "uniforms", n * count,
      [&](double* out) { emulate(draws, [&] { hpcrl::uniforms_body(kSeed, counters.data(), n, count, out); }); },
      [&](double* out) { hpcrl::uniforms_cpu(kSeed, counters.data(), n, count, out); });
  check<float>(
      "normals", n * count,
      [&](float* out) { emulate(draws, [&] { hpcrl::normals_body(kSeed, counters.data(), n, count, out); }); },
      [&](float* out) { hpcrl::normals_cpu(kSeed, counters.data(), n, count, out); });
}

// Salmon et al.'s known answer for Philox4x32-10: all ones as key and counter.
void check_known_answer() {
  const std::vector<uint32_t> counter(4, 0xFFFFFFFFu), wanted = {0x408F276Du, 0x41C83B0Eu, 0xA20BC7C6u, 0x6D5451FDu};
  check<uint32_t>(
      "philox, known answer", 4,
      [&](uint32_t* out) { emulate(1, [&] { hpcrl::philox_body(~uint64_t{0}, counter.data(), 1, out); }); },
      [&](uint32_t* out) { std::copy(wanted.begin(), wanted.end(), out); });
}

}  // namespace

int main() {
  check_known_answer();
  for (const int64_t n : {0, 1, 63, 64, 65, 200}) {
    const std::vector<uint32_t> counters = counters_of(n);
    check<uint32_t>(
        "philox", 4 * n,
        [&](uint32_t* out) { emulate(n, [&] { hpcrl::philox_body(kSeed, counters.data(), n, out); }); },
        [&](uint32_t* out) { hpcrl::philox_cpu(kSeed, counters.data(), n, out); });
  }
  check_rows(0, 3);
  check_rows(1, 1);
  check_rows(37, 1);
  check_rows(37, 2);
  check_rows(50, 5);
  check_rows(2, 301);
  std::printf("%s\n", failures == 0 ? "all well" : "FAILED");
  return failures == 0 ? 0 : 1;
}
