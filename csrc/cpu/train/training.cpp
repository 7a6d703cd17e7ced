#include <algorithm>
#include <stdexcept>
#include <vector>

#include "cpu/engine.h"
#include "cpu/simd/denormals.h"
#include "cpu/train/training_run.h"

namespace wavenet::cpu {

namespace {

// Returns the passes of the selected instruction set; null if it has none.
const Passes* selected(bool bf16) {
#if defined(__x86_64__)
  const std::string set = instruction_set();
  const bool wide = set == "avx512" || set == "avx512vnni";
  if (bf16) return wide && __builtin_cpu_supports("avx512bf16") ? &avx512bf16::bf16_passes : nullptr;
  if (wide) return &avx512::fp32_passes;
  if (set == "avx2") return &avx2::fp32_passes;
#endif
  (void)bf16;
  return nullptr;
}

const Passes& passes_for(bool bf16) {
  const Passes* passes = selected(bf16);
  if (passes == nullptr) throw std::runtime_error("this processor has no native training in that precision");
  return *passes;
}

// Memory aligned for vectors.
class Floats {
 public:
  explicit Floats(int64_t count) : memory_(static_cast<size_t>(count) + kAlignment / sizeof(float)) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.data());
    begin_ = memory_.data() + (kAlignment - address % kAlignment) % kAlignment / sizeof(float);
  }

  float* data() { return begin_; }

 private:
  static constexpr uintptr_t kAlignment = 64;
  std::vector<float> memory_;
  float* begin_;
};

uint32_t bf16_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >> 16) | 0x40;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// A matrix packed in blocks for the passes, padded with zeros.
class Packed {
 public:
  // `at(input, output)` returns a weight, and has to support indices within the padding.
  template <typename At>
  Packed(int64_t inputs, int64_t outputs, bool bf16, At at) : memory_(inputs * outputs / (bf16 ? 2 : 1)) {
    float* to = memory_.data();
    for (int64_t block = 0; block < outputs; block += kBlock) {
      const int64_t end = std::min(block + kBlock, outputs);
      for (int64_t input = 0; input < inputs; input += bf16 ? 2 : 1) {
        for (int64_t output = block; output < end; ++output, ++to) {
          if (!bf16) {
            *to = at(input, output);
            continue;
          }
          const uint32_t word = bf16_bits(at(input, output)) | bf16_bits(at(input + 1, output)) << 16;
          __builtin_memcpy(to, &word, sizeof(word));
        }
      }
    }
    matrix_ = {reinterpret_cast<const int32_t*>(memory_.data()), outputs, inputs};
  }

  const PackedMatrix& matrix() const { return matrix_; }

 private:
  static constexpr int64_t kBlock = 64;
  Floats memory_;
  PackedMatrix matrix_;
};

// Returns working memory of the current thread for one pass. It is reused, since a training step has a
// hundred passes.
float* working_memory(int64_t floats) {
  thread_local std::vector<float> memory;
  const size_t spare = 64 / sizeof(float);
  if (memory.size() < static_cast<size_t>(floats) + spare) memory.resize(static_cast<size_t>(floats) + spare);
  const uintptr_t address = reinterpret_cast<uintptr_t>(memory.data());
  return memory.data() + (64 - address % 64) % 64 / sizeof(float);
}

void run_pass(const GatedLayer& layer, LayerPass pass, int64_t rows, const ParallelFor& parallel_for) {
  const int64_t blocks = layer.batch * blocks_of(rows);
  parallel_for(kParts, [&](int64_t part) {
    const int64_t first = blocks * part / kParts, stop = blocks * (part + 1) / kParts;
    if (first == stop) return;
    const FlushDenormals flush;
    pass(layer, first, stop, working_memory(workspace_layout(layer).size), part);
  });
}

// Adds the sums of all parts, in order, and removes the padding.
void reduce_parts(const GatedLayer& layer, const float* sums, int64_t offset, int64_t rows, int64_t columns,
                  int64_t stride, float* to) {
  const int64_t size = sums_of(layer).size;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      float sum = 0.0f;
      for (int64_t part = 0; part < kParts; ++part) sum += sums[part * size + offset + row * stride + column];
      to[row * columns + column] = sum;
    }
  }
}

float widen(const float* from) { return *from; }
float widen(const uint16_t* from) {
  const uint32_t bits = static_cast<uint32_t>(*from) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// Writes the gradient of the frames for one segment.
template <typename Stored>
void sum_frames(const GatedLayer& layer, int64_t segment, float* to) {
  const int64_t width = 2 * layer.channels;
  const auto* rows = static_cast<const Stored*>(layer.dactivation) + segment * layer.steps * width;
  to += segment * layer.bias.frames * width;
  std::fill_n(to, layer.bias.frames * width, 0.0f);
  const float* values = layer.bias.values + segment * layer.bias.batch_stride;
  for (int64_t row = 0; row < layer.steps; ++row, rows += width) {
    const GateFrame frame = gate_frame(layer.bias, segment, row, layer.frame_stride);
    float* here = to + (frame.here - values) / layer.frame_stride * width;
    if (!layer.bias.linear) {
      for (int64_t i = 0; i < width; ++i) here[i] += widen(rows + i);
      continue;
    }
    float* next = to + (frame.next - values) / layer.frame_stride * width;
    const float rest = 1.0f - frame.weight;
    for (int64_t i = 0; i < width; ++i) {
      here[i] += rest * widen(rows + i);
      next[i] += frame.weight * widen(rows + i);
    }
  }
}

// Converts a row of a matrix of two padded branches to a row without padding; returns -1 for padding.
int64_t row_of_branches(const GatedLayer& layer, int64_t padded_row) {
  const int64_t padded = whole_vectors(layer.channels), within = padded_row % padded;
  return within < layer.channels ? padded_row / padded * layer.channels + within : -1;
}

}  // namespace

