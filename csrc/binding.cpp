// torch.ops.wavenet: checks what the caller passes and hands plain pointers to the engine. The only file that
// sees torch, and of torch only its stable ABI.
//
// torch's Python entry to operators releases the GIL around the call (tests/test_native.py runs a Python
// thread beside it), so nothing here does.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/run.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Every error leaves here as one line that starts with one of these, which `_ERROR` in
// wavenet/backends/native.py reads: "wavenet:nonfinite:POSITION:ROW: text" or "wavenet:error: text".
constexpr char kNonFinite[] = "wavenet:nonfinite:";
constexpr char kError[] = "wavenet:error: ";

template <typename Work>
auto marked(Work work) -> decltype(work()) {
  try {
    return work();
  } catch (const wavenet::cpu::NonFinite& error) {
    throw std::runtime_error(kNonFinite + std::to_string(error.position) + ":" + std::to_string(error.row) +
                             ": " + error.what());
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(std::string(kError) +
                             "not enough memory: ask for fewer streams, or for fewer samples at a time");
  } catch (const std::exception& error) {
    throw std::runtime_error(kError + std::string(error.what()));
  }
}

// STD_TORCH_CHECK without the name and line of a source file, which a user has no use for.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// torch has only one reason not to give memory of a checked size, but reports it in several lines.
Tensor allocate(const Tensor& like, std::vector<int64_t> shape) {
  try {
    return torch::stable::new_empty(like, shape);
  } catch (const std::exception&) {
    throw std::bad_alloc();
  }
}

const char* dtype_name(ScalarType type) { return torch::headeronly::toString(type); }

std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    text += (dim == 0 ? "" : ", ") + std::to_string(tensor.size(dim));
  }
  return text + ")";
}

void check_kind(const char* name, const Tensor& tensor, ScalarType type) {
  require(tensor.is_cpu(), name, " is not on the CPU: this operator's kernel runs there");
  require(tensor.scalar_type() == type, name, " is ", dtype_name(tensor.scalar_type()), ": must be ",
          dtype_name(type));
}

// A size of -1 in `shape` takes any.
void check_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string expected = "(";
  for (size_t dim = 0; dim < shape.size(); ++dim) {
    expected += (dim == 0 ? "" : ", ") + (shape[dim] < 0 ? std::string("any") : std::to_string(shape[dim]));
    fits = fits && (shape[dim] < 0 || tensor.size(static_cast<int64_t>(dim)) == shape[dim]);
  }
  require(fits, name, " is ", shape_text(tensor), ": must be ", expected, ")");
}

void check(const char* name, const Tensor& tensor, ScalarType type, const std::vector<int64_t>& shape) {
  check_kind(name, tensor, type);
  check_shape(name, tensor, shape);
  require(tensor.is_contiguous(), name, " is not contiguous: pass it through .contiguous()");
}

void check_range(const char* name, const int64_t* values, int64_t count, int64_t low, int64_t end) {
  for (int64_t index = 0; index < count; ++index) {
    require(values[index] >= low && values[index] < end, name, " holds ", values[index], ": must be ", low,
            " to ", end - 1);
  }
}

// Position and step counts stay below this, so that no sum of them overflows.
constexpr int64_t kMostSamples = int64_t{1} << 60;

void bind_gate_bias(wavenet::GateBias& gate, const Tensor& values, const wavenet::Network& network,
                    int64_t batch, int64_t hop, int64_t start, bool linear) {
  check_kind("gate_bias", values, ScalarType::Float);
  check_shape("gate_bias", values, {batch, -1, network.layers, 2 * network.dilated});
  const int64_t frames = values.size(1);
  require(frames > 0, "gate_bias has no frames: must have at least 1");
  // The batch may be expanded from one row, so only the rest has to be contiguous.
  const int64_t row = 2 * network.dilated;
  require(values.stride(3) == 1 && (network.layers == 1 || values.stride(2) == row) &&
              (frames == 1 || values.stride(1) == network.layers * row),
          "gate_bias is not contiguous within a stream: pass it through .contiguous()");
  require(hop > 0 && hop < kMostSamples, "hop = ", hop, ": must be at least 1 sample per frame");
  require(start > -kMostSamples && start < kMostSamples, "gate_start = ", start, ": is out of range");
  gate.values = values.const_data_ptr<float>();
  gate.batch_stride = values.stride(0);
  gate.frames = frames;
  gate.hop = hop;
  gate.start = start;
  gate.linear = linear;
}

