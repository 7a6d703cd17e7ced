#include "core/conditioner.h"

#include <stdexcept>
#include <string>

namespace wavenet {
namespace {

constexpr size_t kHeaderEntries = 5;
// Far above the sizes of any conditioner in use, and small enough that no product of sizes overflows.
constexpr int64_t kMaxRows = 1 << 20;
constexpr int64_t kMaxOutputs = int64_t{1} << 30;
constexpr int64_t kMaxFrameDilation = 1 << 20;

void check_entry(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    throw std::runtime_error("conditioner: " + std::string(name) + " = " + std::to_string(value) +
                             ": must be " + std::to_string(low) + " to " + std::to_string(high));
  }
}

int64_t padded(int64_t count) { return (count + kPad - 1) / kPad * kPad; }

// Sets the pointers into the weights and returns the number of weights. If `weights` is null, only counts.
int64_t lay_out(Conditioner& conditioner, const float* weights) {
  int64_t offset = 0;
  const auto floats = [&](int64_t count) {
    const float* part = weights == nullptr ? nullptr : weights + offset;
    offset += count;
    return part;
  };
  const auto matrix = [&](int64_t outputs, int64_t inputs) {
    const float* words = floats(outputs * inputs);
    return Matrix{reinterpret_cast<const int32_t*>(words), nullptr, outputs, inputs};
  };
  if (conditioner.convolutions > 0) {
    conditioner.centre = floats(padded(conditioner.features));
    conditioner.scale = floats(padded(conditioner.features));
  }
  for (int64_t index = 0; index < conditioner.convolutions; ++index) {
    FrameConvolution& convolution = conditioner.convolution[index];
    const int64_t inputs = index == 0 ? conditioner.features : conditioner.width;
    for (int64_t tap = 0; tap < conditioner.taps; ++tap) {
      convolution.tap[tap] = matrix(conditioner.width_padded, inputs);
    }
    convolution.bias = floats(conditioner.width_padded);
  }
  if (conditioner.classes > 0) conditioner.mixture = matrix(conditioner.width_padded, conditioner.classes);
  conditioner.projection = matrix(padded(conditioner.outputs), conditioner.width);
  return offset;
}

}  // namespace

Conditioner bind_conditioner(const int64_t* entries, size_t entry_count, const float* weights,
                             int64_t count) {
  if (entry_count < kHeaderEntries || entry_count > kHeaderEntries + kMaxConvolutions) {
    throw std::runtime_error("conditioner has " + std::to_string(entry_count) + " entries: must have " +
                             std::to_string(kHeaderEntries) + " to " +
                             std::to_string(kHeaderEntries + kMaxConvolutions));
  }
  Conditioner conditioner{};
  conditioner.classes = entries[0];
  conditioner.features = entries[1];
  conditioner.width = entries[2];
  conditioner.outputs = entries[3];
  conditioner.taps = entries[4];
  conditioner.convolutions = static_cast<int64_t>(entry_count - kHeaderEntries);
  const bool convolved = conditioner.convolutions > 0;
  check_entry("classes", conditioner.classes, convolved ? 0 : 1, kMaxRows);
  check_entry("features", conditioner.features, convolved ? 1 : 0, convolved ? kMaxRows : 0);
  check_entry("width", conditioner.width, 1, kMaxRows);
  check_entry("outputs", conditioner.outputs, 1, kMaxOutputs);
  check_entry("taps", conditioner.taps, 1, kMaxFrameTaps);
  for (int64_t index = 0; index < conditioner.convolutions; ++index) {
    const int64_t dilation = entries[kHeaderEntries + static_cast<size_t>(index)];
    check_entry("dilation", dilation, 1, kMaxFrameDilation);
    conditioner.convolution[index].dilation = dilation;
    conditioner.context_frames += (conditioner.taps - 1) * dilation;
  }
  conditioner.width_padded = padded(conditioner.width);
  const int64_t needed = lay_out(conditioner, nullptr);
  if (count != needed) {
    throw std::runtime_error("conditioner has " + std::to_string(count) + " weights: its entries require " +
                             std::to_string(needed));
  }
  lay_out(conditioner, weights);
  return conditioner;
}

}  // namespace wavenet
