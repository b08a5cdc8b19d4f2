// The part of the DLPack memory layout that we read (https://dmlc.github.io/dlpack/latest/c_api.html, version 1).
#pragma once

#include <cstdint>

namespace hpcrl::dlpack {

enum : int32_t { kCpu = 1, kCuda = 2, kCudaHost = 3 };
enum : uint8_t { kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4 };
constexpr uint64_t kReadOnly = 1;

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; nullptr: C order
  uint64_t byte_offset;
};

// In a capsule named "dltensor".
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

// In a capsule named "dltensor_versioned".
struct ManagedVersioned {
  uint32_t major;
  uint32_t minor;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

}  // namespace hpcrl::dlpack
