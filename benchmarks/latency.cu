// Measures how long a GPU takes for the steps of computing a sample: the constants behind the CUDA kernels.
//
// Prints a table; with a file name as argument, also writes JSON to it:
//
//   nvcc -std=c++17 -O3 -fmad=false -I csrc -arch=sm_90 benchmarks/latency.cu -o latency
//   ./latency latency.json
//
// Replace sm_90 by the GPU's architecture (sm_80 or newer). Times are in cycles of the multiprocessors'
// clock, for one block on an idle GPU, as medians of several runs. Products, gate and mailboxes are those of
// the kernels.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/bench/latency.h"
#include "cuda/pipeline/mailbox.h"

namespace {

using namespace wavenet::cuda;

constexpr int kThreadsOfStage = kBenchThreads;
constexpr int kTurns = kBenchTurns;

// Device memory, initialized with zeros.
template <class T>
T* zeros(size_t count) {
  T* memory = nullptr;
  require(cudaMalloc(&memory, count * sizeof(T)), "allocating memory");
  require(cudaMemset(memory, 0, count * sizeof(T)), "clearing memory");
  return memory;
}

__global__ void __launch_bounds__(kThreadsOfStage, 1) barriers(int turns, int64_t* cycles) {
  const int64_t begin = clock64();
  for (int turn = 0; turn < turns; ++turn) __syncthreads();
  if (threadIdx.x == 0) *cycles = clock64() - begin;
}

// Copies a block's entry of the plan to it, as `Stage` does; the whole launch is one pipeline.
WAVENET_DEVICE void copy_plan(const Pipeline& pipeline, unsigned char* shared) {
  if (threadIdx.x == 0) {
    *reinterpret_cast<StageBlock*>(shared + pipeline.own) = pipeline.block[blockIdx.x];
  }
  __syncthreads();
}

// Passes a message through all blocks of a pipeline, repeatedly.
template <class Mail>
WAVENET_DEVICE void send_around(const Mail& mail, const Pipeline& pipeline, int index, int turns,
                                int64_t* cycles) {
  const int rows = pipeline.block[index].box[kInput].rows;
  const int to = (index + 1) % pipeline.blocks;
  const int64_t begin = clock64();
  for (int turn = 0; turn < turns; ++turn) {
    // The first block starts; the message that returns to it belongs to the previous turn.
    if (index > 0 || turn > 0) {
      const bool more = index == 0 || turn + 1 < turns;
      if (!mail.wait({kInput, 0, index > 0 ? turn : turn - 1, more})) return;
    }
    for (int i = static_cast<int>(threadIdx.x); i < rows * kTileStreams / 2; i += kThreadsOfStage) {
      const int row = i / (kTileStreams / 2), s = i % (kTileStreams / 2) * 2;
      mail.put(to, kInput, 0, row, s, mail.slot(kInput, 0)[2 * i], 1.0f);
    }
    __syncthreads();
    mail.post(to, kInput, 0, turn);
  }
  // The first block receives the last message.
  if (index == 0) mail.wait({kInput, 0, turns - 1, false});
  if (index == 0 && threadIdx.x == 0) *cycles = clock64() - begin;
}

__global__ void __launch_bounds__(kThreadsOfStage, 1)
    hops_in_cluster(const __grid_constant__ Params params, const __grid_constant__ Pipeline pipeline,
                    int turns, int64_t* cycles) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  copy_plan(pipeline, shared);
  const DeviceCluster cluster(shared);
  const ClusterMail mail(cluster, params, pipeline, shared);
  send_around(mail, pipeline, mail.index(), turns, cycles);
  mail.close();
#else
  __trap();
#endif
}

__global__ void __launch_bounds__(kThreadsOfStage, 1)
    hops_in_grid(const __grid_constant__ Params params, const __grid_constant__ Pipeline pipeline, int turns,
                 int64_t* cycles, unsigned char* flags, unsigned char* messages) {
  extern __shared__ __align__(16) unsigned char shared[];
  copy_plan(pipeline, shared);
  const GridMail mail(params, pipeline, static_cast<int>(blockIdx.x), shared, messages, flags);
  send_around(mail, pipeline, static_cast<int>(blockIdx.x), turns, cycles);
}

