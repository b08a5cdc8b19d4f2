// The kernels on a real GPU, without Python: small enough to run under compute-sanitizer.
//
// Exit status: 0 all well; 1 a wrong number or a CUDA error; 77 no CUDA device here.

#include <cuda_runtime.h>

#include <cstdio>
#include <string>

#include "kernels/ops.h"
#include "packed_batch.h"

namespace {

using hpcrl::Element;

int failures = 0;

void check(bool holds, const std::string& name, const std::string& what) {
  if (holds) return;
  std::printf("FAILED %s: %s\n", name.c_str(), what.c_str());
  ++failures;
}

void want(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("FAILED %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

// Bytes on the device, as large as asked for and no larger, so that memcheck sees what lies behind them.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes, int fill = 0) : bytes_(bytes) {
    if (bytes_ > 0) want(cudaMalloc(&data_, bytes_), "cudaMalloc");
    if (bytes_ > 0) want(cudaMemset(data_, fill, bytes_), "cudaMemset");
  }
  DeviceBytes(const void* host, size_t bytes) : DeviceBytes(bytes) {
    if (bytes > 0) want(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;
  ~DeviceBytes() { cudaFree(data_); }
  char* data() const { return static_cast<char*>(data_); }
  size_t size() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// One column, `skew` elements off the allocation's border.
class Column {
 public:
  Column(const std::vector<float>& numbers, Element element, int skew)
      : element_(element),
        width_(element == Element::kFloat32 ? 4 : 2),
        skew_(skew),
        bytes_((numbers.size() + skew) * width_) {
    std::vector<char> host(bytes_.size());
    for (size_t i = 0; i < numbers.size(); ++i) {
      const uint32_t bits = std::bit_cast<uint32_t>(numbers[i]) >> (width_ == 4 ? 0 : 16);
      std::memcpy(host.data() + (skew + i) * width_, &bits, width_);
    }
    if (!host.empty()) want(cudaMemcpy(bytes_.data(), host.data(), host.size(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  hpcrl::Column column() const { return {bytes_.data() + skew_ * width_, element_}; }

 private:
  Element element_;
  size_t width_, skew_;
  DeviceBytes bytes_;
};

struct Options {
  Element element = Element::kFloat32;
  int input_skew = 0, output_skew = 0;
};

struct Result {
  std::vector<float> advantages, returns;  // of graph replays and direct launches alike
  double moments[3] = {};
};

// Outputs with guards of `kGuard` floats on either side, all 0xFF = NaN before the launch.
std::vector<float> read_output(const DeviceBytes& bytes, int64_t size, int skew, const std::string& name) {
  std::vector<uint32_t> words(bytes.size() / 4);
  want(cudaMemcpy(words.data(), bytes.data(), bytes.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
  const int64_t begin = packed::kGuard + skew;
  for (int64_t i = 0; i < static_cast<int64_t>(words.size()); ++i) {
    if (i < begin || i >= begin + size) check(words[i] == 0xFFFFFFFFu, name, "wrote outside its outputs");
  }
  std::vector<float> numbers(size);
  if (size > 0) std::memcpy(numbers.data(), words.data() + begin, 4 * size);
  return numbers;
}

// Launches once; with `replays` > 0 the launch is captured in a graph, which then runs so many times.
template <class Op>
Result run(const std::string& name, const Op& op, const packed::Batch& batch, const Options& options, int replays = 0) {
  const Column rewards(batch.rewards, options.element, options.input_skew);
  const Column values(batch.values, options.element, options.input_skew);
  const Column action_values(batch.action_values, options.element, options.input_skew);
  const Column ratios(batch.ratios, options.element, options.input_skew);
  const Column bootstrap_values(batch.bootstrap_values, options.element, 1);
  const DeviceBytes offsets(batch.offsets.data(), 8 * batch.offsets.size()), moments(24, 0xFF);
  const size_t room = 4 * (batch.num_steps() + 2 * packed::kGuard + options.output_skew);
  const DeviceBytes advantages(room, 0xFF), returns(room, 0xFF);
  const DeviceBytes workspace(hpcrl::recurrence_workspace_bytes(batch.num_trajectories(), batch.num_steps()), 0xA5);
  const auto begin = [&](const DeviceBytes& output) {
    return reinterpret_cast<float*>(output.data()) + packed::kGuard + options.output_skew;
  };
  hpcrl::RecurrenceArguments arguments = {};
  arguments.rewards = rewards.column();
  if (Op::kReadsValues) arguments.values = values.column();
  if (Op::kReadsActionValues) arguments.action_values = action_values.column();
  if (Op::kReadsRatios) arguments.ratios = ratios.column();
  arguments.bootstrap_values = bootstrap_values.column();
  arguments.offsets = reinterpret_cast<const int64_t*>(offsets.data());
  arguments.num_trajectories = batch.num_trajectories();
  arguments.num_steps = batch.num_steps();
  if (Op::kWritesAdvantages) arguments.advantages = begin(advantages);
  arguments.returns = begin(returns);
  arguments.moments = reinterpret_cast<double*>(moments.data());

  cudaStream_t stream;
  want(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  if (replays > 0) want(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  want(hpcrl::recurrence_cuda(op, arguments, workspace.data(), stream), "recurrence_cuda");
  if (replays > 0) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    want(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    want(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    for (int i = 0; i < replays; ++i) want(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
    want(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    want(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
    want(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }
  want(cudaStreamSynchronize(stream), "the kernel");
  want(cudaStreamDestroy(stream), "cudaStreamDestroy");

  Result result;
  if (Op::kWritesAdvantages) result.advantages = read_output(advantages, batch.num_steps(), options.output_skew, name);
  result.returns = read_output(returns, batch.num_steps(), options.output_skew, name);
  want(cudaMemcpy(result.moments, moments.data(), 24, cudaMemcpyDeviceToHost), "cudaMemcpy");
  return result;
}

bool same_bits(const Result& a, const Result& b) {
  const auto same = [](const std::vector<float>& x, const std::vector<float>& y) {
    return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), 4 * x.size()) == 0);
  };
  return same(a.advantages, b.advantages) && same(a.returns, b.returns) && std::memcmp(a.moments, b.moments, 24) == 0;
}

template <class Op>
void check_case(const std::string& name, const Op& op, const std::vector<int64_t>& lengths,
                const Options& options = {}) {
  const packed::Batch batch = packed::batch_of(lengths, 1);
  const Result given = run(name, op, batch, options);
  const packed::Expected wanted = packed::expected(op, batch);
  const double advantages = Op::kWritesAdvantages ? packed::relative_error(given.advantages, wanted.advantages) : 0.0;
  const double returns = packed::relative_error(given.returns, wanted.returns);
  check(advantages <= 1e-6 && returns <= 1e-6, name, "relative error above 1e-6");
  double sum = 0, squares = 0;
  for (const float number : Op::kWritesAdvantages ? given.advantages : given.returns) {
    sum += number, squares += static_cast<double>(number) * number;
  }
  check(given.moments[0] == static_cast<double>(batch.num_steps()), name, "moments: wrong n");
  check(std::abs(given.moments[1] - sum) <= 1e-12 * (squares + 1), name, "moments: wrong sum");
  check(std::abs(given.moments[2] - squares) <= 1e-12 * (squares + 1), name, "moments: wrong sum of squares");
  check(same_bits(given, run(name, op, batch, options)), name, "a second launch gives other bits");
  check(same_bits(given, run(name, op, batch, options, 3)), name, "three replays of a graph give other bits");
  std::printf("%-52s %8lld steps  %.1e\n", name.c_str(), static_cast<long long>(batch.num_steps()),
              std::fmax(advantages, returns));
}

template <class Op>
void check_op(const std::string& name, const Op& op) {
  std::vector<int64_t> ragged, tiles = {1023, 1024, 1025, 1535, 1536, 1537, 2047, 2048, 2049, 3071, 3072, 3073};
  for (int64_t i = 0; i < 200; ++i) ragged.push_back(i * i % 131);
  check_case(name + ", empty", op, {});
  check_case(name + ", empty trajectories", op, {0, 0, 0});
  check_case(name + ", one step", op, {1});
  check_case(name + ", ragged", op, ragged);
  check_case(name + ", around tiles", op, tiles);
  check_case(name + ", long", op, {5, 300 * 2048 + 77, 0, 40000});  // past a group of 256 tiles
  for (int skew = 1; skew < 4; ++skew) {
    const std::string off = " off by " + std::to_string(skew);
    check_case(name + ", all columns" + off, op, tiles, {Element::kFloat32, skew, skew});
    check_case(name + ", inputs alone" + off, op, tiles, {Element::kFloat32, skew, 0});
    check_case(name + ", bfloat16" + off, op, tiles, {Element::kBfloat16, skew, skew});
  }
}

template <class Number, class Host, class Device>
void check_random(const char* name, size_t size, Host host, Device device) {
  std::vector<Number> wanted(size), given(size);
  host(wanted.data());
  const DeviceBytes out(sizeof(Number) * size, 0xFF);
  want(device(reinterpret_cast<Number*>(out.data())), name);
  want(cudaMemcpy(given.data(), out.data(), out.size(), cudaMemcpyDeviceToHost), name);
  check(std::memcmp(given.data(), wanted.data(), sizeof(Number) * size) == 0, name, "other bits than the CPU's");
}

void check_random_numbers() {
  constexpr int64_t kRows = 10000, kCount = 5;
  constexpr uint64_t kSeed = 0x0123456789ABCDEFull;
  std::mt19937 random(3);
  std::vector<uint32_t> counters(4 * kRows);
  for (int64_t i = 0; i < 4 * kRows; ++i) counters[i] = i % 4 == 3 ? random() % 256 : random();
  const DeviceBytes on_device(counters.data(), 4 * counters.size());
  const uint32_t* there = reinterpret_cast<const uint32_t*>(on_device.data());
  check_random<uint32_t>(
      "philox", 4 * kRows, [&](uint32_t* out) { hpcrl::philox_cpu(kSeed, counters.data(), kRows, out); },
      [&](uint32_t* out) { return hpcrl::philox_cuda(kSeed, there, kRows, out, nullptr); });
  check_random<double>(
      "uniforms", kRows * kCount, [&](double* out) { hpcrl::uniforms_cpu(kSeed, counters.data(), kRows, kCount, out); },
      [&](double* out) { return hpcrl::uniforms_cuda(kSeed, there, kRows, kCount, out, nullptr); });
  check_random<float>(
      "normals", kRows * kCount, [&](float* out) { hpcrl::normals_cpu(kSeed, counters.data(), kRows, kCount, out); },
      [&](float* out) { return hpcrl::normals_cuda(kSeed, there, kRows, kCount, out, nullptr); });
}

}  // namespace

int main() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    std::printf("no CUDA device here: %s\n", cudaGetErrorString(status));
    return 77;
  }
  check_op("gae", hpcrl::Gae{0.99, 0.95});
  check_op("gae undiscounted", hpcrl::Gae{1.0, 1.0});
  check_op("td_lambda", hpcrl::TdLambda{0.99, 0.9});
  check_op("reward_to_go", hpcrl::RewardToGo{0.97});
  check_op("vtrace", hpcrl::VTrace{0.99, 0.95, 1.0, 1.0});
  check_op("retrace", hpcrl::Retrace{0.99, 0.95});
  check_random_numbers();
  std::printf("%s\n", failures == 0 ? "all well" : "FAILED");
  return failures == 0 ? 0 : 1;
}
