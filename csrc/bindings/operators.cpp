// torch.ops.wavenet: the schemas of all operators and their CPU implementation, which checks the arguments
// and passes plain pointers to the engine. Uses only torch's stable ABI.
//
// torch's Python entry to operators releases the GIL around the call, so nothing here does
// (tests/engine/test_cpu.py runs a Python thread meanwhile).
#include "bindings/arguments.h"
#include "core/philox.h"

namespace {

using namespace wavenet::binding;

// Checks the arguments that both operators share and fills in those parameters. `layers` must outlive them.
wavenet::cpu::Params cpu_params(const Arguments& arguments, std::vector<wavenet::Layer>& layers) {
  require(arguments.kernel.empty(), "kernel = ", arguments.kernel,
          ": only the CUDA engine has several kernels");
  auto params = make_params<wavenet::cpu::Params>(arguments, kCpu, layers);
  check_range("position", params.position, params.batch, 0, kMaxSamples);
  check_range("last_sample", params.last_sample, params.batch, 0, params.network.classes);
  return params;
}

Tensor run_advance(const Arguments& arguments, const Tensor& samples) {
  std::vector<wavenet::Layer> layers;
  wavenet::cpu::Params params = cpu_params(arguments, layers);
  check("samples", samples, ScalarType::Long, {params.batch, -1});
  params.steps = samples.size(1);
  params.forced = samples.const_data_ptr<int64_t>();
  check_range("samples", params.forced, samples.numel(), 0, params.network.classes);
  Tensor logits = allocate(arguments.queues, {params.batch, params.steps, params.network.classes});
  params.logits = logits.mutable_data_ptr<float>();
  wavenet::cpu::run(params, arguments.threads);
  return logits;
}

Tensor run_generate(const Arguments& arguments, const Tensor& uniforms, const Tensor& temperature,
                    const Tensor& top_k, const Tensor& top_p) {
  std::vector<wavenet::Layer> layers;
  wavenet::cpu::Params params = cpu_params(arguments, layers);
  check("uniforms", uniforms, ScalarType::Float, {params.batch, -1});
  params.steps = uniforms.size(1);
  params.uniforms = uniforms.const_data_ptr<float>();
  for (int64_t index = 0; index < uniforms.numel(); ++index) {
    const float uniform = params.uniforms[index];
    require(uniform >= 0.0f && uniform < 1.0f, "uniforms contains ", uniform, ": must be in [0, 1)");
  }
  params.sampling = make_sampling(temperature, top_k, top_p, params.batch, kCpu);
  Tensor output = allocate(arguments.position, {params.batch, params.steps});
  params.output = output.mutable_data_ptr<int64_t>();
  wavenet::cpu::run(params, arguments.threads);
  return output;
}

Tensor advance(const Tensor& weights, std::vector<int64_t> geometry, const Tensor& queues,
               const Tensor& position, const Tensor& last_sample, const Tensor& samples,
               const std::optional<Tensor>& gate_bias, int64_t hop, const Tensor& gate_start, bool linear,
               int64_t threads, std::string kernel) {
  return marked([&] {
    return run_advance({weights, geometry, queues, position, last_sample, gate_bias, hop, gate_start, linear,
                        threads, kernel},
                       samples);
  });
}

Tensor generate(const Tensor& weights, std::vector<int64_t> geometry, const Tensor& queues,
                const Tensor& position, const Tensor& last_sample, const Tensor& uniforms,
                const Tensor& temperature, const Tensor& top_k, const Tensor& top_p, const std::optional<Tensor>& gate_bias, int64_t hop,
                const Tensor& gate_start, bool linear, int64_t threads, std::string kernel) {
  return marked([&] {
    return run_generate({weights, geometry, queues, position, last_sample, gate_bias, hop, gate_start, linear,
                         threads, kernel},
                        uniforms, temperature, top_k, top_p);
  });
}

Tensor uniforms(const Tensor& seed, const Tensor& stream, const Tensor& substream, const Tensor& position,
                int64_t steps) {
  return marked([&] {
    const int64_t batch = stream.dim() == 1 ? stream.size(0) : -1;
    check("stream", stream, ScalarType::Long, {batch});
    check("seed", seed, ScalarType::Long, {batch});
    check("substream", substream, ScalarType::Long, {batch});
    check("position", position, ScalarType::Long, {batch});
    check_range("position", position.const_data_ptr<int64_t>(), batch, 0, kMaxSamples);
    require(steps >= 0 && steps < kMaxSamples, "steps = ", steps, ": must be 0 or more");
    Tensor output = allocate(position, {batch, steps}, ScalarType::Float);
    for (int64_t row = 0; row < batch; ++row) {
      const auto word = [row](const Tensor& of) {
        return static_cast<uint64_t>(of.const_data_ptr<int64_t>()[row]);
      };
      wavenet::uniforms({word(seed), word(stream), word(substream)}, word(position), steps,
                        output.mutable_data_ptr<float>() + row * steps);
    }
    return output;
  });
}

Tensor frame_bias(const Tensor& weights, std::vector<int64_t> entries, double limit, const Tensor& frames) {
  return marked([&] {
    check("weights", weights, ScalarType::Float, {-1});
    const wavenet::Conditioner conditioner = wavenet::bind_conditioner(
        entries.data(), entries.size(), weights.const_data_ptr<float>(), weights.numel());
    check("frames", frames, ScalarType::Float, {-1, conditioner.classes + conditioner.features, -1});
    require(std::isfinite(limit) && limit > 0.0, "limit = ", limit, ": must be above 0");
    const int64_t batch = frames.size(0), count = frames.size(2);
    require(count > conditioner.context_frames, count, " frames: must be more than the ",
            conditioner.context_frames, " that the conditioner's convolutions use as context");
    require(batch * count < kMaxSamples / conditioner.outputs, "frames is too large");
    Tensor bias = allocate(frames, {batch, count - conditioner.context_frames, conditioner.outputs});
    wavenet::cpu::frame_bias(conditioner, static_cast<float>(limit), frames.const_data_ptr<float>(), batch,
                             count, bias.mutable_data_ptr<float>());
    return bias;
  });
}

double read_rate(const Tensor& data, double seconds) {
  return marked([&] {
    check("data", data, ScalarType::Byte, {-1});
    require(data.numel() >= 1024, "data has ", data.numel(), " bytes: must have at least 1024");
    require(reinterpret_cast<uintptr_t>(data.const_data_ptr()) % alignof(int32_t) == 0,
            "data is not aligned to 4 bytes: pass data.clone()");
    return wavenet::cpu::read_rate(data.const_data_ptr(), data.numel(), seconds);
  });
}

double multiply_add_rate(bool int8, double seconds) {
  return marked([&] { return wavenet::cpu::multiply_add_rate(int8, seconds); });
}

std::string instruction_set() { return marked(wavenet::cpu::instruction_set); }
std::string instruction_sets() { return marked(wavenet::cpu::available_instruction_sets); }

}  // namespace

