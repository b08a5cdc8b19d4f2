// The recurrences for Python: what arrays must look like, and which device takes them. hpcrl/ops/recurrence.py
// allocates.

#include <cmath>
#include <string>

#include "array.h"
#include "bindings.h"
#include "ops.h"

namespace hpcrl {
namespace {

// How the arguments of one call arrive: absent ones are None.
struct Given {
  py::handle rewards, values, action_values, ratios, bootstrap_values, offsets;
  py::handle advantages, returns, moments;
  int num_threads;
  py::handle workspace;  // CUDA only
  uintptr_t stream;      // CUDA only
};

// The same, borrowed and checked.
struct Borrowed {
  Array rewards, values, action_values, ratios, bootstrap_values, offsets, advantages, returns, moments;
  RecurrenceArguments arguments{};
};

void want_fraction(const char* name, double number) {
  if (number >= 0.0 && number <= 1.0) return;
  throw py::value_error(std::string(name) + ": want a number in [0, 1], got " +
                        std::string(py::str(py::float_(number))));
}

void want_positive(const char* name, double number) {
  if (number > 0.0) return;
  throw py::value_error(std::string(name) + ": want a number > 0, got " + std::string(py::str(py::float_(number))));
}

void want_built_for(const char* op, const Array& rewards) {
#ifdef HPCRL_WITH_CUDA
  (void)op, (void)rewards;
#else
  if (rewards.device == kOnCpu) return;
  throw std::runtime_error(std::string(op) + ": rewards is on " + rewards.device_name() +
                           ", but hpcrl was built without CUDA; rebuild it where nvcc is with pip install "
                           "-C cmake.define.HPCRL_CUDA=ON, or move the arrays to the CPU");
#endif
}

Array borrow_steps(const char* name, py::handle object, const Array& rewards) {
  Array array = borrow(name, object);
  want_kind(array, {Kind::kFloat32, Kind::kBfloat16});
  want_shape(array, {rewards.shape[0]}, "len(rewards)");
  want_device(array, rewards);
  return array;
}

Array borrow_output(const char* name, py::handle object, const Array& rewards) {
  if (object.is_none()) {
    throw py::value_error(std::string(name) +
                          ": want an array to write into, because none can be made in the library of "
                          "rewards; pass " +
                          name + "=");
  }
  Array array = borrow(name, object);
  want_kind(array, {Kind::kFloat32});
  want_shape(array, {rewards.shape[0]}, "len(rewards)");
  want_device(array, rewards);
  return array;
}

void want_rising_offsets(const Array& offsets, int64_t num_steps) {
  const int64_t* values = offsets.as<int64_t>();
  const int64_t last = offsets.shape[0] - 1;
  bool rising = true;
  for (int64_t i = 0; i < last; ++i) rising &= values[i] <= values[i + 1];
  if (rising && values[0] == 0 && values[last] == num_steps) return;
  std::string given = "from " + std::to_string(values[0]) + " to " + std::to_string(values[last]);
  for (int64_t i = 0; !rising && i < last; ++i) {
    if (values[i] <= values[i + 1]) continue;
    given = "offsets[" + std::to_string(i) + "] = " + std::to_string(values[i]) + " above offsets[" +
            std::to_string(i + 1) + "] = " + std::to_string(values[i + 1]);
    break;
  }
  throw py::value_error("offsets: want them to rise from 0 to " + std::to_string(num_steps) +
                        " (= len(rewards)), got " + given);
}

template <class Op>
Borrowed borrow_all(const char* name, const Given& given) {
  Borrowed b;
  b.rewards = borrow("rewards", given.rewards);
  want_built_for(name, b.rewards);
  want_kind(b.rewards, {Kind::kFloat32, Kind::kBfloat16});
  want_shape(b.rewards, {b.rewards.size()}, "one number a step");
  if constexpr (Op::kReadsValues) b.values = borrow_steps("values", given.values, b.rewards);
  if constexpr (Op::kReadsActionValues) b.action_values = borrow_steps("action_values", given.action_values, b.rewards);
  if constexpr (Op::kReadsRatios) b.ratios = borrow_steps("ratios", given.ratios, b.rewards);
  b.offsets = borrow("offsets", given.offsets);
  want_kind(b.offsets, {Kind::kInt64});
  want_device(b.offsets, b.rewards);
  if (b.offsets.ndim != 1 || b.offsets.shape[0] < 1) {
    throw py::value_error("offsets: want shape (num_trajectories + 1,), at least [0], got " +
                          std::to_string(b.offsets.ndim) + " dimensions and " + std::to_string(b.offsets.size()) +
                          " elements");
  }
  b.bootstrap_values = borrow("bootstrap_values", given.bootstrap_values);
  want_kind(b.bootstrap_values, {Kind::kFloat32, Kind::kBfloat16});
  want_shape(b.bootstrap_values, {b.offsets.shape[0] - 1}, "len(offsets) - 1");
  want_device(b.bootstrap_values, b.rewards);
  if constexpr (Op::kWritesAdvantages) b.advantages = borrow_output("out", given.advantages, b.rewards);
  b.returns = borrow_output(Op::kWritesAdvantages ? "returns_out" : "out", given.returns, b.rewards);
  if (!given.moments.is_none()) {
    b.moments = borrow("moments_out", given.moments);
    want_kind(b.moments, {Kind::kFloat64});
    want_shape(b.moments, {3}, "n, sum, sum of squares");
    want_device(b.moments, b.rewards);
  }
  for (const Array* out : {&b.advantages, &b.returns, &b.moments}) {
    want_output(*out, {&b.rewards, &b.values, &b.action_values, &b.ratios, &b.bootstrap_values, &b.offsets,
                       out == &b.advantages ? &b.returns : &b.advantages, out == &b.moments ? &b.returns : &b.moments});
  }
  b.arguments = {b.rewards.column(),          b.values.column(),       b.action_values.column(), b.ratios.column(),
                 b.bootstrap_values.column(), b.offsets.as<int64_t>(), b.offsets.shape[0] - 1,   b.rewards.shape[0],
                 b.advantages.as<float>(),    b.returns.as<float>(),   b.moments.as<double>()};
  return b;
}

#ifdef HPCRL_WITH_CUDA

// Launches on the device that owns the arrays, and leaves the caller's choice of device as it was.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    cudaGetDevice(&before_);
    if (before_ != device) cudaSetDevice(device);
    changed_ = before_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class Op>
void launch(const char* name, const Op& op, const Borrowed& b, const Given& given) {
  const Array workspace = borrow("workspace", given.workspace);
  const size_t wanted = recurrence_workspace_bytes(b.arguments.num_trajectories, b.arguments.num_steps);
  want_device(workspace, b.rewards);
  if (workspace.bytes() < wanted) {
    throw py::value_error("workspace: want at least " + std::to_string(wanted) + " bytes, got " +
                          std::to_string(workspace.bytes()));
  }
  cudaError_t status;
  {
    const py::gil_scoped_release release;
    const DeviceGuard guard(b.rewards.device);
    status = recurrence_cuda(op, b.arguments, workspace.data, reinterpret_cast<cudaStream_t>(given.stream));
  }
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(name) + ": CUDA error " + cudaGetErrorString(status) +
                             " (num_steps=" + std::to_string(b.arguments.num_steps) +
                             ", num_trajectories=" + std::to_string(b.arguments.num_trajectories) + ")");
  }
}

