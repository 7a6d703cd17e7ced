// Runs the source of the CUDA kernels on the host, one thread at a time. Tests call these functions from
// Python.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "checks/cuda_on_host/host_stages.h"
#include "checks/cuda_on_host/host_threads.h"
#include "cuda/select_kernel.h"
#include "cuda/stream/stream_cta.h"
#include "cuda/tiles.h"

namespace {

using wavenet::cuda::HostBlock;
using wavenet::cuda::HostStages;
using wavenet::cuda::Params;
using wavenet::cuda::Plan;

template <class Product>
void run_blocks(const Params& params, const HostBlock& block) {
  constexpr int kStreams = Product::kStreams;
  const Plan plan = wavenet::cuda::make_plan(params.network, kStreams);
  const auto release = [](void* memory) { std::free(memory); };
  const size_t bytes = static_cast<size_t>(plan.bytes);
  const std::unique_ptr<void, decltype(release)> shared(std::aligned_alloc(16, bytes), release);
  for (int64_t first = 0; first < params.batch; first += kStreams) {
    // Shared memory is uninitialized: fills it with NaN.
    std::memset(shared.get(), 0xff, bytes);
    auto* memory = static_cast<unsigned char*>(shared.get());
    wavenet::cuda::StreamCta<HostBlock, Product>(block, params, plan, first, memory).run();
  }
}

template <int kStreams, class Exact>
void run_tile(const Params& params, const HostBlock& block) {
  using namespace wavenet::cuda;
  if (params.network.tiles == wavenet::Tiles::kFp16) {
    run_blocks<TileShare<Fp16, kStreams>>(params, block);
  } else if (params.network.tiles == wavenet::Tiles::kBf16) {
    run_blocks<TileShare<Bf16, kStreams>>(params, block);
  } else {
    run_blocks<Exact>(params, block);
  }
}

int run(const int64_t* entries, int64_t entry_count, Params params, const void* weights, int64_t bytes,
        int streams, bool backward, const HostStages& stages, int max_polls) {
  std::vector<wavenet::Layer> layers;
  const wavenet::Geometry geometry = wavenet::parse_geometry(entries, static_cast<size_t>(entry_count));
  params.network = wavenet::bind_weights(geometry, weights, bytes, layers);
  for (int64_t index = 0; index < params.batch * params.steps; ++index)
    wavenet::cuda::check_input(params, index);
  if (max_polls > 0) {
    params.dropped_step = stages.dropped;
    wavenet::cuda::run_threads(params, {stages.resources, stages.tiles, max_polls}, backward);
    return 0;
  }
  if (stages.tiles > 0) {
    wavenet::cuda::run_stages(params, stages, backward);
    return 0;
  }
  const HostBlock block{backward};
  switch (streams) {
    case 8:
      run_tile<8, wavenet::cuda::Share<2, 4>>(params, block);
      return 0;
    case 16:
      run_tile<16, wavenet::cuda::Share<2, 8>>(params, block);
      return 0;
    case 32:
      run_tile<32, wavenet::cuda::Share<4, 8>>(params, block);
      return 0;
    case 64:
      run_tile<64, wavenet::cuda::Share<8, 8>>(params, block);
      return 0;
    default:
      return 1;
  }
}

}  // namespace