// Returns the median of the cycles of several runs, after a warm-up run.
template <class Run>
double median_cycles(Run run, int64_t* cycles) {
  std::vector<double> found;
  for (int each = 0; each <= kBenchRuns; ++each) {
    run();
    require(cudaGetLastError(), "starting a kernel");
    int64_t counted = 0;
    require(cudaMemcpy(&counted, cycles, sizeof(counted), cudaMemcpyDeviceToHost), "running a kernel");
    if (each > 0) found.push_back(static_cast<double>(counted));
  }
  return median(found);
}

struct Line {
  std::string name, what, unit;
  double value;
};

class Latencies {
 public:
  Latencies() : cycles_(zeros<int64_t>(1)), out_(zeros<float>(kOut)) {
    processors_ = attribute(cudaDevAttrMultiProcessorCount, 0);
    capability_ = 10 * attribute(cudaDevAttrComputeCapabilityMajor, 0) +
                  attribute(cudaDevAttrComputeCapabilityMinor, 0);
  }

  int capability() const { return capability_; }

  std::vector<Line> measure() {
    layer<32>();
    layer<64>();
    layer<128>();
    add("barrier", "a barrier of 512 threads", "cycles",
        median_cycles([&] { barriers<<<1, kThreadsOfStage>>>(kTurns, cycles_); }, cycles_) / kTurns);
    for (const int blocks : {2, 8, 12, 16}) hop(blocks, 65, true);
    for (const int blocks : {2, 16}) hop(blocks, 65, false);
    clock();
    rates();
    return lines_;
  }

 private:
  static constexpr int kOut = 1 << 20;

  void add(const std::string& name, const std::string& what, const std::string& unit, double value) {
    lines_.push_back({name, what, unit, value});
  }