bool can_train(bool bf16) { return selected(bf16) != nullptr; }

void forward(GatedLayer layer, const LayerWeights& weights, bool bf16, const ParallelFor& parallel_for) {
  const Passes& passes = passes_for(bf16);
  const int64_t inputs = layer.taps * layer.residual, channels = layer.channels, width = layer.residual;
  const Packed dilated(whole_vectors(inputs), 2 * whole_vectors(channels), bf16,
                       [&](int64_t input, int64_t output) {
                         const int64_t row = row_of_branches(layer, output);
                         return row < 0 || input >= inputs ? 0.0f : weights.dilated[row * inputs + input];
                       });
  const Packed output(whole_vectors(channels), whole_vectors(width), bf16,
                      [&](int64_t input, int64_t output) {
                        const bool padding = layer.last || input >= channels || output >= width;
                        return padding ? 0.0f : weights.output[output * channels + input];
                      });
  layer.dilated = dilated.matrix();
  layer.output = output.matrix();
  run_pass(layer, passes.forward, layer.steps, parallel_for);
}

void backward(GatedLayer layer, const LayerWeights& weights, const LayerGradients& gradients, bool bf16,
              const ParallelFor& parallel_for) {
  const Passes& passes = passes_for(bf16);
  const int64_t inputs = layer.taps * layer.residual, channels = layer.channels, width = layer.residual;
  const Packed to_gates(whole_vectors(width), whole_vectors(channels), bf16,
                        [&](int64_t input, int64_t output) {
                          const bool padding = layer.last || input >= width || output >= channels;
                          return padding ? 0.0f : weights.output[input * channels + output];
                        });
  std::vector<Packed> taps;
  std::vector<PackedMatrix> to_taps;
  taps.reserve(static_cast<size_t>(layer.taps));
  for (int64_t tap = 0; tap < layer.taps; ++tap) {
    taps.emplace_back(2 * channels, whole_vectors(width), bf16, [&](int64_t input, int64_t output) {
      return output < width ? weights.dilated[input * inputs + tap * width + output] : 0.0f;
    });
    to_taps.push_back(taps.back().matrix());
  }
  const Sums at = sums_of(layer);
  Floats sums(kParts * at.size);
  layer.to_gates = to_gates.matrix();
  layer.to_taps = to_taps.data();
  layer.sums = sums.data();
  run_pass(layer, passes.backward_gates, layer.steps, parallel_for);
  run_pass(layer, passes.backward_inputs, layer.steps + (layer.taps - 1) * layer.dilation, parallel_for);
  const int64_t padded = whole_vectors(channels), stride = whole_vectors(inputs);
  for (int64_t half = 0; half < 2; ++half) {
    reduce_parts(layer, sums.data(), at.dilated + half * padded * stride, channels, inputs, stride,
                 gradients.dilated + half * channels * inputs);
    reduce_parts(layer, sums.data(), at.dilated_bias + half * padded, 1, channels, channels,
                 gradients.dilated_bias + half * channels);
  }
  if (!layer.last) {
    reduce_parts(layer, sums.data(), at.output, width, channels, padded, gradients.output);
    reduce_parts(layer, sums.data(), at.residual_bias, 1, width, width, gradients.residual_bias);
  }
  if (gradients.bias != nullptr) {
    parallel_for(layer.batch, [&](int64_t segment) {
      if (bf16) {
        sum_frames<uint16_t>(layer, segment, gradients.bias);
      } else {
        sum_frames<float>(layer, segment, gradients.bias);
      }
    });
  }
}

namespace {

void run_losses(const Losses& losses, LossPass pass, const ParallelFor& parallel_for) {
  parallel_for(kParts, [&](int64_t part) {
    const FlushDenormals flush;
    pass(losses, losses.rows * part / kParts, losses.rows * (part + 1) / kParts);
  });
}

}  // namespace

void cross_entropy(const Losses& losses, bool bf16, const ParallelFor& parallel_for) {
  run_losses(losses, passes_for(bf16).loss, parallel_for);
}

void cross_entropy_backward(const Losses& losses, bool bf16, const ParallelFor& parallel_for) {
  run_losses(losses, passes_for(bf16).loss_backward, parallel_for);
}

}  // namespace wavenet::cpu