// Arrays have the shapes of Params; missing ones are null. `report` has 4 + batch entries, initially kNone:
// indices of invalid inputs, the block that timed out, and where each stream failed. If `tiles` is 0, runs
// `stream_cta` with tiles of `streams`, otherwise pipelines with these resources. If `max_polls` is 0, their
// blocks run in an order that `seed` determines, and message number `dropped` is lost. Otherwise each block
// is a thread that times out after `max_polls` polls, and the samples of step `dropped` are lost. Returns 0
// on success.
extern "C" __attribute__((visibility("default"))) int wavenet_cuda_host_run(
    const int64_t* geometry, int64_t entries, const void* weights, int64_t bytes, int64_t batch,
    int64_t steps, float* queues, int64_t* position, int64_t* last_sample, const int64_t* forced,
    float* logits, const float* uniforms, int64_t* output, const double* temperature, const int64_t* top_k,
    const double* top_p,
    const float* gate, int64_t frames, int64_t frame_stride, int64_t hop, const int64_t* starts, int linear,
    int64_t* report, int streams, int backward, int64_t tiles, int64_t blocks, int64_t shared_bytes,
    int mail_is_shared, int64_t seed, int64_t dropped, int max_polls) {
  Params params{};
  params.gate = {gate, frame_stride, frames, hop, 0, linear != 0, starts};
  params.sampling = {temperature, top_k, top_p};
  params.batch = batch;
  params.steps = steps;
  params.queues = queues;
  params.position = position;
  params.last_sample = last_sample;
  params.forced = forced;
  params.logits = logits;
  params.uniforms = uniforms;
  params.output = output;
  wavenet::cuda::bind_report(params, report);
  const HostStages stages{
      {blocks, shared_bytes, mail_is_shared != 0}, tiles, static_cast<uint64_t>(seed), dropped};
  try {
    return run(geometry, entries, params, weights, bytes, streams, backward != 0, stages, max_polls);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}

// Returns the bytes of shared memory that a block of `streams` needs, or -1 if the geometry is invalid.
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

// Writes a plan as numbers, which tests/support/stage_plans.py parses, at most `max_count` of them. Returns
// their number.
extern "C" __attribute__((visibility("default"))) int64_t wavenet_cuda_stage_plan(
    const int64_t* geometry, int64_t entries, const void* weights, int64_t bytes, int64_t tiles,
    int64_t blocks, int64_t shared_bytes, int mail_is_shared, int64_t* numbers, int64_t max_count) {
  std::vector<wavenet::Layer> layers;
  const wavenet::Geometry parsed = wavenet::parse_geometry(geometry, static_cast<size_t>(entries));
  const wavenet::Network network = wavenet::bind_weights(parsed, weights, bytes, layers);
  const wavenet::cuda::StagePlan plan =
      wavenet::cuda::plan_stages(network, {blocks, shared_bytes, mail_is_shared != 0}, tiles);
  int64_t count = 0;
  const auto write = [&](int64_t number) {
    if (count < max_count) numbers[count] = number;
    ++count;
  };
  write(plan.refusal.empty() ? 1 : 0);
  write(plan.resident ? 1 : 0);
  write(plan.bytes);
  write(plan.mail_bytes);
  write(plan.flag_bytes);
  write(static_cast<int64_t>(plan.blocks.size()));
  for (const wavenet::cuda::StageBlock& block : plan.blocks) {
    write(static_cast<int64_t>(block.kind));
    for (const int64_t each : {block.first_layer, block.layers, block.first_part}) write(each);
    for (const wavenet::cuda::Mailbox* box : {&block.box[0], &block.box[1], &block.next[0], &block.next[1]}) {
      write(box->rows);
      write(box->offset);
    }
    for (const int64_t each :
         {block.parts, block.table, block.biases, block.values, block.activations, block.taps, block.starts,
          block.slots, block.frames, block.position, block.last, block.active, block.logits, block.weights,
          block.sums, block.uniforms, block.bytes}) {
      write(each);
    }
  }
  write(static_cast<int64_t>(plan.parts.size()));
  for (const wavenet::cuda::Part& part : plan.parts) {
    write(part.source - static_cast<const int32_t*>(weights));
    for (const int64_t each : {part.pitch, int64_t{part.words}, int64_t{part.rows}, int64_t{part.resident},
                               int64_t{part.offset}}) {
      write(each);
    }
  }
  return count;
}

// Writes the name of the selected kernel on a device with these properties, or the reasons for none; if
// `name` is null, a description of all kernels. Writes at most `capacity` bytes.
extern "C" __attribute__((visibility("default"))) void wavenet_cuda_select_kernel(
    const int64_t* geometry, int64_t entries, const void* weights, int64_t bytes, int64_t batch,
    const int64_t* device, const char* name, char* text, int64_t capacity) {
  std::vector<wavenet::Layer> layers;
  const wavenet::Geometry parsed = wavenet::parse_geometry(geometry, static_cast<size_t>(entries));
  const wavenet::Network network = wavenet::bind_weights(parsed, weights, bytes, layers);
  wavenet::cuda::Device on{device[0], device[1], device[2], device[3], device[4], device[5] != 0, {}};
  // Simulates multiprocessors in groups of this size.
  if (const int64_t group = device[6]; group > 0) {
    const int64_t groups = on.processors / group;
    on.clusters = [=](const wavenet::Network&, int64_t blocks, int64_t) { return groups * (group / blocks); };
  }
  std::string answer;
  try {
    answer = name == nullptr
                 ? wavenet::cuda::describe(network, batch, on)
                 : wavenet::cuda::name_of(wavenet::cuda::select_kernel(network, batch, on, name).kernel);
  } catch (const std::exception& error) {
    answer = error.what();
  }
  std::snprintf(text, static_cast<size_t>(capacity), "%s", answer.c_str());
}
