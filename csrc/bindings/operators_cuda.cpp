// torch.ops.wavenet on CUDA devices. Compiled only where the kernels are, by the host's compiler: it sees
// torch but not CUDA, which cuda/engine.cu sees.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "bindings/arguments.h"
#include "cuda/bench/peak_rates.h"
#include "cuda/engine.h"

namespace {

using namespace wavenet::binding;
using torch::stable::accelerator::DeviceGuard;

// torch's current stream on a device. The function is part of the stable C interface, but stands in a library
// that a torch without CUDA does not have and that this one therefore is not linked to; where there is a
// CUDA tensor, torch has loaded it.
void* current_stream(int32_t device) {
  using Accessor = AOTITorchError (*)(int32_t, void**);
  static const auto accessor = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* found = library == nullptr ? nullptr : dlsym(library, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Accessor>(found);
  }();
  void* stream = nullptr;
  require(accessor != nullptr && accessor(device, &stream) == 0,
          "torch does not tell its current CUDA stream: is this a torch with CUDA, 2.11 or newer?");
  return stream;
}

Place place_of(const Tensor& queues) {
  require(queues.is_cuda(), "queues is not on a CUDA device: move the state there with .to()");
  return {true, queues.get_device_index()};
}

// On the queues' device; the first stream that failed becomes the error.
void run_task(const wavenet::cuda::Task& task, const Arguments& given, const Place& place) {
  const wavenet::cuda::Choice choice =
      wavenet::cuda::choose_on(place.index, task.network, task.batch, given.kernel);
  const int64_t bytes = wavenet::cuda::workspace_bytes(task, choice);
  // Of floats, like the queues; memory from torch is aligned for any type.
  Tensor workspace = allocate(given.queues, {(bytes + 3) / 4});
  const std::vector<int64_t> failed = wavenet::cuda::run(
      task, choice, place.index, workspace.mutable_data_ptr(), current_stream(place.index));
  for (int64_t row = 0; row < task.batch; ++row) {
    const int64_t position = failed[static_cast<size_t>(row)];
    if (position != wavenet::cuda::kNone) throw wavenet::cpu::NonFinite(position, row);
  }
}

Tensor run_advance(const Arguments& given, const Tensor& samples) {
  const Place place = place_of(given.queues);
  const DeviceGuard guard(place.index);
  std::vector<wavenet::Layer> layers;
  auto task = make_task<wavenet::cuda::Task>(given, place, layers);
  check("samples", samples, ScalarType::Long, {task.batch, -1}, place);
  task.steps = samples.size(1);
  task.given = samples.const_data_ptr<int64_t>();
  Tensor logits = allocate(given.queues, {task.batch, task.steps, task.network.classes});
  task.logits = logits.mutable_data_ptr<float>();
  run_task(task, given, place);
  return logits;
}

Tensor run_generate(const Arguments& given, const Tensor& uniforms, double temperature, int64_t top_k,
                    double top_p, int64_t lost = -1) {
  const Place place = place_of(given.queues);
  const DeviceGuard guard(place.index);
  std::vector<wavenet::Layer> layers;
  auto task = make_task<wavenet::cuda::Task>(given, place, layers);
  check("uniforms", uniforms, ScalarType::Float, {task.batch, -1}, place);
  task.steps = uniforms.size(1);
  task.uniforms = uniforms.const_data_ptr<float>();
  task.sampling = make_sampling(temperature, top_k, top_p);
  Tensor drawn = allocate(given.position, {task.batch, task.steps});
  task.drawn = drawn.mutable_data_ptr<int64_t>();
  task.lost = lost;
  run_task(task, given, place);
  return drawn;
}

Tensor advance(const Tensor& weights, std::vector<int64_t> geometry, const Tensor& queues,
               const Tensor& position, const Tensor& last_sample, const Tensor& samples,
               const std::optional<Tensor>& gate_bias, int64_t hop, int64_t gate_start, bool linear,
               int64_t threads, std::string kernel) {
  return marked([&] {
    return run_advance({weights, geometry, queues, position, last_sample, gate_bias, hop, gate_start, linear,
                        threads, kernel},
                       samples);
  });
}

Tensor generate(const Tensor& weights, std::vector<int64_t> geometry, const Tensor& queues,
                const Tensor& position, const Tensor& last_sample, const Tensor& uniforms, double temperature,
                int64_t top_k, double top_p, const std::optional<Tensor>& gate_bias, int64_t hop,
                int64_t gate_start, bool linear, int64_t threads, std::string kernel) {
  return marked([&] {
    return run_generate({weights, geometry, queues, position, last_sample, gate_bias, hop, gate_start, linear,
                         threads, kernel},
                        uniforms, temperature, top_k, top_p);
  });
}

// `generate`, but that in a pipeline the samples of one step never come back, which is to end in an error.
// For tests: what was drawn before is returned where no one notices.
Tensor lose(const Tensor& weights, std::vector<int64_t> geometry, const Tensor& queues,
            const Tensor& position, const Tensor& last_sample, const Tensor& uniforms, std::string kernel,
            int64_t step) {
  return marked([&] {
    const std::optional<Tensor> none;
    return run_generate({weights, geometry, queues, position, last_sample, none, 1, 0, false, 1, kernel},
                        uniforms, 1.0, 0, 1.0, step);
  });
}

// What each kernel would do for so many streams of a network: see wavenet::cuda::describe.
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
            "data does not begin at a multiple of 16 bytes: pass it through .clone()");
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
      "cuda_lose_samples(Tensor weights, int[] geometry, Tensor(a!) queues, Tensor(b!) position, "
      "Tensor(c!) last_sample, Tensor uniforms, str kernel, int step) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(wavenet, CUDA, m) {
  m.impl("advance", TORCH_BOX(&advance));
  m.impl("generate", TORCH_BOX(&generate));
  m.impl("cuda_kernels", TORCH_BOX(&kernels));
  m.impl("cuda_rate", TORCH_BOX(&rate));
  m.impl("cuda_lose_samples", TORCH_BOX(&lose));
}

STABLE_TORCH_LIBRARY_IMPL(wavenet, CompositeExplicitAutograd, m) {
  m.impl("cuda_architectures", TORCH_BOX(&architectures));
}