// Checks what both operators share and fills in that part of the task. `layers` must outlive the task.
wavenet::cpu::Task make_task(const Tensor& weights, const std::vector<int64_t>& geometry_entries,
                             const Tensor& queues, const Tensor& position, const Tensor& last_sample,
                             const std::optional<Tensor>& gate_bias, int64_t hop, int64_t gate_start,
                             bool linear, int64_t threads, std::vector<wavenet::Layer>& layers) {
  const wavenet::Geometry geometry =
      wavenet::parse_geometry(geometry_entries.data(), geometry_entries.size());
  const bool fp32 = geometry.precision == wavenet::Precision::kFp32;
  check("weights", weights, fp32 ? ScalarType::Float : ScalarType::Byte, {-1});
  const void* data = weights.const_data_ptr();
  require(reinterpret_cast<uintptr_t>(data) % alignof(float) == 0,
          "weights do not begin at a multiple of 4 bytes: pass them through .clone()");
  wavenet::cpu::Task task{};
  task.network = wavenet::bind_weights(geometry, data, weights.numel() * (fp32 ? 4 : 1), layers);
  check("queues", queues, ScalarType::Float, {-1, task.network.queue_steps, task.network.residual});
  task.batch = queues.size(0);
  check("position", position, ScalarType::Long, {task.batch});
  check("last_sample", last_sample, ScalarType::Long, {task.batch});
  check_range("position", position.const_data_ptr<int64_t>(), task.batch, 0, kMostSamples);
  check_range("last_sample", last_sample.const_data_ptr<int64_t>(), task.batch, 0, task.network.classes);
  require(threads > 0, "threads = ", threads, ": must be at least 1");
  if (gate_bias.has_value()) {
    bind_gate_bias(task.gate, *gate_bias, task.network, task.batch, hop, gate_start, linear);
  }
  task.queues = queues.mutable_data_ptr<float>();
  task.position = position.mutable_data_ptr<int64_t>();
  task.last_sample = last_sample.mutable_data_ptr<int64_t>();
  return task;
}

Tensor run_advance(const Tensor& weights, const std::vector<int64_t>& geometry, const Tensor& queues,
                   const Tensor& position, const Tensor& last_sample, const Tensor& samples,
                   const std::optional<Tensor>& gate_bias, int64_t hop, int64_t gate_start, bool linear,
                   int64_t threads) {
  std::vector<wavenet::Layer> layers;
  wavenet::cpu::Task task = make_task(weights, geometry, queues, position, last_sample, gate_bias, hop,
                                      gate_start, linear, threads, layers);
  check("samples", samples, ScalarType::Long, {task.batch, -1});
  task.steps = samples.size(1);
  task.given = samples.const_data_ptr<int64_t>();
  check_range("samples", task.given, samples.numel(), 0, task.network.classes);
  Tensor logits = allocate(queues, {task.batch, task.steps, task.network.classes});
  task.logits = logits.mutable_data_ptr<float>();
  wavenet::cpu::run(task, threads);
  return logits;
}

