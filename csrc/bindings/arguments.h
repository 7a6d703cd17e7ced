// What both bindings do with a caller's arguments: check them, and fill in the part of a task that they
// share.
#pragma once

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

#include "core/network.h"
#include "core/sampling.h"
#include "cpu/engine.h"

namespace wavenet::binding {

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
  } catch (const cpu::NonFinite& error) {
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
inline Tensor allocate(const Tensor& like, std::vector<int64_t> shape,
                       std::optional<ScalarType> type = std::nullopt) {
  try {
    return torch::stable::new_empty(like, shape, type);
  } catch (const std::exception&) {
    throw std::bad_alloc();
  }
}

inline const char* dtype_name(ScalarType type) { return torch::headeronly::toString(type); }

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    text += (dim == 0 ? "" : ", ") + std::to_string(tensor.size(dim));
  }
  return text + ")";
}

// Where an operator's tensors have to be.
struct Place {
  bool cuda;
  int32_t index;  // of the CUDA device
};

constexpr Place kCpu{false, 0};

inline void check_kind(const char* name, const Tensor& tensor, ScalarType type, const Place& place) {
  if (place.cuda) {
    require(tensor.is_cuda() && tensor.get_device_index() == place.index, name,
            " is not on the device of the queues, cuda:", place.index, ": move it there with .to()");
  } else {
    require(tensor.is_cpu(), name, " is not on the CPU: this operator's kernel runs there");
  }
  require(tensor.scalar_type() == type, name, " is ", dtype_name(tensor.scalar_type()), ": must be ",
          dtype_name(type));
}

// A size of -1 in `shape` takes any.
inline void check_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape) {
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string expected = "(";
  for (size_t dim = 0; dim < shape.size(); ++dim) {
    expected += (dim == 0 ? "" : ", ") + (shape[dim] < 0 ? std::string("any") : std::to_string(shape[dim]));
    fits = fits && (shape[dim] < 0 || tensor.size(static_cast<int64_t>(dim)) == shape[dim]);
  }
  require(fits, name, " is ", shape_text(tensor), ": must be ", expected, ")");
}

inline void check(const char* name, const Tensor& tensor, ScalarType type, const std::vector<int64_t>& shape,
                  const Place& place = kCpu) {
  check_kind(name, tensor, type, place);
  check_shape(name, tensor, shape);
  require(tensor.is_contiguous(), name, " is not contiguous: pass it through .contiguous()");
}

inline void check_range(const char* name, const int64_t* values, int64_t count, int64_t low, int64_t end) {
  for (int64_t index = 0; index < count; ++index) {
    require(values[index] >= low && values[index] < end, name, " holds ", values[index], ": must be ", low,
            " to ", end - 1);
  }
}

// Position and step counts stay below this, so that no sum of them overflows.
constexpr int64_t kMostSamples = int64_t{1} << 60;

inline void bind_gate_bias(GateBias& gate, const Tensor& values, const Network& network, int64_t batch,
                           int64_t hop, int64_t start, bool linear, const Place& place) {
  check_kind("gate_bias", values, ScalarType::Float, place);
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

// A network and its arguments, as both operators of both devices have them.
struct Arguments {
  const Tensor& weights;
  const std::vector<int64_t>& geometry;
  const Tensor& queues;
  const Tensor& position;
  const Tensor& last_sample;
  const std::optional<Tensor>& gate_bias;
  int64_t hop, gate_start;
  bool linear;
  int64_t threads;
  const std::string& kernel;  // CUDA only: which is to serve, or empty for the best
};

// Checks what both operators share, but for the values in the state, and fills in that part of the task.
// `layers` must outlive the task.
template <typename Task>
Task make_task(const Arguments& given, const Place& place, std::vector<Layer>& layers) {
  const Geometry geometry = parse_geometry(given.geometry.data(), given.geometry.size());
  const bool tiled = geometry.tiles != Tiles::kNone;
  const bool fp32 = geometry.precision == Precision::kFp32 && !tiled;
  require(place.cuda ? fp32 || tiled : !tiled, "geometry: weight layout ", given.geometry[0],
          place.cuda ? " is not for CUDA: layouts 1, 4 and 5 are"
                     : " is not for the CPU: layouts 1, 2 and 3 are");
  check("weights", given.weights, fp32 ? ScalarType::Float : ScalarType::Byte, {-1}, place);
  const void* data = given.weights.const_data_ptr();
  const uintptr_t alignment = place.cuda ? 16 : alignof(float);
  require(reinterpret_cast<uintptr_t>(data) % alignment == 0, "weights do not begin at a multiple of ",
          alignment, " bytes: pass them through .clone()");
  Task task{};
  task.network = bind_weights(geometry, data, given.weights.numel() * (fp32 ? 4 : 1), layers);
  check("queues", given.queues, ScalarType::Float, {-1, task.network.queue_steps, task.network.residual},
        place);
  task.batch = given.queues.size(0);
  check("position", given.position, ScalarType::Long, {task.batch}, place);
  check("last_sample", given.last_sample, ScalarType::Long, {task.batch}, place);
  require(given.threads > 0, "threads = ", given.threads, ": must be at least 1");
  if (given.gate_bias.has_value()) {
    bind_gate_bias(task.gate, *given.gate_bias, task.network, task.batch, given.hop, given.gate_start,
                   given.linear, place);
  }
  task.queues = given.queues.mutable_data_ptr<float>();
  task.position = given.position.mutable_data_ptr<int64_t>();
  task.last_sample = given.last_sample.mutable_data_ptr<int64_t>();
  return task;
}

inline Sampling make_sampling(double temperature, int64_t top_k, double top_p) {
  require(std::isfinite(temperature) && temperature >= 0.0, "temperature = ", temperature,
          ": must be 0 or more");
  require(top_k >= 0, "top_k = ", top_k, ": must be 0 (all classes) or more");
  require(top_p > 0.0 && top_p <= 1.0, "top_p = ", top_p, ": must be more than 0 and at most 1");
  return {temperature, top_k, top_p};
}

}  // namespace wavenet::binding
