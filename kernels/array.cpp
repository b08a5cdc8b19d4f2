#include "array.h"

#include <cstring>
#include <unordered_map>

#include "dlpack.h"

namespace hpcrl {
namespace {

[[noreturn]] void refuse(const char* name, const std::string& message) {
  throw py::value_error(std::string(name) + ": " + message);
}

std::string type_name(py::handle object) {
  return py::str(py::type::of(object).attr("__qualname__"));
}

void set_shape(Array& array, py::ssize_t ndim, const int64_t* extents) {
  if (ndim > kMaxDims) {
    refuse(array.name, "want at most " + std::to_string(kMaxDims) + " dimensions, got " + std::to_string(ndim));
  }
  array.ndim = static_cast<int>(ndim);
  for (int i = 0; i < array.ndim; ++i) array.shape[i] = extents[i];
}

void want_contiguous(const Array& array, bool contiguous) {
  if (!contiguous)
    refuse(array.name,
           "want a C-contiguous array, got a strided one; copy it (numpy.ascontiguousarray, .contiguous())");
}

Kind kind_of_name(const std::string& name) {
  static const std::unordered_map<std::string, Kind> kinds = {
      {"float32", Kind::kFloat32}, {"bfloat16", Kind::kBfloat16}, {"float64", Kind::kFloat64},
      {"int64", Kind::kInt64},     {"uint32", Kind::kUint32},     {"uint8", Kind::kUint8}};
  const auto found = kinds.find(name);
  return found == kinds.end() ? Kind::kOther : found->second;
}

[[noreturn]] void refuse_dtype(const char* name, const std::string& given) {
  refuse(name, "want a native float32, bfloat16, float64, int64, uint32 or uint8 array, got dtype " + given);
}

Array borrow_numpy(const char* name, const py::array& given) {
  Array array;
  array.name = name;
  const py::dtype dtype = given.dtype();
  const char kind = dtype.kind();
  const auto size = dtype.itemsize();
  // h5py's dtypes say '<' where NumPy's own say '='; the machines hpcrl runs on are little-endian.
  const bool native = dtype.byteorder() == '=' || dtype.byteorder() == '|' || dtype.byteorder() == '<';
  if (native && kind == 'f' && size == 4) {
    array.kind = Kind::kFloat32;
  } else if (native && kind == 'f' && size == 8) {
    array.kind = Kind::kFloat64;
  } else if (native && kind == 'i' && size == 8) {
    array.kind = Kind::kInt64;
  } else if (native && kind == 'u' && size == 4) {
    array.kind = Kind::kUint32;
  } else if (native && kind == 'u' && size == 1) {
    array.kind = Kind::kUint8;
  } else {  // ml_dtypes' bfloat16 is a user-defined dtype, known by its name alone
    array.kind = size == 2 && kind != 'f' ? kind_of_name(py::str(dtype.attr("name"))) : Kind::kOther;
    if (array.kind == Kind::kOther) refuse_dtype(name, py::str(static_cast<py::handle>(dtype)));
  }
  std::array<int64_t, kMaxDims> extents{};
  for (py::ssize_t i = 0; i < given.ndim() && i < kMaxDims; ++i) extents[static_cast<size_t>(i)] = given.shape(i);
  set_shape(array, given.ndim(), extents.data());
  want_contiguous(array, (given.flags() & py::array::c_style) != 0);
  array.writable = given.writeable();
  array.data = const_cast<void*>(given.data());
  return array;
}

// torch's dtypes are immortal singletons: their addresses are looked up, their names spelt out only once.
Kind kind_of_torch(const char* name, const py::object& dtype) {
  static auto* known = new std::unordered_map<PyObject*, Kind>();
  const auto found = known->find(dtype.ptr());
  if (found != known->end()) return found->second;
  const std::string spelt = py::str(dtype);  // "torch.float32"
  const Kind kind = spelt.rfind("torch.", 0) == 0 ? kind_of_name(spelt.substr(6)) : Kind::kOther;
  if (kind == Kind::kOther) refuse_dtype(name, spelt);
  known->emplace(dtype.inc_ref().ptr(), kind);
  return kind;
}

Array borrow_torch(const char* name, py::handle given) {
  Array array;
  array.name = name;
  if (given.attr("requires_grad").cast<bool>()) {
    refuse(name, "requires grad, and no gradient flows through this op; pass " + std::string(name) + ".detach()");
  }
  if (given.attr("is_cuda").cast<bool>()) {
    array.device = given.attr("get_device")().cast<int>();
  } else if (!given.attr("is_cpu").cast<bool>()) {
    refuse(name, "want a tensor on cpu or cuda, got one on " + std::string(py::str(given.attr("device"))));
  }
  array.kind = kind_of_torch(name, given.attr("dtype"));
  const py::tuple shape = given.attr("shape");
  std::array<int64_t, kMaxDims> extents{};
  for (size_t i = 0; i < shape.size() && i < kMaxDims; ++i) extents[i] = shape[i].cast<int64_t>();
  set_shape(array, static_cast<py::ssize_t>(shape.size()), extents.data());
  want_contiguous(array, given.attr("is_contiguous")().cast<bool>());
  array.data = reinterpret_cast<void*>(given.attr("data_ptr")().cast<uintptr_t>());
  return array;
}

Array borrow_cuda_interface(const char* name, py::handle given) {
  Array array;
  array.name = name;
  const py::dict facts = given.attr("__cuda_array_interface__");
  const std::string type = py::str(facts["typestr"]);
  static const std::unordered_map<std::string, const char*> names = {
      {"<f4", "float32"}, {"<f8", "float64"}, {"<i8", "int64"}, {"<u4", "uint32"}, {"|u1", "uint8"}};
  const auto found = names.find(type);
  array.kind = kind_of_name(found != names.end() ? std::string(found->second)
                                                 : std::string(py::str(py::getattr(given, "dtype", py::str(type)))));
  if (array.kind == Kind::kOther) refuse_dtype(name, type);
  const py::tuple shape = facts["shape"];
  std::array<int64_t, kMaxDims> extents{};
  for (size_t i = 0; i < shape.size() && i < kMaxDims; ++i) extents[i] = shape[i].cast<int64_t>();
  set_shape(array, static_cast<py::ssize_t>(shape.size()), extents.data());
  const py::object strides = facts.contains("strides") ? py::object(facts["strides"]) : py::none();
  want_contiguous(array, strides.is_none() || array.size() <= 1);
  const py::tuple data = facts["data"];
  array.data = reinterpret_cast<void*>(data[0].cast<uintptr_t>());
  array.writable = !data[1].cast<bool>();
  const py::object device = py::getattr(given, "device", py::none());
  array.device = py::hasattr(device, "id") ? device.attr("id").cast<int>() : 0;
  return array;
}

Kind kind_of_dlpack(const dlpack::DataType& type) {
  if (type.lanes != 1) return Kind::kOther;
  if (type.code == dlpack::kFloat && type.bits == 32) return Kind::kFloat32;
  if (type.code == dlpack::kFloat && type.bits == 64) return Kind::kFloat64;
  if (type.code == dlpack::kBfloat && type.bits == 16) return Kind::kBfloat16;
  if (type.code == dlpack::kInt && type.bits == 64) return Kind::kInt64;
  if (type.code == dlpack::kUint && type.bits == 32) return Kind::kUint32;
  if (type.code == dlpack::kUint && type.bits == 8) return Kind::kUint8;
  return Kind::kOther;
}

// The capsule stays unconsumed and is kept as the owner: its own destructor hands the memory back.
Array borrow_dlpack(const char* name, py::handle given) {
  Array array;
  array.name = name;
  array.owner = given.attr("__dlpack__")();
  const py::capsule capsule = array.owner;
  const bool versioned = std::strcmp(capsule.name(), "dltensor_versioned") == 0;
  const dlpack::Tensor* tensor = nullptr;
  if (versioned) {
    const auto* managed = capsule.get_pointer<dlpack::ManagedVersioned>();
    tensor = &managed->tensor;
    array.writable = (managed->flags & dlpack::kReadOnly) == 0;
  } else {
    tensor = &capsule.get_pointer<dlpack::Managed>()->tensor;
  }
  array.kind = kind_of_dlpack(tensor->dtype);
  if (array.kind == Kind::kOther) {
    refuse_dtype(name, "(DLPack) code " + std::to_string(tensor->dtype.code) + ", " +
                           std::to_string(tensor->dtype.bits) + " bits");
  }
  if (tensor->device.type == dlpack::kCuda) {
    array.device = tensor->device.id;
  } else if (tensor->device.type != dlpack::kCpu && tensor->device.type != dlpack::kCudaHost) {
    refuse(name, "want an array on cpu or cuda, got DLPack device type " + std::to_string(tensor->device.type));
  }
  set_shape(array, tensor->ndim, tensor->shape);
  int64_t expected = 1;
  bool contiguous = true;
  for (int i = array.ndim - 1; i >= 0 && tensor->strides != nullptr; --i) {
    contiguous = contiguous && (array.shape[i] == 1 || tensor->strides[i] == expected);
    expected *= array.shape[i];
  }
  want_contiguous(array, contiguous || array.size() == 0);
  array.data = static_cast<char*>(tensor->data) + tensor->byte_offset;
  return array;
}

std::string shape_text(const int64_t* extents, size_t ndim) {
  if (ndim == 1) return "length " + std::to_string(extents[0]);
  std::string text = "shape (";
  for (size_t i = 0; i < ndim; ++i) text += (i == 0 ? "" : ", ") + std::to_string(extents[i]);
  return text + ")";
}

}  // namespace

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::kFloat32:
      return "float32";
    case Kind::kBfloat16:
      return "bfloat16";
    case Kind::kFloat64:
      return "float64";
    case Kind::kInt64:
      return "int64";
    case Kind::kUint32:
      return "uint32";
    case Kind::kUint8:
      return "uint8";
    case Kind::kOther:
      break;
  }
  return "another dtype";
}

