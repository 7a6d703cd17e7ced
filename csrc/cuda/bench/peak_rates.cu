// Measures the peak rates of a device.
#include "cuda/bench/latency.h"
#include "cuda/bench/peak_rates.h"

namespace wavenet::cuda {
namespace {

// Returns the duration of a layer of `kWidth` channels in seconds.
template <int kWidth>
double layer_seconds(int64_t* cycles, float* out, cudaStream_t stream) {
  const int bytes = 3 * kWidth * kWidth * 2;
  require(cudaFuncSetAttribute(layers<kWidth>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "asking for shared memory");
  const auto run = [&] { layers<kWidth><<<1, kBenchThreads, bytes, stream>>>(kBenchTurns, cycles, out); };
  return median_seconds(run, stream) / kBenchTurns;
}

}  // namespace

int64_t rate_workspace_floats(int device) {
  return int64_t{kRateBlocks} * attribute(cudaDevAttrMultiProcessorCount, device) * kBenchThreads + 4;
}

double rate(const std::string& what, int device, const void* data, int64_t bytes, float* workspace,
            void* on_stream) {
  require(cudaSetDevice(device), "choosing the device");
  auto* stream = static_cast<cudaStream_t>(on_stream);
  auto* cycles = reinterpret_cast<int64_t*>(workspace);
  float* out = workspace + 4;
  const int blocks = kRateBlocks * attribute(cudaDevAttrMultiProcessorCount, device);
  constexpr int kTurns = 20000;
  if (what == "reads") {
    const auto words = static_cast<int>(bytes / 16 * 4);
    // About a gigabyte for each multiprocessor, so that launch overhead is negligible.
    const int turns = static_cast<int>(1 + (int64_t{1} << 30) / (kRateBlocks * int64_t{4} * words));
    const auto run = [&] {
      reads<<<blocks, kThreads, 0, stream>>>(static_cast<const int32_t*>(data), words, turns,
                                             reinterpret_cast<int32_t*>(out));
    };
    return 4.0 * words * turns * blocks / median_seconds(run, stream);
  }
  if (what == "fp16") {
    const auto run = [&] { products<<<blocks, kThreads, 0, stream>>>(kTurns, out); };
    return kTileProducts * kTurns * blocks / median_seconds(run, stream);
  }
  if (what == "fp32") {
    const auto run = [&] { fused_products<<<blocks, kThreads, 0, stream>>>(kTurns, 0.5f, out); };
    return kFusedProducts * kTurns * blocks / median_seconds(run, stream);
  }
  if (what == "layer_16") return layer_seconds<16>(cycles, out, stream);
  if (what == "layer_32") return layer_seconds<32>(cycles, out, stream);
  if (what == "layer_64") return layer_seconds<64>(cycles, out, stream);
  if (what == "layer_128") return layer_seconds<128>(cycles, out, stream);
  throw std::runtime_error("what = " + what +
                           ": choose from reads, fp16, fp32, layer_16, layer_32, layer_64, " + "layer_128");
}

}  // namespace wavenet::cuda
