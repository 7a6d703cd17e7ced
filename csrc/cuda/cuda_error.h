// Conversion of CUDA's error codes to exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace wavenet::cuda {

inline void require(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it, so that the next call does not report it
  throw std::runtime_error("CUDA failed " + doing + ": " + cudaGetErrorString(status));
}

inline int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  require(cudaDeviceGetAttribute(&value, which, device), "asking for the device's limits");
  return value;
}

}  // namespace wavenet::cuda
