// The module hpcrl._kernels. Its functions check and compute; the faces in hpcrl/ops document and allocate.

#include "bindings.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "array.h"
#include "isa.h"
#include "stream.h"

namespace hpcrl {
namespace {

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa isa : kAllIsas) {
    if (isa_supported(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

// For benchmarks/bench_recurrence.py: aligned f32 arrays of one length, a multiple of 16.
void stream(py::handle first, py::handle second, py::handle sums, py::handle differences, bool nontemporal,
            bool descending, int num_threads) {
  const Array inputs[] = {borrow("first", first), borrow("second", second)};
  const Array outputs[] = {borrow("sums", sums), borrow("differences", differences)};
  for (const Array* array : {&inputs[0], &inputs[1], &outputs[0], &outputs[1]}) {
    want_cpu(*array);
    want_kind(*array, {Kind::kFloat32});
    want_shape(*array, {inputs[0].size() / 16 * 16}, "a multiple of 16, as first");
    if (reinterpret_cast<uintptr_t>(array->data) % 64 != 0) {
      throw py::value_error(std::string(array->name) + ": want memory aligned to 64 bytes");
    }
  }
  want_output(outputs[0], {&inputs[0], &inputs[1], &outputs[1]});
  want_output(outputs[1], {&inputs[0], &inputs[1], &outputs[0]});
  const py::gil_scoped_release release;
  stream_cpu({inputs[0].as<float>(), inputs[1].as<float>(), outputs[0].as<float>(), outputs[1].as<float>(),
              inputs[0].size() / 16},
             {nontemporal, descending}, num_threads);
}

}  // namespace
}  // namespace hpcrl

PYBIND11_MODULE(_kernels, module) {
  module.doc() = "The compiled kernels of hpcrl; use their faces in hpcrl.ops.";
#ifdef HPCRL_WITH_CUDA
  module.attr("WITH_CUDA") = true;
#else
  module.attr("WITH_CUDA") = false;
#endif
  module.def("supported_isas", &hpcrl::supported_isas);
  module.def("isa", [] { return hpcrl::isa_name(hpcrl::isa()); });
  module.def("set_isa", [](const std::string& name) { hpcrl::set_isa(name.c_str()); });
  module.def("stream", &hpcrl::stream);
  hpcrl::bind_random(module);
  hpcrl::bind_recurrence(module);
}
