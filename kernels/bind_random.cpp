// Counted random numbers for Python; hpcrl/ops/random.py makes the counters.

#include "array.h"
#include "bindings.h"
#include "random.h"

namespace hpcrl {
namespace {

Array borrow_counters(py::handle object) {
  const Array counters = borrow("counters", object);
  want_cpu(counters);
  want_kind(counters, {Kind::kUint32});
  want_shape(counters, {counters.shape[0], 4}, "");
  return counters;
}

py::array_t<uint32_t> philox_words(uint64_t seed, py::handle counters_object) {
  const Array counters = borrow_counters(counters_object);
  py::array_t<uint32_t> words({counters.shape[0], int64_t{4}});
  uint32_t* out = words.mutable_data();
  const py::gil_scoped_release release;
  philox_cpu(seed, counters.as<uint32_t>(), counters.shape[0], out);
  return words;
}

template <class T, void (*Fill)(uint64_t, const uint32_t*, int64_t, int64_t, T*)>
py::array_t<T> numbers(uint64_t seed, py::handle counters_object, int64_t count) {
  const Array counters = borrow_counters(counters_object);
  if (count < 0 || count > 2 * kMaxWordBlocks) {
    throw py::value_error("count: want 0 to " + std::to_string(2 * kMaxWordBlocks) + ", got " + std::to_string(count));
  }
  py::array_t<T> result({counters.shape[0], count});
  T* out = result.mutable_data();
  const py::gil_scoped_release release;
  Fill(seed, counters.as<uint32_t>(), counters.shape[0], count, out);
  return result;
}

py::array_t<int64_t> permutation(uint64_t seed, py::handle counters_object, int64_t n) {
  const Array counters = borrow_counters(counters_object);
  want_shape(counters, {1, 4}, "");
  if (n < 0 || n > 2 * kMaxWordBlocks) {
    throw py::value_error("n: want 0 to " + std::to_string(2 * kMaxWordBlocks) + ", got " + std::to_string(n));
  }
  py::array_t<int64_t> result(n);
  int64_t* out = result.mutable_data();
  const py::gil_scoped_release release;
  permutation_cpu(seed, counters.as<uint32_t>(), n, out);
  return result;
}

}  // namespace

void bind_random(py::module_& module) {
  module.def("philox", &philox_words, py::arg("seed"), py::arg("counters"));
  module.def("uniforms", &numbers<double, uniforms_cpu>, py::arg("seed"), py::arg("counters"), py::arg("count"));
  module.def("normals", &numbers<float, normals_cpu>, py::arg("seed"), py::arg("counters"), py::arg("count"));
  module.def("permutation", &permutation, py::arg("seed"), py::arg("counter"), py::arg("n"));
}

}  // namespace hpcrl