  template <int kWidth>
  void layer() {
    const int bytes = 3 * kWidth * kWidth * 2;
    require(cudaFuncSetAttribute(layers<kWidth>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
            "asking for shared memory");
    const double found =
        median_cycles([&] { layers<kWidth><<<1, kThreadsOfStage, bytes>>>(kTurns, cycles_, out_); }, cycles_);
    add("layer_" + std::to_string(kWidth), "a layer of " + std::to_string(kWidth) + " channels", "cycles",
        found / kTurns);
  }

  // Messages from block to block, of 64 channels.
  void hop(int blocks, int rows, bool cluster) {
    const std::string name = std::string(cluster ? "cluster" : "grid") + "_hop_" + std::to_string(blocks);
    const std::string what = std::string("a message through ") +
                             (cluster ? "a cluster" : "the device's memory") + ", of " +
                             std::to_string(blocks) + " blocks";
    if (cluster && capability_ < 90) return;
    const int slot = rows * kTileStreams * 4, counters = kBoxes * static_cast<int>(sizeof(SlotCounters));
    // In shared memory the message is stored after the tables.
    const int tables = (counters + static_cast<int>(sizeof(StageBlock)) + 15) / 16 * 16;
    std::vector<StageBlock> table(static_cast<size_t>(blocks));
    for (int each = 0; each < blocks; ++each) {
      const auto place = [&](int of) { return Mailbox{rows, cluster ? tables : of % blocks * slot}; };
      table[static_cast<size_t>(each)].box[kInput] = place(each);
      table[static_cast<size_t>(each)].next[kInput] = place(each + 1);
    }
    auto* block = zeros<StageBlock>(table.size());
    require(cudaMemcpy(block, table.data(), table.size() * sizeof(StageBlock), cudaMemcpyHostToDevice),
            "copying a table");
    const auto flag_bytes = static_cast<size_t>(blocks) * kBoxes * kFlagBytes;
    Pipeline pipeline{
        block, nullptr, blocks, 1, 0, 0, counters, slot * blocks, static_cast<int64_t>(flag_bytes)};
    Params params{};
    params.stuck = zeros<int64_t>(1);
    require(cudaMemset(params.stuck, static_cast<int>(kNone & 0xff), sizeof(int64_t)), "clearing memory");
    auto* flags = zeros<unsigned char>(flag_bytes);
    auto* messages = zeros<unsigned char>(static_cast<size_t>(blocks) * slot);
    cudaLaunchAttribute how{};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreadsOfStage);
    config.dynamicSmemBytes = static_cast<size_t>(tables + slot);
    config.attrs = &how;
    config.numAttrs = 1;
    if (cluster) {
      how.id = cudaLaunchAttributeClusterDimension;
      how.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
      require(cudaFuncSetAttribute(hops_in_cluster, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
              "asking for large clusters");
      int most = 0;
      const cudaError_t status = cudaOccupancyMaxActiveClusters(&most, hops_in_cluster, &config);
      if (status == cudaErrorInvalidClusterSize) {
        cudaGetLastError();
      } else {
        require(status, "asking for clusters");
      }
      add("clusters_" + std::to_string(blocks), "clusters of " + std::to_string(blocks) + " at once", "",
          most);
      if (most == 0) return;
    } else {
      how.id = cudaLaunchAttributeCooperative;
      how.val.cooperative = 1;
    }
    const double found = median_cycles(
        [&] {
          if (cluster) {
            require(cudaLaunchKernelEx(&config, hops_in_cluster, params, pipeline, kTurns, cycles_),
                    "starting a kernel");
            return;
          }
          require(cudaMemset(flags, 0, flag_bytes), "clearing memory");
          require(
              cudaLaunchKernelEx(&config, hops_in_grid, params, pipeline, kTurns, cycles_, flags, messages),
              "starting a kernel");
        },
        cycles_);
    add(name, what, "cycles", found / kTurns / blocks);
    int64_t stuck = 0;
    require(cudaMemcpy(&stuck, params.stuck, sizeof(stuck), cudaMemcpyDeviceToHost), "copying a number");
    if (stuck != kNone) std::fprintf(stderr, "latency: warning: %s: timed out, not measured\n", name.c_str());
  }

  // The actual clock of the multiprocessors under load.
  void clock() {
    const auto run = [&] { barriers<<<1, kThreadsOfStage>>>(100 * kTurns, cycles_); };
    const double counted = median_cycles(run, cycles_);
    clock_ = counted / median_seconds(run);
    add("clock", "the clock", "MHz", clock_ / 1e6);
  }

  void rates() {
    constexpr int kWords = 1 << 19;
    auto* words = zeros<int32_t>(kWords);
    for (const int blocks : {1, processors_}) {
      const double seconds = median_seconds(
          [&] { reads<<<blocks, kThreads>>>(words, kWords, 50, reinterpret_cast<int32_t*>(out_)); });
      const std::string suffix = blocks == 1 ? "_one" : "_all";
      const std::string who = blocks == 1 ? "one block" : "a block on each multiprocessor, each";
      add("reads" + suffix, "weights from the cache, " + who, "bytes/cycle",
          50.0 * kWords * 4 / seconds / clock_);
    }
    const double seconds = median_seconds([&] { products<<<processors_, kThreads>>>(20000, out_); });
    add("multiply_adds", "fp16 multiply-adds, all multiprocessors", "/s",
        20000 * kTileProducts * processors_ / seconds);
  }

  int64_t* cycles_;
  float* out_;
  int processors_, capability_;
  double clock_ = 1.0;
  std::vector<Line> lines_;
};

int probe(int count, char** arguments) {
  cudaDeviceProp device{};
  require(cudaGetDeviceProperties(&device, 0), "looking for a device");
  Latencies probe;
  if (probe.capability() < 80) {
    std::fprintf(stderr, "latency: error: compute capability %d.%d: 8.0 or newer is needed\n", device.major,
                 device.minor);
    return 1;
  }
  std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
  const std::vector<Line> lines = probe.measure();
  for (const Line& line : lines) {
    std::printf("%-52s %14.1f %s\n", line.what.c_str(), line.value, line.unit.c_str());
  }
  if (count < 2) return 0;
  std::FILE* file = std::fopen(arguments[1], "w");
  if (file == nullptr) {
    std::fprintf(stderr, "latency: error: %s cannot be written\n", arguments[1]);
    return 1;
  }
  std::fprintf(file, "{\n  \"device\": \"%s\",\n  \"multiprocessors\": %d", device.name,
               device.multiProcessorCount);
  for (const Line& line : lines) std::fprintf(file, ",\n  \"%s\": %.6g", line.name.c_str(), line.value);
  std::fprintf(file, "\n}\n");
  return std::fclose(file) == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
  try {
    return probe(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "latency: error: %s\n", error.what());
    return 1;
  }
}
