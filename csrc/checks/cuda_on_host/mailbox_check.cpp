// Runs pipelines with the kernels' mailboxes and one thread for each block, under the thread sanitizer:
// blocks may share data through messages only. Also drops a message, after which all blocks have to time out.
#include <cstdio>
#include <vector>

#include "checks/cuda_on_host/host_threads.h"
#include "cuda/stream/stream_cta.h"

namespace {

using namespace wavenet;

constexpr int64_t kBatch = 19, kSteps = 6, kEntries = 13;
// Layout, classes, five widths (kernel size last), layers, dilations.
constexpr int64_t kGeometry[kEntries] = {4, 40, 20, 12, 70, 36, 3, 5, 1, 2, 4, 1, 2};

struct Streams {
  std::vector<float> queues;
  std::vector<float> uniforms = std::vector<float>(kBatch * kSteps, 0.37f);
  std::vector<int64_t> position = std::vector<int64_t>(kBatch, 5), last = std::vector<int64_t>(kBatch, 3);
  std::vector<int64_t> output = std::vector<int64_t>(kBatch * kSteps, -1);
  std::vector<int64_t> report = std::vector<int64_t>(cuda::report_words(kBatch), cuda::kNone);

  std::vector<double> temperature = std::vector<double>(kBatch, 0.9), top_p = temperature;
  std::vector<int64_t> top_k = std::vector<int64_t>(kBatch, 5);

  explicit Streams(const Network& network)
      : queues(static_cast<size_t>(kBatch * network.queue_steps * network.residual), 0.1f) {}

  cuda::Params params(const Network& network) {
    cuda::Params params{};
    params.network = network;
    params.sampling = {temperature.data(), top_k.data(), top_p.data()};
    params.batch = kBatch;
    params.steps = kSteps;
    params.queues = queues.data();
    params.position = position.data();
    params.last_sample = last.data();
    params.uniforms = uniforms.data();
    params.output = output.data();
    cuda::bind_report(params, report.data());
    return params;
  }
};

// Returns small weights of both signs, the same in every run.
std::vector<uint32_t> random_weights(int64_t bytes) {
  std::vector<uint32_t> words(static_cast<size_t>(bytes / 4));
  uint32_t state = 1;
  for (uint32_t& word : words) {
    state = state * 1664525u + 1013904223u;
    word = 0x2c002c00u ^ (state >> 9 & 0x80008000u);
  }
  return words;
}

bool check(const Network& network, bool in_cluster, int64_t tiles, const std::vector<int64_t>& expected) {
  Streams whole(network), losing(network);
  const cuda::PipelineResources resources{7, 100 * 1024, in_cluster};
  cuda::run_threads(whole.params(network), {resources, tiles, 1 << 28}, false);
  cuda::Params dropping = losing.params(network);
  dropping.dropped_step = 3;
  cuda::run_threads(dropping, {resources, tiles, 1 << 20}, false);
  const bool right = whole.output == expected && *whole.params(network).stuck == cuda::kNone;
  const bool reported =
      *dropping.stuck != cuda::kNone && losing.output[3] == expected[3] && losing.output[4] == -1;
  std::printf("%s, %d tile(s): %s, %s\n", in_cluster ? "cluster" : "grid", static_cast<int>(tiles),
              right ? "right" : "WRONG", reported ? "the loss is reported" : "the loss is NOT reported");
  return right && reported;
}

}  // namespace

int main() {
  const Geometry geometry = parse_geometry(kGeometry, kEntries);
  std::vector<Layer> layers;
  int64_t bytes = 0;
  try {
    bind_weights(geometry, nullptr, bytes, layers);
  } catch (const std::exception& error) {
    // The message ends with the required size.
    const std::string reported = error.what();
    bytes = std::stoll(reported.substr(reported.rfind(' ') + 1));
  }
  const std::vector<uint32_t> weights = random_weights(bytes);
  const Network network = bind_weights(geometry, weights.data(), bytes, layers);
  Streams streams(network);
  const cuda::Params params = streams.params(network);
  const cuda::Plan plan = cuda::make_plan(network, 32);
  std::vector<uint64_t> shared(static_cast<size_t>(plan.bytes / 8 + 2));
  auto* memory = reinterpret_cast<unsigned char*>(shared.data());
  const cuda::HostBlock block{false};
  cuda::StreamCta<cuda::HostBlock, cuda::TileShare<cuda::Fp16, 32>>(block, params, plan, 0, memory).run();
  bool good = true;
  for (const bool in_cluster : {true, false}) {
    for (const int64_t tiles : {1, 3}) good = check(network, in_cluster, tiles, streams.output) && good;
  }
  return good ? 0 : 1;
}