#else

#endif

template <class Op>
void run(const char* name, const Op& op, const Given& given) {
  if (given.num_threads < 1) {
    throw py::value_error("num_threads: want at least 1, got " + std::to_string(given.num_threads));
  }
  const Borrowed b = borrow_all<Op>(name, given);
#ifdef HPCRL_WITH_CUDA
  if (b.rewards.device != kOnCpu) return launch(name, op, b, given);
#endif
  want_rising_offsets(b.offsets, b.rewards.shape[0]);
  const py::gil_scoped_release release;
  recurrence_cpu(op, b.arguments, given.num_threads);
}

void gae(py::handle rewards, py::handle values, py::handle bootstrap_values, py::handle offsets, double gamma,
         double gae_lambda, py::handle out, py::handle returns_out, py::handle moments_out, int num_threads,
         py::handle workspace, uintptr_t stream) {
  want_fraction("gamma", gamma);
  want_fraction("gae_lambda", gae_lambda);
  const py::none none;
  run("gae", Gae{gamma, gae_lambda},
      {rewards, values, none, none, bootstrap_values, offsets, out, returns_out, moments_out, num_threads, workspace,
       stream});
}

void td_lambda(py::handle rewards, py::handle values, py::handle bootstrap_values, py::handle offsets, double gamma,
               double trace_lambda, py::handle out, py::handle moments_out, int num_threads, py::handle workspace,
               uintptr_t stream) {
  want_fraction("gamma", gamma);
  want_fraction("td_lambda", trace_lambda);
  const py::none none;
  run("td_lambda", TdLambda{gamma, trace_lambda},
      {rewards, values, none, none, bootstrap_values, offsets, none, out, moments_out, num_threads, workspace, stream});
}

