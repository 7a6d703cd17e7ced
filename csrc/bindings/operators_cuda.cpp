// torch.ops.wavenet on CUDA devices. Built only together with the kernels, by the host compiler: this file
// includes torch but not CUDA, cuda/engine.cu includes CUDA but not torch.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "bindings/arguments.h"
#include "cuda/bench/peak_rates.h"
#include "cuda/engine.h"

namespace {

using namespace wavenet::binding;
using torch::stable::accelerator::DeviceGuard;

// Returns torch's current stream on a device. The function is part of torch's stable C interface, but its
// library is missing from a torch without CUDA, so this extension does not link to it. Once a CUDA tensor
// exists, torch has loaded that library.
void* current_stream(int32_t device) {
  using Accessor = AOTITorchError (*)(int32_t, void**);
  static const auto accessor = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Accessor>(found);
  }();
  void* stream = nullptr;
  require(accessor != nullptr && accessor(device, &stream) == 0,
          "torch does not report its current CUDA stream: torch 2.11 or newer, built with CUDA, is required");
  return stream;
}

Place place_of(const Tensor& queues) {
  require(queues.is_cuda(), "queues is not on a CUDA device: move the state there with .to()");
  return {true, queues.get_device_index()};
}

// Runs the kernel on the queues' device. Throws NonFinite for the first stream that failed.
void run_kernel(const wavenet::cuda::Params& params, const Arguments& arguments, const Place& place) {
  const wavenet::cuda::KernelSelection choice =
      wavenet::cuda::select_kernel_on(place.index, params.network, params.batch, arguments.kernel);
  const int64_t bytes = wavenet::cuda::workspace_bytes(params, choice);
  // Floats, as the queues are; torch aligns memory for any type.
  Tensor workspace = allocate(arguments.queues, {(bytes + 3) / 4});
  const std::vector<int64_t> failed = wavenet::cuda::run(
      params, choice, place.index, workspace.mutable_data_ptr(), current_stream(place.index));
  for (int64_t row = 0; row < params.batch; ++row) {
    const int64_t position = failed[static_cast<size_t>(row)];
    if (position != wavenet::cuda::kNone) throw wavenet::cpu::NonFinite(position, row);
  }
}

Tensor run_advance(const Arguments& arguments, const Tensor& samples) {
  const Place place = place_of(arguments.queues);
  const DeviceGuard guard(place.index);
  std::vector<wavenet::Layer> layers;
  auto params = make_params<wavenet::cuda::Params>(arguments, place, layers);
  check("samples", samples, ScalarType::Long, {params.batch, -1}, place);
  params.steps = samples.size(1);
  params.forced = samples.const_data_ptr<int64_t>();
  Tensor logits = allocate(arguments.queues, {params.batch, params.steps, params.network.classes});
  params.logits = logits.mutable_data_ptr<float>();
  run_kernel(params, arguments, place);
  return logits;
}

Tensor run_generate(const Arguments& arguments, const Tensor& uniforms, const Tensor& temperature,
                    const Tensor& top_k, const Tensor& top_p, int64_t dropped_step = -1) {
  const Place place = place_of(arguments.queues);
  const DeviceGuard guard(place.index);
  std::vector<wavenet::Layer> layers;
  auto params = make_params<wavenet::cuda::Params>(arguments, place, layers);
  check("uniforms", uniforms, ScalarType::Float, {params.batch, -1}, place);
  params.steps = uniforms.size(1);
  params.uniforms = uniforms.const_data_ptr<float>();
  params.sampling = make_sampling(temperature, top_k, top_p, params.batch, place);
  Tensor output = allocate(arguments.position, {params.batch, params.steps});
  params.output = output.mutable_data_ptr<int64_t>();
  params.dropped_step = dropped_step;
  run_kernel(params, arguments, place);
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

// For tests: `generate`, except that a pipeline drops the samples of one step. A kernel without a pipeline
// ignores that and returns the samples; a pipeline has to time out and report an error.
Tensor drop_step(const Tensor& weights, std::vector<int64_t> geometry, const Tensor& queues,
                 const Tensor& position, const Tensor& last_sample, const Tensor& uniforms,
                 std::string kernel, int64_t step) {
  return marked([&] {
    const std::optional<Tensor> none;
    const int64_t batch = queues.size(0);
    Tensor temperature = allocate(queues, {batch}, ScalarType::Double);
    Tensor top_p = allocate(queues, {batch}, ScalarType::Double);
    Tensor top_k = allocate(queues, {batch}, ScalarType::Long);
    torch::stable::fill_(temperature, 1.0);
    torch::stable::fill_(top_p, 1.0);
    torch::stable::zero_(top_k);
    return run_generate({weights, geometry, queues, position, last_sample, none, 1, position, false, 1,
                         kernel},
                        uniforms, temperature, top_k, top_p, step);
  });
}

// How each kernel would run a batch of streams of a network: see wavenet::cuda::describe.
std::string kernels(const Tensor& weights, std::vector<int64_t> geometry, int64_t batch) {
  return marked([&] {
    require(weights.is_cuda(), "weights are not on a CUDA device: move them there with .to()");
    const wavenet::Geometry parsed = wavenet::parse_geometry(geometry.data(), geometry.size());
    const int64_t size = weights.scalar_type() == ScalarType::Float ? 4 : 1;
    std::vector<wavenet::Layer> layers;
    const wavenet::Network network =
        wavenet::bind_weights(parsed, weights.const_data_ptr(), weights.numel() * size, layers);
    const DeviceGuard guard(weights.get_device_index());
    return wavenet::cuda::describe_on(weights.get_device_index(), network, batch);
  });
}

double rate(const Tensor& data, std::string what) {
  return marked([&] {
    require(data.is_cuda() && data.is_contiguous(), "data is not a contiguous tensor on a CUDA device");
    const int64_t bytes = data.numel() * (data.scalar_type() == ScalarType::Float ? 4 : 1);
    require(bytes >= 1024 && bytes < int64_t{1} << 31, "data has ", bytes,
            " bytes: must have 1024 to 2^31 - 1");
    require(reinterpret_cast<uintptr_t>(data.const_data_ptr()) % 16 == 0,
            "data is not aligned to 16 bytes: pass data.clone()");
    const int32_t device = data.get_device_index();
    const DeviceGuard guard(device);
    Tensor workspace = allocate(data, {wavenet::cuda::rate_workspace_floats(device)}, ScalarType::Float);
    return wavenet::cuda::rate(what, device, data.const_data_ptr(), bytes,
                               workspace.mutable_data_ptr<float>(), current_stream(device));
  });
}

std::string architectures() { return marked(wavenet::cuda::architectures); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(wavenet, m) {
  m.def("cuda_architectures() -> str");
  m.def("cuda_kernels(Tensor weights, int[] geometry, int batch) -> str");
  m.def("cuda_rate(Tensor data, str what) -> float");
  m.def(
      "cuda_drop_step(Tensor weights, int[] geometry, Tensor(a!) queues, Tensor(b!) position, "
      "Tensor(c!) last_sample, Tensor uniforms, str kernel, int step) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(wavenet, CUDA, m) {
  m.impl("advance", TORCH_BOX(&advance));
  m.impl("generate", TORCH_BOX(&generate));
  m.impl("cuda_kernels", TORCH_BOX(&kernels));
  m.impl("cuda_rate", TORCH_BOX(&rate));
  m.impl("cuda_drop_step", TORCH_BOX(&drop_step));
}

STABLE_TORCH_LIBRARY_IMPL(wavenet, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&architectures));
}