STABLE_TORCH_LIBRARY(wavenet, m) {
  m.def(
      "advance(Tensor weights, int[] geometry, Tensor(a!) queues, Tensor(b!) position, "
      "Tensor(c!) last_sample, Tensor samples, Tensor? gate_bias, int hop, Tensor gate_start, bool linear, "
      "int threads, str kernel=\"\") -> Tensor");
  m.def(
      "generate(Tensor weights, int[] geometry, Tensor(a!) queues, Tensor(b!) position, "
      "Tensor(c!) last_sample, Tensor uniforms, Tensor temperature, Tensor top_k, Tensor top_p, "
      "Tensor? gate_bias, int hop, Tensor gate_start, bool linear, int threads, str kernel=\"\") -> Tensor");
  m.def("uniforms(Tensor seed, Tensor stream, Tensor substream, Tensor position, int steps) -> Tensor");
  m.def("frame_bias(Tensor weights, int[] entries, float limit, Tensor frames) -> Tensor");
  m.def("cpu_read_rate(Tensor data, float seconds) -> float");
  m.def("cpu_multiply_add_rate(bool int8, float seconds) -> float");
  m.def("cpu_instruction_set() -> str");
  m.def("cpu_instruction_sets() -> str");
  m.def("cpu_can_train(bool bf16) -> bool");
  m.def("cpu_block(Tensor like, int[] shape, bool bf16) -> Tensor");
  m.def("cpu_keep_blocks(bool on) -> ()");
  m.def("cpu_block_bytes(bool idle) -> int");
  m.def(
      "gated_layer(Tensor x, Tensor dilated_weight, Tensor dilated_bias, Tensor? output_weight, "
      "Tensor? output_bias, Tensor? gate_bias, Tensor(a!) gates, int dilation, int hop, int start, "
      "bool linear, bool bf16) -> (Tensor, Tensor)");
  m.def(
      "gated_layer_backward(Tensor x, Tensor dilated_weight, Tensor dilated_bias, Tensor? output_weight, "
      "Tensor? output_bias, Tensor? gate_bias, Tensor halves, Tensor dgates, Tensor? dy, int dilation, "
      "int hop, int start, bool linear, bool bf16) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cross_entropy(Tensor logits, Tensor targets, int ignored) -> (Tensor, Tensor)");
  m.def(
      "cross_entropy_backward(Tensor logits, Tensor targets, Tensor nats, Tensor normalizers, Tensor dnats, "
      "int ignored) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(wavenet, CPU, m) {
  m.impl("advance", TORCH_BOX(&advance));
  m.impl("generate", TORCH_BOX(&generate));
  m.impl("uniforms", TORCH_BOX(&uniforms));
  m.impl("frame_bias", TORCH_BOX(&frame_bias));
  m.impl("cpu_read_rate", TORCH_BOX(&read_rate));
}

// These take no tensor, so there is no device to dispatch on.
STABLE_TORCH_LIBRARY_IMPL(wavenet, CompositeExplicitAutograd, m) {
  m.impl("cpu_multiply_add_rate", TORCH_BOX(&multiply_add_rate));
  m.impl("cpu_instruction_set", TORCH_BOX(&instruction_set));
  m.impl("cpu_instruction_sets", TORCH_BOX(&instruction_sets));
}
