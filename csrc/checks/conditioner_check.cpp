// Computes gate biases with random conditioners without torch or Python, under sanitizers and on other
// processors; csrc/checks/check_cpu.sh builds it. Every array has its exact size, so that sanitizers detect
// reads beyond it.
//
// Checks: frames in pieces give the same result as all frames at once, to the bit; instruction sets agree to
// rounding with each other and with a computation in double that follows wavenet/models/conditioner.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/engine.h"

namespace {

constexpr int64_t kTaps = 3;
constexpr float kLimit = 5.0f;

int64_t padded(int64_t count) { return (count + wavenet::kPad - 1) / wavenet::kPad * wavenet::kPad; }

// A conditioner in the engine's layout, and its weights as rows (outputs, inputs).
struct Case {
  std::vector<int64_t> entries;
  std::vector<float> weights, frames;
  std::vector<double> centre, scale, mixture, projection;
  std::vector<std::vector<double>> taps, biases;  // taps of the first convolution, of the second, ...
  int64_t classes, features, width, outputs, batch, count, context_frames = 0;
};

class Maker {
 public:
  explicit Maker(unsigned seed) : engine_(seed) {}

  int64_t number(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }

  std::vector<double> vector(Case& c, int64_t count) {
    std::vector<double> values = some(count);
    c.weights.insert(c.weights.end(), values.begin(), values.end());
    c.weights.resize(c.weights.size() + static_cast<size_t>(padded(count) - count));
    return values;
  }

  // Writes blocks of 64 padded outputs, each input by input.
  std::vector<double> matrix(Case& c, int64_t outputs, int64_t inputs) {
    const std::vector<double> rows = some(outputs * inputs);
    for (int64_t first = 0; first < padded(outputs); first += wavenet::kBlock) {
      const int64_t end = std::min(first + wavenet::kBlock, padded(outputs));
      for (int64_t i = 0; i < inputs; ++i) {
        for (int64_t o = first; o < end; ++o) {
          c.weights.push_back(o < outputs ? static_cast<float>(rows[static_cast<size_t>(o * inputs + i)])
                                          : 0);
        }
      }
    }
    return rows;
  }

  std::vector<double> some(int64_t count) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values) value = std::normal_distribution<float>(0.0f, 0.4f)(engine_);
    return values;
  }

 private:
  std::mt19937 engine_;
};

Case random_case(unsigned seed) {
  Maker maker(seed);
  Case c;
  c.features = seed % 3 == 0 ? 0 : maker.number(1, 40);
  c.classes = maker.number(c.features == 0 ? 1 : 0, 4);
  c.width = maker.number(1, 90);
  c.outputs = maker.number(1, 200);
  c.batch = maker.number(1, 3);
  c.entries = {c.classes, c.features, c.width, c.outputs, kTaps};
  if (c.features > 0) {
    c.centre = maker.vector(c, c.features);
    c.scale = maker.vector(c, c.features);
    for (const int64_t dilation : {1, 2, 4}) {
      for (int64_t tap = 0; tap < kTaps; ++tap) {
        c.taps.push_back(maker.matrix(c, c.width, c.biases.empty() ? c.features : c.width));
      }
      c.biases.push_back(maker.vector(c, c.width));
      c.entries.push_back(dilation);
      c.context_frames += (kTaps - 1) * dilation;
    }
  }
  if (c.classes > 0) c.mixture = maker.matrix(c, c.width, c.classes);
  c.projection = maker.matrix(c, c.outputs, c.width);
  c.count = c.context_frames + maker.number(1, 50);
  const std::vector<double> frames = maker.some(c.batch * (c.classes + c.features) * c.count);
  c.frames.assign(frames.begin(), frames.end());
  return c;
}

// Returns the frames [first, first + count) of every row.
std::vector<float> part_of(const Case& c, int64_t first, int64_t count) {
  std::vector<float> part;
  for (int64_t row = 0; row < c.batch * (c.classes + c.features); ++row) {
    const auto from = c.frames.begin() + row * c.count + first;
    part.insert(part.end(), from, from + count);
  }
  return part;
}

// Returns the gate bias of `wanted` frames from `first` on, (batch, wanted, outputs).
std::vector<float> bias_of(const Case& c, int64_t first, int64_t wanted) {
  const int64_t count = wanted + c.context_frames;
  const std::vector<float> frames = part_of(c, first, count);
  std::vector<float> bias(static_cast<size_t>(c.batch * wanted * c.outputs));
  const wavenet::Conditioner conditioner = wavenet::bind_conditioner(
      c.entries.data(), c.entries.size(), c.weights.data(), static_cast<int64_t>(c.weights.size()));
  wavenet::cpu::frame_bias(conditioner, kLimit, frames.data(), c.batch, count, bias.data());
  return bias;
}

