// Runs the CUDA kernels' source on the host, a thread at a time, for tests: with C linkage, for Python.
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda/stream_cta.h"
#include "cuda/tiles.h"

namespace {

using wavenet::cuda::HostBlock;
using wavenet::cuda::Plan;
using wavenet::cuda::Task;

template <class Product>
void run_blocks(const Task& task, const HostBlock& block) {
  constexpr int kStreams = Product::kStreams;
  const Plan plan = wavenet::cuda::make_plan(task.network, kStreams);
  const auto release = [](void* memory) { std::free(memory); };
  const size_t bytes = static_cast<size_t>(plan.bytes);
  const std::unique_ptr<void, decltype(release)> shared(std::aligned_alloc(16, bytes), release);
  for (int64_t first = 0; first < task.batch; first += kStreams) {
    // What an earlier block left there is noise to the next: as floats these are NaN.
    std::memset(shared.get(), 0xff, bytes);
    auto* memory = static_cast<unsigned char*>(shared.get());
    wavenet::cuda::StreamCta<HostBlock, Product>(block, task, plan, first, memory).run();
  }
}

template <int kStreams, class Exact>
void run_tile(const Task& task, const HostBlock& block) {
  using namespace wavenet::cuda;
  if (task.network.tiles == wavenet::Tiles::kFp16) {
    run_blocks<TileShare<Fp16, kStreams>>(task, block);
  } else if (task.network.tiles == wavenet::Tiles::kBf16) {
    run_blocks<TileShare<Bf16, kStreams>>(task, block);
  } else {
    run_blocks<Exact>(task, block);
  }
}

int run(const int64_t* entries, int64_t entry_count, Task task, const void* weights, int64_t bytes,
        int streams, bool backward) {
  std::vector<wavenet::Layer> layers;
  const wavenet::Geometry geometry = wavenet::parse_geometry(entries, static_cast<size_t>(entry_count));
  task.network = wavenet::bind_weights(geometry, weights, bytes, layers);
  for (int64_t index = 0; index < task.batch * task.steps; ++index) wavenet::cuda::check_input(task, index);
  const HostBlock block{backward};
  switch (streams) {
    case 8:
      run_tile<8, wavenet::cuda::Share<2, 4>>(task, block);
      return 0;
    case 16:
      run_tile<16, wavenet::cuda::Share<2, 8>>(task, block);
      return 0;
    case 32:
      run_tile<32, wavenet::cuda::Share<4, 8>>(task, block);
      return 0;
    case 64:
      run_tile<64, wavenet::cuda::Share<8, 8>>(task, block);
      return 0;
    default:
      return 1;
  }
}

}  // namespace

// Arrays are those of a Task, in its shapes; what is not there is null. `report` has room for 3 + batch and
// holds kNone. Returns 0 if it ran.
extern "C" __attribute__((visibility("default"))) int wavenet_cuda_host_run(
    const int64_t* geometry, int64_t entries, const void* weights, int64_t bytes, int64_t batch,
    int64_t steps, float* queues, int64_t* position, int64_t* last_sample, const int64_t* given,
    float* logits, const float* uniforms, int64_t* drawn, double temperature, int64_t top_k, double top_p,
    const float* gate, int64_t frames, int64_t frame_stride, int64_t hop, int64_t start, int linear,
    int64_t* report, int streams, int backward) {
  Task task{};
  task.gate = {gate, frame_stride, frames, hop, start, linear != 0};
  task.sampling = {temperature, top_k, top_p};
  task.batch = batch;
  task.steps = steps;
  task.queues = queues;
  task.position = position;
  task.last_sample = last_sample;
  task.given = given;
  task.logits = logits;
  task.uniforms = uniforms;
  task.drawn = drawn;
  task.refused = report;
  task.failed = report + wavenet::cuda::kRefusals;
  try {
    return run(geometry, entries, task, weights, bytes, streams, backward != 0);
  } catch (const std::exception&) {
    return 2;
  }
}

// Bytes of shared memory that a block of `streams` needs, or -1 if the geometry makes no sense.
extern "C" __attribute__((visibility("default"))) int64_t wavenet_cuda_shared_bytes(
    const int64_t* geometry, int64_t entries, const void* weights, int64_t bytes, int streams) {
  try {
    std::vector<wavenet::Layer> layers;
    const wavenet::Geometry parsed = wavenet::parse_geometry(geometry, static_cast<size_t>(entries));
    return wavenet::cuda::make_plan(wavenet::bind_weights(parsed, weights, bytes, layers), streams).bytes;
  } catch (const std::exception&) {
    return -1;
  }
}