void reward_to_go(py::handle rewards, py::handle bootstrap_values, py::handle offsets, double gamma, py::handle out,
                  py::handle moments_out, int num_threads, py::handle workspace, uintptr_t stream) {
  want_fraction("gamma", gamma);
  const py::none none;
  run("reward_to_go", RewardToGo{gamma},
      {rewards, none, none, none, bootstrap_values, offsets, none, out, moments_out, num_threads, workspace, stream});
}

void vtrace(py::handle rewards, py::handle values, py::handle bootstrap_values, py::handle offsets, py::handle ratios,
            double gamma, double trace_lambda, double rho_clip, double c_clip, py::handle out, py::handle returns_out,
            py::handle moments_out, int num_threads, py::handle workspace, uintptr_t stream) {
  want_fraction("gamma", gamma);
  want_fraction("trace_lambda", trace_lambda);
  want_positive("rho_clip", rho_clip);
  want_positive("c_clip", c_clip);
  const py::none none;
  run("vtrace", VTrace{gamma, trace_lambda, rho_clip, c_clip},
      {rewards, values, none, ratios, bootstrap_values, offsets, out, returns_out, moments_out, num_threads, workspace,
       stream});
}

void retrace(py::handle rewards, py::handle values, py::handle bootstrap_values, py::handle offsets,
             py::handle action_values, py::handle ratios, double gamma, double trace_lambda, py::handle out,
             py::handle returns_out, py::handle moments_out, int num_threads, py::handle workspace, uintptr_t stream) {
  want_fraction("gamma", gamma);
  want_fraction("trace_lambda", trace_lambda);
  run("retrace", Retrace{gamma, trace_lambda},
      {rewards, values, action_values, ratios, bootstrap_values, offsets, out, returns_out, moments_out, num_threads,
       workspace, stream});
}

}  // namespace

void bind_recurrence(py::module_& module) {
  module.def("gae", &gae);
  module.def("td_lambda", &td_lambda);
  module.def("reward_to_go", &reward_to_go);
  module.def("vtrace", &vtrace);
  module.def("retrace", &retrace);
  module.def("nontemporal_bytes", &nontemporal_bytes);
  module.def("set_nontemporal_bytes", [](int64_t bytes) {
    if (bytes < 0) throw py::value_error("bytes: want a number >= 0, got " + std::to_string(bytes));
    set_nontemporal_bytes(bytes);
  });
#ifdef HPCRL_WITH_CUDA
  module.def("recurrence_workspace_bytes", &recurrence_workspace_bytes);
#endif
}

}  // namespace hpcrl
