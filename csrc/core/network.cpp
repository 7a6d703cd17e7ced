#include "core/network.h"

#include <stdexcept>
#include <string>

namespace wavenet {
namespace {

constexpr size_t kHeaderEntries = 8;
// Far above any network in use, and small enough that no product of sizes overflows.
constexpr int64_t kMostChannels = 65536;
constexpr int64_t kMostTaps = 64;
constexpr int64_t kMostLayers = 1000;
constexpr int64_t kLargestDilation = int64_t{1} << 30;

int64_t checked(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    throw std::runtime_error("geometry: " + std::string(name) + " = " + std::to_string(value) + ": must be " +
                             std::to_string(low) + " to " + std::to_string(high));
  }
  return value;
}

// Hands out consecutive parts of the weights.
class Cursor {
 public:
  explicit Cursor(const float* weights) : weights_(weights) {}

  const float* take(int64_t count) {
    // Only an address that is known to be inside the block may be formed.
    const float* part = weights_ == nullptr ? nullptr : weights_ + offset_;
    offset_ += count;
    return part;
  }

  int64_t offset() const { return offset_; }

 private:
  const float* weights_;
  int64_t offset_ = 0;
};

int64_t lay_out(const Geometry& geometry, const float* weights, Network& network,
                std::vector<Layer>& layers) {
  Cursor cursor(weights);
  network.embedding = cursor.take(network.classes * network.residual_padded);
  int64_t row = 0;
  for (size_t index = 0; index < layers.size(); ++index) {
    const bool last = index + 1 == layers.size();
    Layer& layer = layers[index];
    layer.dilation = geometry.dilations[index];
    layer.depth = (network.taps - 1) * layer.dilation;
    layer.ring_row = row;
    row += layer.depth;
    layer.dilated = cursor.take(2 * network.dilated_padded * network.taps * network.residual);
    layer.dilated_bias = cursor.take(2 * network.dilated_padded);
    layer.residual_bias = last ? nullptr : cursor.take(network.residual_padded);
    layer.output =
        cursor.take(network.dilated * (network.skip_padded + (last ? 0 : network.residual_padded)));
  }
  network.queue_steps = row;
  network.skip_bias = cursor.take(network.skip_padded);
  network.head1 = cursor.take(network.head_padded * network.skip);
  network.head1_bias = cursor.take(network.head_padded);
  network.head2 = cursor.take(network.classes_padded * network.head);
  network.head2_bias = cursor.take(network.classes_padded);
  return cursor.offset();
}

}  // namespace

Geometry parse_geometry(const int64_t* entries, size_t count) {
  if (count < kHeaderEntries) {
    throw std::runtime_error("geometry has " + std::to_string(count) + " entries: must have at least " +
                             std::to_string(kHeaderEntries));
  }
  if (entries[0] != kLayoutVersion) {
    throw std::runtime_error("geometry: weight layout " + std::to_string(entries[0]) +
                             " is unknown, this build reads layout " + std::to_string(kLayoutVersion));
  }
  Geometry geometry;
  geometry.classes = checked("quantization_channels", entries[1], 2, kMostChannels);
  geometry.residual = checked("residual_channels", entries[2], 1, kMostChannels);
  geometry.dilated = checked("dilation_channels", entries[3], 1, kMostChannels);
  geometry.skip = checked("skip_channels", entries[4], 1, kMostChannels);
  geometry.head = checked("head_channels", entries[5], 1, kMostChannels);
  geometry.taps = checked("kernel_size", entries[6], 2, kMostTaps);
  const int64_t layers = checked("layers", entries[7], 1, kMostLayers);
  if (count != kHeaderEntries + static_cast<size_t>(layers)) {
    throw std::runtime_error("geometry has " + std::to_string(count) + " entries: " + std::to_string(layers) +
                             " layers need " + std::to_string(kHeaderEntries + layers));
  }
  for (size_t index = kHeaderEntries; index < count; ++index) {
    geometry.dilations.push_back(checked("dilation", entries[index], 1, kLargestDilation));
  }
  return geometry;
}

Network bind_weights(const Geometry& geometry, const float* weights, int64_t count,
                     std::vector<Layer>& layers) {
  Network network{};
  network.classes = geometry.classes;
  network.residual = geometry.residual;
  network.dilated = geometry.dilated;
  network.skip = geometry.skip;
  network.head = geometry.head;
  network.classes_padded = padded(geometry.classes);
  network.residual_padded = padded(geometry.residual);
  network.dilated_padded = padded(geometry.dilated);
  network.skip_padded = padded(geometry.skip);
  network.head_padded = padded(geometry.head);
  network.taps = geometry.taps;
  network.layers = static_cast<int64_t>(geometry.dilations.size());
  layers.assign(geometry.dilations.size(), Layer{});
  const int64_t needed = lay_out(geometry, nullptr, network, layers);
  if (needed != count) {
    throw std::runtime_error("weights have " + std::to_string(count) + " values: the geometry asks for " +
                             std::to_string(needed));
  }
  lay_out(geometry, weights, network, layers);
  network.layer = layers.data();
  return network;
}

}  // namespace wavenet