int64_t Array::size() const {
  int64_t elements = 1;
  for (int i = 0; i < ndim; ++i) elements *= shape[i];
  return elements;
}

size_t Array::bytes() const {
  if (data == nullptr) return 0;
  size_t width = 1;
  if (kind == Kind::kFloat32 || kind == Kind::kUint32) width = 4;
  if (kind == Kind::kFloat64 || kind == Kind::kInt64) width = 8;
  if (kind == Kind::kBfloat16) width = 2;
  return width * static_cast<size_t>(size());
}

std::string Array::device_name() const {
  return device == kOnCpu ? "cpu" : "cuda:" + std::to_string(device);
}

Column Array::column() const {
  return {data, kind == Kind::kBfloat16 ? Element::kBfloat16 : Element::kFloat32};
}

Array borrow(const char* name, py::handle object) {
  if (py::isinstance<py::array>(object)) return borrow_numpy(name, py::reinterpret_borrow<py::array>(object));
  if (py::hasattr(object, "data_ptr")) return borrow_torch(name, object);
  if (py::hasattr(object, "__cuda_array_interface__")) return borrow_cuda_interface(name, object);
  if (py::hasattr(object, "__dlpack__")) return borrow_dlpack(name, object);
  refuse(name, "want a NumPy, PyTorch, CuPy or DLPack array, got " + type_name(object));
}