Tensor run_generate(const Tensor& weights, const std::vector<int64_t>& geometry, const Tensor& queues,
                    const Tensor& position, const Tensor& last_sample, const Tensor& uniforms,
                    double temperature, int64_t top_k, double top_p, const std::optional<Tensor>& gate_bias,
                    int64_t hop, int64_t gate_start, bool linear, int64_t threads) {
  std::vector<wavenet::Layer> layers;
  wavenet::cpu::Task task = make_task(weights, geometry, queues, position, last_sample, gate_bias, hop,
                                      gate_start, linear, threads, layers);
  check("uniforms", uniforms, ScalarType::Float, {task.batch, -1});
  task.steps = uniforms.size(1);
  task.uniforms = uniforms.const_data_ptr<float>();
  for (int64_t index = 0; index < uniforms.numel(); ++index) {
    const float uniform = task.uniforms[index];
    require(uniform >= 0.0f && uniform < 1.0f, "uniforms holds ", uniform, ": must be in [0, 1)");
  }
  require(std::isfinite(temperature) && temperature >= 0.0, "temperature = ", temperature,
          ": must be 0 or more");
  require(top_k >= 0, "top_k = ", top_k, ": must be 0 (all classes) or more");
  require(top_p > 0.0 && top_p <= 1.0, "top_p = ", top_p, ": must be more than 0 and at most 1");
  task.sampling = {temperature, top_k, top_p};
  Tensor drawn = allocate(position, {task.batch, task.steps});
  task.drawn = drawn.mutable_data_ptr<int64_t>();
  wavenet::cpu::run(task, threads);
  return drawn;
}

Tensor advance(const Tensor& weights, std::vector<int64_t> geometry, const Tensor& queues,
               const Tensor& position, const Tensor& last_sample, const Tensor& samples,
               const std::optional<Tensor>& gate_bias, int64_t hop, int64_t gate_start, bool linear,
               int64_t threads) {
  return marked([&] {
    return run_advance(weights, geometry, queues, position, last_sample, samples, gate_bias, hop, gate_start,
                       linear, threads);
  });
}

Tensor generate(const Tensor& weights, std::vector<int64_t> geometry, const Tensor& queues,
                const Tensor& position, const Tensor& last_sample, const Tensor& uniforms, double temperature,
                int64_t top_k, double top_p, const std::optional<Tensor>& gate_bias, int64_t hop,
                int64_t gate_start, bool linear, int64_t threads) {
  return marked([&] {
    return run_generate(weights, geometry, queues, position, last_sample, uniforms, temperature, top_k, top_p,
                        gate_bias, hop, gate_start, linear, threads);
  });
}

double read_rate(const Tensor& data, double seconds) {
  return marked([&] {
    check("data", data, ScalarType::Byte, {-1});
    require(data.numel() >= 1024, "data has ", data.numel(), " bytes: must have at least 1024");
    require(reinterpret_cast<uintptr_t>(data.const_data_ptr()) % alignof(int32_t) == 0,
            "data does not begin at a multiple of 4 bytes: pass it through .clone()");
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
      "Tensor(c!) last_sample, Tensor samples, Tensor? gate_bias, int hop, int gate_start, bool linear, "
      "int threads) -> Tensor");
  m.def(
      "generate(Tensor weights, int[] geometry, Tensor(a!) queues, Tensor(b!) position, "
      "Tensor(c!) last_sample, Tensor uniforms, float temperature, int top_k, float top_p, "
      "Tensor? gate_bias, int hop, int gate_start, bool linear, int threads) -> Tensor");
  m.def("cpu_read_rate(Tensor data, float seconds) -> float");
  m.def("cpu_multiply_add_rate(bool int8, float seconds) -> float");
  m.def("cpu_instruction_set() -> str");
  m.def("cpu_instruction_sets() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(wavenet, CPU, m) {
  m.impl("advance", TORCH_BOX(&advance));
  m.impl("generate", TORCH_BOX(&generate));
  m.impl("cpu_read_rate", TORCH_BOX(&read_rate));
}

// Without a tensor among their arguments these have no device to be dispatched by.
STABLE_TORCH_LIBRARY_IMPL(wavenet, CompositeExplicitAutograd, m) {
  m.impl("cpu_multiply_add_rate", TORCH_BOX(&multiply_add_rate));
  m.impl("cpu_instruction_set", TORCH_BOX(&instruction_set));
  m.impl("cpu_instruction_sets", TORCH_BOX(&instruction_sets));
}
