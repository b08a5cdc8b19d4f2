// Borrowed views of other libraries' arrays: NumPy, PyTorch, CuPy and whatever speaks DLPack or the CUDA array
// interface.
//
// Nothing is copied and no library is linked or imported. PyTorch is known by its data_ptr(): its own DLPack export
// costs 2.4 us a tensor, more than a small kernel. Every refusal names the argument, what was wanted and what was
// given.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "ops.h"

namespace hpcrl {

namespace py = pybind11;

enum class Kind { kFloat32, kBfloat16, kFloat64, kInt64, kUint32, kUint8, kOther };

const char* kind_name(Kind kind);

constexpr int kOnCpu = -1;
constexpr int kMaxDims = 2;

struct Array {
  const char* name = "";  // the argument's name in Python, for messages
  void* data = nullptr;
  Kind kind = Kind::kOther;
  int ndim = 0;
  std::array<int64_t, kMaxDims> shape{};
  int device = kOnCpu;  // else the CUDA ordinal
  bool writable = true;
  py::object owner;  // keeps an exported view alive during the call

  int64_t size() const;
  size_t bytes() const;
  std::string device_name() const;
  Column column() const;  // kFloat32 and kBfloat16 only
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Raises ValueError for anything that is not a C-contiguous array of at most kMaxDims dimensions, in the CPU's or a
// CUDA device's memory.
Array borrow(const char* name, py::handle object);

// `why` says where the wanted extents come from, as in "want length 5 (= len(rewards)), got 3"; "" leaves it out.
void want_shape(const Array& array, std::initializer_list<int64_t> shape, const char* why);
void want_kind(const Array& array, std::initializer_list<Kind> kinds);
void want_device(const Array& array, const Array& first);
// Writable, and overlapping none of `others`.
void want_output(const Array& array, std::initializer_list<const Array*> others);
void want_cpu(const Array& array);

}  // namespace hpcrl
