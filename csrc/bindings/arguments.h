// Checks of arguments and conversion to the engines' parameters, shared by the operators of all devices.
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

// Every error text is one line that starts with one of these prefixes, which `_ERROR` in
// wavenet/engine/cpu.py parses: "wavenet:nonfinite:POSITION:ROW: text" or "wavenet:error: text".
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

// STD_TORCH_CHECK without the name and line of the source file, which do not help a user.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// If the size is valid, an allocation fails only for lack of memory; torch reports that in several lines.
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

// The device that an operator's tensors have to be on.
struct Place {
  bool cuda;
  int32_t index;  // CUDA device
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

// A size of -1 in `shape` matches any size.
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
  require(tensor.is_contiguous(), name, " is not contiguous: call .contiguous() first");
}

inline void check_range(const char* name, const int64_t* values, int64_t count, int64_t low, int64_t end) {
  for (int64_t index = 0; index < count; ++index) {
    require(values[index] >= low && values[index] < end, name, " contains ", values[index], ": must be ", low,
            " to ", end - 1);
  }
}

// Limit of positions and step counts, so that no sum of them overflows.
constexpr int64_t kMaxSamples = int64_t{1} << 60;

inline void bind_gate_bias(GateBias& gate, const Tensor& values, const Network& network, int64_t batch,
                           int64_t hop, const Tensor& start, bool linear, const Place& place) {
  check_kind("gate_bias", values, ScalarType::Float, place);
  check_shape("gate_bias", values, {batch, -1, network.layers, 2 * network.dilated});
  const int64_t frames = values.size(1);
  require(frames > 0, "gate_bias has no frames: must have at least 1");
  // The batch may be expanded from one row, so only the other dimensions have to be contiguous.
  const int64_t row = 2 * network.dilated;
  require(values.stride(3) == 1 && (network.layers == 1 || values.stride(2) == row) &&
              (frames == 1 || values.stride(1) == network.layers * row),
          "gate_bias is not contiguous within a stream: call .contiguous() first");
  require(hop > 0 && hop < kMaxSamples, "hop = ", hop, ": must be at least 1 sample per frame");
  check("gate_start", start, ScalarType::Long, {batch}, place);
  if (!place.cuda) {
    check_range("gate_start", start.const_data_ptr<int64_t>(), batch, 1 - kMaxSamples, kMaxSamples);
  }
  gate.values = values.const_data_ptr<float>();
  gate.batch_stride = values.stride(0);
  gate.frames = frames;
  gate.hop = hop;
  gate.starts = start.const_data_ptr<int64_t>();
  gate.linear = linear;
}

// The arguments that `advance` and `generate` share, on both devices.
struct Arguments {
  const Tensor& weights;
  const std::vector<int64_t>& geometry;
  const Tensor& queues;
  const Tensor& position;
  const Tensor& last_sample;
  const std::optional<Tensor>& gate_bias;
  int64_t hop;
  const Tensor& gate_start;
  bool linear;
  int64_t threads;
  const std::string& kernel;  // CUDA only: name of the kernel; empty selects the best one
};

// Checks the shared arguments, except for the values in the state, and fills in those parameters. `layers`
// must outlive them.
template <typename Params>
Params make_params(const Arguments& arguments, const Place& place, std::vector<Layer>& layers) {
  const Geometry geometry = parse_geometry(arguments.geometry.data(), arguments.geometry.size());
  const bool tiled = geometry.tiles != Tiles::kNone;
  const bool fp32 = geometry.precision == Precision::kFp32 && !tiled;
  require(place.cuda ? fp32 || tiled : !tiled, "geometry: weight layout ", arguments.geometry[0],
          place.cuda ? " is not for CUDA: must be 1, 4 or 5" : " is not for the CPU: must be 1, 2 or 3");
  check("weights", arguments.weights, fp32 ? ScalarType::Float : ScalarType::Byte, {-1}, place);
  const void* data = arguments.weights.const_data_ptr();
  const uintptr_t alignment = place.cuda ? 16 : alignof(float);
  require(reinterpret_cast<uintptr_t>(data) % alignment == 0, "weights is not aligned to ", alignment,
          " bytes: pass weights.clone()");
  Params params{};
  params.network = bind_weights(geometry, data, arguments.weights.numel() * (fp32 ? 4 : 1), layers);
  check("queues", arguments.queues, ScalarType::Float,
        {-1, params.network.queue_steps, params.network.residual}, place);
  params.batch = arguments.queues.size(0);
  check("position", arguments.position, ScalarType::Long, {params.batch}, place);
  check("last_sample", arguments.last_sample, ScalarType::Long, {params.batch}, place);
  require(arguments.threads > 0, "threads = ", arguments.threads, ": must be at least 1");
  if (arguments.gate_bias.has_value()) {
    bind_gate_bias(params.gate, *arguments.gate_bias, params.network, params.batch, arguments.hop,
                   arguments.gate_start, arguments.linear, place);
  }
  params.queues = arguments.queues.mutable_data_ptr<float>();
  params.position = arguments.position.mutable_data_ptr<int64_t>();
  params.last_sample = arguments.last_sample.mutable_data_ptr<int64_t>();
  return params;
}

// The settings of all streams; values on a CUDA device are not checked, as that would wait for the device.
inline BatchSampling make_sampling(const Tensor& temperature, const Tensor& top_k, const Tensor& top_p,
                                   int64_t batch, const Place& place) {
  check("temperature", temperature, ScalarType::Double, {batch}, place);
  check("top_k", top_k, ScalarType::Long, {batch}, place);
  check("top_p", top_p, ScalarType::Double, {batch}, place);
  const BatchSampling sampling{temperature.const_data_ptr<double>(), top_k.const_data_ptr<int64_t>(),
                               top_p.const_data_ptr<double>()};
  for (int64_t row = 0; !place.cuda && row < batch; ++row) {
    const Sampling own = sampling_of(sampling, row);
    require(std::isfinite(own.temperature) && own.temperature >= 0.0, "temperature contains ",
            own.temperature, ": must be 0 or more");
    require(own.top_k >= 0, "top_k contains ", own.top_k, ": must be 0 (all classes) or more");
    require(own.top_p > 0.0 && own.top_p <= 1.0, "top_p contains ", own.top_p,
            ": must be more than 0 and at most 1");
  }
  return sampling;
}

}  // namespace wavenet::binding