void want_shape(const Array& array, std::initializer_list<int64_t> shape, const char* why) {
  bool same = static_cast<size_t>(array.ndim) == shape.size();
  for (int i = 0; same && i < array.ndim; ++i) same = array.shape[i] == shape.begin()[i];
  if (same) return;
  std::string wanted = shape_text(shape.begin(), shape.size());
  if (why[0] != '\0') wanted += std::string(" (= ") + why + ")";
  refuse(array.name, "want " + wanted + ", got " + shape_text(array.shape.data(), static_cast<size_t>(array.ndim)));
}

void want_kind(const Array& array, std::initializer_list<Kind> kinds) {
  std::string wanted;
  for (const Kind kind : kinds) {
    if (array.kind == kind) return;
    wanted += (wanted.empty() ? "" : " or ") + std::string(kind_name(kind));
  }
  refuse(array.name, "want dtype " + wanted + ", got " + kind_name(array.kind));
}

void want_device(const Array& array, const Array& first) {
  if (array.device == first.device) return;
  refuse(array.name, "want it on " + first.device_name() + " (like " + first.name + "), got " + array.device_name());
}

void want_output(const Array& array, std::initializer_list<const Array*> others) {
  if (!array.writable) refuse(array.name, "want a writable array, got a read-only one");
  const auto begin = reinterpret_cast<uintptr_t>(array.data), end = begin + array.bytes();
  for (const Array* other : others) {
    const auto other_begin = reinterpret_cast<uintptr_t>(other->data), other_end = other_begin + other->bytes();
    if (begin < other_end && other_begin < end) {
      refuse(array.name, std::string("overlaps ") + other->name + "; give it memory of its own");
    }
  }
}

void want_cpu(const Array& array) {
  if (array.device != kOnCpu) refuse(array.name, "want it on cpu, got " + array.device_name());
}

}  // namespace hpcrl