using Rows = std::vector<std::vector<double>>;

void add_product(const std::vector<double>& matrix, const std::vector<double>& x, std::vector<double>& out) {
  for (size_t o = 0; o < out.size(); ++o) {
    for (size_t i = 0; i < x.size(); ++i) out[o] += matrix[o * x.size() + i] * x[i];
  }
}

// Computes the gate bias of one row of the batch in double: (frames, outputs).
Rows defined(const Case& c, int64_t row) {
  const float* frames = c.frames.data() + row * (c.classes + c.features) * c.count;
  Rows hidden(static_cast<size_t>(c.count), std::vector<double>(static_cast<size_t>(c.features)));
  for (int64_t f = 0; f < c.features; ++f) {
    for (int64_t t = 0; t < c.count; ++t) {
      const auto at = static_cast<size_t>(f);
      hidden[static_cast<size_t>(t)][at] =
          (frames[(c.classes + f) * c.count + t] - c.centre[at]) * c.scale[at];
    }
  }
  for (size_t index = 0; index < c.biases.size(); ++index) {
    const auto dilation = static_cast<size_t>(c.entries[5 + index]);
    Rows next(hidden.size() - (kTaps - 1) * dilation, c.biases[index]);
    for (size_t t = 0; t < next.size(); ++t) {
      for (size_t tap = 0; tap < kTaps; ++tap) {
        std::vector<double> x = hidden[t + tap * dilation];
        for (double& value : x) value = index == 0 ? value : std::tanh(value);
        add_product(c.taps[index * kTaps + tap], x, next[t]);
      }
      double squares = 0.0;
      for (double value : next[t]) squares += value * value;
      for (double& value : next[t]) value /= std::sqrt(1.0 + squares / static_cast<double>(c.width));
    }
    hidden = next;
  }
  if (c.biases.empty()) hidden.assign(hidden.size(), std::vector<double>(static_cast<size_t>(c.width)));
  Rows bias(hidden.size(), std::vector<double>(static_cast<size_t>(c.outputs)));
  for (size_t t = 0; t < hidden.size(); ++t) {
    std::vector<double> weights;
    for (int64_t k = 0; k < c.classes; ++k) {
      weights.push_back(frames[k * c.count + c.context_frames / 2 + static_cast<int64_t>(t)]);
    }
    if (c.classes > 0) add_product(c.mixture, weights, hidden[t]);
    add_product(c.projection, hidden[t], bias[t]);
    for (double& value : bias[t]) value = kLimit * std::tanh(value);
  }
  return bias;
}

int check_case(unsigned seed) {
  const Case c = random_case(seed);
  const int64_t wanted = c.count - c.context_frames;
  std::istringstream names(wavenet::cpu::available_instruction_sets());
  for (std::string name; names >> name;) {
    setenv("WAVENET_CPU", name.c_str(), 1);
    const std::vector<float> whole = bias_of(c, 0, wanted);
    for (int64_t row = 0; row < c.batch; ++row) {
      const Rows expected = defined(c, row);
      for (int64_t i = 0; i < wanted * c.outputs; ++i) {
        const float found = whole[static_cast<size_t>(row * wanted * c.outputs + i)];
        const double right = expected[static_cast<size_t>(i / c.outputs)][static_cast<size_t>(i % c.outputs)];
        if (!(std::fabs(found - right) <= 1e-4)) {
          std::printf("conditioner %u, %s: %g, expected %g\n", seed, name.c_str(), found, right);
          return 1;
        }
      }
    }
    for (int64_t first = 0, piece = 1; first < wanted; first += piece, ++piece) {
      const int64_t some = std::min(piece, wanted - first);
      const std::vector<float> part = bias_of(c, first, some);
      for (int64_t row = 0; row < c.batch; ++row) {
        const auto from = part.begin() + row * some * c.outputs;
        if (!std::equal(from, from + some * c.outputs, whole.begin() + (row * wanted + first) * c.outputs)) {
          std::printf("conditioner %u, %s: pieces differ from all frames at once\n", seed, name.c_str());
          return 1;
        }
      }
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned cases = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 50;
  int failures = 0;
  for (unsigned seed = 0; seed < cases; ++seed) failures += check_case(seed);
  std::printf("%u random conditioners on %s: %d failures\n", cases,
              wavenet::cpu::available_instruction_sets().c_str(), failures);
  return failures == 0 ? 0 : 1;
}
