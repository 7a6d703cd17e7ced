#include "core/network.h"

#include <stdexcept>
#include <string>

namespace wavenet {
namespace {

constexpr size_t kHeaderEntries = 8;
// Far above the sizes of any network in use, and small enough that no product of sizes overflows.
constexpr int64_t kMaxChannels = 65536;
constexpr int64_t kMaxTaps = 64;
constexpr int64_t kMaxLayers = 1000;
// The sum of this many products of int8 and uint8 fits in 32 bits.
constexpr int64_t kMaxInt8Inputs = 65536;
constexpr int64_t kMaxDilation = int64_t{1} << 30;

int64_t checked(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    throw std::runtime_error("geometry: " + std::string(name) + " = " + std::to_string(value) + ": must be " +
                             std::to_string(low) + " to " + std::to_string(high));
  }
  return value;
}

// Returns consecutive parts of the weights.
class Cursor {
 public:
  Cursor(const void* weights, const Geometry& geometry)
      : weights_(static_cast<const unsigned char*>(weights)),
        precision_(geometry.precision),
        tiles_(geometry.tiles != Tiles::kNone) {}

  const float* floats(int64_t count) { return static_cast<const float*>(take(count * 4)); }

  // In tile layouts, each of the two groups of inputs is padded to whole tiles.
  Matrix matrix(int64_t outputs, int64_t inputs, int64_t more_inputs = 0) {
    if (tiles_) {
      const auto whole = [](int64_t count) { return (count + kTile - 1) / kTile * kTile; };
      inputs = whole(inputs) + whole(more_inputs);
      Matrix part{nullptr, nullptr, outputs, inputs};
      part.words = static_cast<const int32_t*>(take(outputs * inputs * 2));
      return part;
    }
    inputs += more_inputs;
    Matrix part{nullptr, nullptr, outputs, inputs};
    int64_t bytes = outputs * inputs * 4;
    if (precision_ == Precision::kBf16) bytes = outputs * inputs * 2;
    if (precision_ == Precision::kInt8) {
      part.scale = floats(outputs);
      bytes = outputs * ((inputs + kPacked - 1) / kPacked * kPacked);
    }
    part.words = static_cast<const int32_t*>(take(bytes));
    return part;
  }

  int64_t offset() const { return offset_; }

 private:
  const void* take(int64_t bytes) {
    // Without weights, only the offset advances; pointer arithmetic on null is undefined.
    const void* part = weights_ == nullptr ? nullptr : weights_ + offset_;
    offset_ += bytes;
    return part;
  }

  const unsigned char* weights_;
  Precision precision_;
  bool tiles_;
  int64_t offset_ = 0;
};

int64_t lay_out(const Geometry& geometry, const void* weights, Network& network, std::vector<Layer>& layers) {
  Cursor cursor(weights, geometry);
  network.embedding = cursor.floats(network.classes * network.residual_padded);
  int64_t row = 0;
  for (size_t index = 0; index < layers.size(); ++index) {
    const bool last = index + 1 == layers.size();
    Layer& layer = layers[index];
    layer.dilation = geometry.dilations[index];
    layer.depth = (network.taps - 1) * layer.dilation;
    layer.ring_row = row;
    row += layer.depth;
    layer.dilated =
        cursor.matrix(2 * network.dilated_padded, (network.taps - 1) * network.residual, network.residual);
    layer.dilated_bias = cursor.floats(2 * network.dilated_padded);
    layer.residual_bias = last ? nullptr : cursor.floats(network.residual_padded);
    layer.output = cursor.matrix(network.skip_padded + (last ? 0 : network.residual_padded), network.dilated);
  }
  network.queue_steps = row;
  network.skip_bias = cursor.floats(network.skip_padded);
  network.head1 = cursor.matrix(network.head_padded, network.skip);
  network.head1_bias = cursor.floats(network.head_padded);
  network.head2 = cursor.matrix(network.classes_padded, network.head);
  network.head2_bias = cursor.floats(network.classes_padded);
  return cursor.offset();
}

}  // namespace

Geometry parse_geometry(const int64_t* entries, size_t count) {
  if (count < kHeaderEntries) {
    throw std::runtime_error("geometry has " + std::to_string(count) + " entries: must have at least " +
                             std::to_string(kHeaderEntries));
  }
  if (entries[0] < 1 || entries[0] > 5) {
    throw std::runtime_error("geometry: weight layout " + std::to_string(entries[0]) +
                             " is unknown: must be 1 (fp32), 2 (bf16), 3 (int8), 4 (fp16 tiles) or 5 "
                             "(bf16 tiles)");
  }
  Geometry geometry;
  const bool tiled = entries[0] > 3;
  geometry.precision = tiled ? Precision::kFp32 : static_cast<Precision>(entries[0]);
  geometry.tiles = tiled ? static_cast<Tiles>(entries[0]) : Tiles::kNone;
  geometry.classes = checked("quantization_channels", entries[1], 2, kMaxChannels);
  geometry.residual = checked("residual_channels", entries[2], 1, kMaxChannels);
  geometry.dilated = checked("dilation_channels", entries[3], 1, kMaxChannels);
  geometry.skip = checked("skip_channels", entries[4], 1, kMaxChannels);
  geometry.head = checked("head_channels", entries[5], 1, kMaxChannels);
  geometry.taps = checked("kernel_size", entries[6], 2, kMaxTaps);
  const int64_t layers = checked("layers", entries[7], 1, kMaxLayers);
  if (count != kHeaderEntries + static_cast<size_t>(layers)) {
    throw std::runtime_error("geometry has " + std::to_string(count) + " entries: " + std::to_string(layers) +
                             " layers need " + std::to_string(kHeaderEntries + layers));
  }
  for (size_t index = kHeaderEntries; index < count; ++index) {
    geometry.dilations.push_back(checked("dilation", entries[index], 1, kMaxDilation));
  }
  if (geometry.precision == Precision::kInt8) {
    const int64_t inputs = geometry.taps * geometry.residual;
    if (inputs > kMaxInt8Inputs) {
      throw std::runtime_error("kernel_size * residual_channels = " + std::to_string(inputs) +
                               ": int8 supports at most " + std::to_string(kMaxInt8Inputs) +
                               "; use bf16 or fp32");
    }
  }
  return geometry;
}

Network bind_weights(const Geometry& geometry, const void* weights, int64_t count,
                     std::vector<Layer>& layers) {
  const int64_t pad = geometry.precision == Precision::kBf16 ? 2 * kPad : kPad;
  const auto padded = [pad](int64_t channels) { return (channels + pad - 1) / pad * pad; };
  Network network{};
  network.precision = geometry.precision;
  network.tiles = geometry.tiles;
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
    throw std::runtime_error("weights has " + std::to_string(count) + " bytes: the geometry requires " +
                             std::to_string(needed));
  }
  lay_out(geometry, weights, network, layers);
  network.layer = layers.data();
  return network;
}

}  // namespace wavenet
