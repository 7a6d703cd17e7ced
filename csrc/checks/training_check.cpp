// Runs the layers and the loss of training on random shapes without torch or Python, under sanitizers;
// csrc/checks/check_cpu.sh builds it. Every array has its exact size, so that sanitizers detect accesses
// beyond it.
//
// Checks: the results and gradients of a layer against plain loops in double; one thread and several threads
// give results that are identical to the bit.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/engine.h"
#include "cpu/train/training_run.h"

namespace {

using wavenet::cpu::GatedLayer;
using Doubles = std::vector<double>;

int64_t pick(std::mt19937& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

std::vector<float> noise(std::mt19937& random, int64_t count, float scale) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// A layer of a random shape with its inputs.
struct Case {
  GatedLayer layer{};
  std::vector<float> x, dilated, dilated_bias, output, output_bias, frames, dgates, dy;

  explicit Case(unsigned seed) {
    std::mt19937 random(seed);
    layer.batch = pick(random, 1, 3);
    layer.steps = pick(random, 1, 130);
    layer.kept = pick(random, 1, layer.steps);
    layer.residual = pick(random, 1, 70);
    layer.channels = pick(random, 1, 70);
    layer.taps = pick(random, 2, 4);
    layer.dilation = pick(random, 1, 20);
    layer.last = pick(random, 0, 2) == 0;
    const int64_t rows = layer.steps + context(), branches = 2 * layer.channels;
    x = noise(random, layer.batch * rows * layer.residual, 1.0f);
    dilated = noise(random, branches * layer.taps * layer.residual, 0.2f);
    dilated_bias = noise(random, branches, 0.2f);
    output = noise(random, layer.residual * layer.channels, 0.2f);
    output_bias = noise(random, layer.residual, 0.2f);
    dgates = noise(random, layer.batch * layer.kept * layer.channels, 1.0f);
    dy = noise(random, layer.batch * layer.steps * layer.residual, 1.0f);
    if (pick(random, 0, 1) == 1) {
      layer.bias.frames = pick(random, 1, 5);
      layer.bias.hop = pick(random, 1, 50);
      layer.bias.start = pick(random, -60, 60);
      layer.bias.linear = pick(random, 0, 1) == 1;
      layer.bias.batch_stride = layer.bias.frames * branches;
      layer.frame_stride = branches;
      frames = noise(random, layer.batch * layer.bias.frames * branches, 0.5f);
      layer.bias.values = frames.data();
    }
    layer.x = x.data();
    layer.dilated_bias = dilated_bias.data();
    layer.residual_bias = output_bias.data();
    layer.gates_row_stride = layer.channels;
    layer.gates_batch_stride = layer.kept * layer.channels;
  }

  int64_t context() const { return (layer.taps - 1) * layer.dilation; }
  wavenet::cpu::LayerWeights weights() const {
    return {dilated.data(), layer.last ? nullptr : output.data()};
  }
};

// The named results and gradients of a layer.
struct Result {
  std::vector<std::pair<const char*, Doubles>> values;

  void add(const char* name, Doubles found) { values.emplace_back(name, std::move(found)); }
};

template <typename Stored>
double widen(Stored value) {
  return value;
}
template <>
double widen(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float found;
  __builtin_memcpy(&found, &bits, sizeof(found));
  return found;
}

template <typename Stored>
std::vector<Stored> stored(const std::vector<float>& from) {
  std::vector<Stored> to;
  for (const float value : from) {
    if (sizeof(Stored) == 4) {
      to.push_back(static_cast<Stored>(value));
    } else {
      uint32_t bits;
      __builtin_memcpy(&bits, &value, sizeof(bits));
      to.push_back(static_cast<Stored>(bits >> 16));
    }
  }
  return to;
}

template <typename Stored>
Doubles doubles(const std::vector<Stored>& from) {
  Doubles to;
  for (const Stored value : from) to.push_back(widen(value));
  return to;
}

template <typename Stored>
Result run_case(const Case& c, int64_t threads) {
  const bool bf16 = sizeof(Stored) == 2;
  const auto parallel_for = [threads](int64_t count, const std::function<void(int64_t)>& work) {
    std::vector<std::thread> pool;
    for (int64_t first = 0; first < threads; ++first) {
      pool.emplace_back([=, &work] {
        for (int64_t number = first; number < count; number += threads) work(number);
      });
    }
    for (std::thread& thread : pool) thread.join();
  };
  GatedLayer layer = c.layer;
  const int64_t branches = 2 * layer.channels, rows = layer.batch * layer.steps;
  std::vector<Stored> halves(static_cast<size_t>(rows * branches)), dactivation(halves.size());
  std::vector<Stored> gates(c.dgates.size()), dgates = stored<Stored>(c.dgates);
  std::vector<float> y(layer.last ? 0 : c.dy.size()), dx(c.x.size());
  layer.halves = halves.data();
  layer.gates = gates.data();
  layer.y = y.data();
  wavenet::cpu::forward(layer, c.weights(), bf16, parallel_for);
  std::vector<float> dilated(c.dilated.size()), dilated_bias(c.dilated_bias.size()), frames(c.frames.size());
  std::vector<float> output(layer.last ? 0 : c.output.size()),
      output_bias(layer.last ? 0 : c.output_bias.size());
  layer.gates = dgates.data();
  layer.dy = layer.last ? nullptr : c.dy.data();
  layer.dactivation = dactivation.data();
  layer.dx = dx.data();
  wavenet::cpu::backward(layer, c.weights(),
                         {dilated.data(), dilated_bias.data(), output.data(), output_bias.data(),
                          frames.empty() ? nullptr : frames.data()},
                         bf16, parallel_for);
  Result found;
  found.add("gates", doubles(gates));
  found.add("y", doubles(y));
  found.add("dx", doubles(dx));
  found.add("dilated", doubles(dilated));
  found.add("dilated bias", doubles(dilated_bias));
  found.add("output", doubles(output));
  found.add("output bias", doubles(output_bias));
  found.add("frames", doubles(frames));
  return found;
}

// The frame at a row, the next frame, and the weight of the latter.
struct Frames {
  int64_t here, next;
  double weight;
};

Frames frames_at(const GatedLayer& layer, int64_t row) {
  const double place = static_cast<double>(row - layer.bias.start) / static_cast<double>(layer.bias.hop);
  const auto clamped = [&](double frame) {
    return static_cast<int64_t>(std::min(std::max(frame, 0.0), static_cast<double>(layer.bias.frames - 1)));
  };
  const double frame = std::floor(place);
  return {clamped(frame), clamped(frame + 1), layer.bias.linear ? place - frame : 0.0};
}

Result truth(const Case& c) {
  const GatedLayer& l = c.layer;
  const int64_t d = l.channels, r = l.residual, inputs = l.taps * r, branches = 2 * d;
  Doubles gates(c.dgates.size()), y(l.last ? 0 : c.dy.size()), dx(c.x.size()), dilated(c.dilated.size());
  Doubles dilated_bias(c.dilated_bias.size()), frames(c.frames.size());
  Doubles output(l.last ? 0 : c.output.size()), output_bias(l.last ? 0 : c.output_bias.size());
  for (int64_t b = 0; b < l.batch; ++b) {
    for (int64_t row = 0; row < l.steps; ++row) {
      const int64_t x0 = (b * (l.steps + c.context()) + row) * r;
      const auto input = [&](int64_t i) { return x0 + i / r * l.dilation * r + i % r; };
      const Frames frame = c.frames.empty() ? Frames{} : frames_at(l, row);
      Doubles a(branches), da(branches), gate(d);
      for (int64_t o = 0; o < branches; ++o) {
        a[o] = c.dilated_bias[o];
        for (int64_t i = 0; i < inputs; ++i) a[o] += double(c.dilated[o * inputs + i]) * c.x[input(i)];
        if (c.frames.empty()) continue;
        const int64_t f = b * l.bias.frames;
        a[o] += (1 - frame.weight) * c.frames[(f + frame.here) * branches + o] +
                frame.weight * c.frames[(f + frame.next) * branches + o];
      }
      const int64_t at = (b * l.steps + row) * r, kept = row - (l.steps - l.kept);
      for (int64_t o = 0; o < d; ++o) {
        const double t = std::tanh(a[o]), s = 1 / (1 + std::exp(-a[d + o]));
        gate[o] = t * s;
        double dg = kept >= 0 ? c.dgates[(b * l.kept + kept) * d + o] : 0.0;
        if (kept >= 0) gates[(b * l.kept + kept) * d + o] = gate[o];
        for (int64_t i = 0; !l.last && i < r; ++i) dg += double(c.output[i * d + o]) * c.dy[at + i];
        da[o] = dg * s * (1 - t * t);
        da[d + o] = dg * t * s * (1 - s);
      }
      for (int64_t i = 0; !l.last && i < r; ++i) {
        const int64_t newest = x0 + c.context() * r + i;
        y[at + i] = double(c.x[newest]) + c.output_bias[i];
        for (int64_t o = 0; o < d; ++o) {
          y[at + i] += c.output[i * d + o] * gate[o];
          output[i * d + o] += c.dy[at + i] * gate[o];
        }
        output_bias[i] += c.dy[at + i];
        dx[newest] += c.dy[at + i];
      }
      for (int64_t o = 0; o < branches; ++o) {
        dilated_bias[o] += da[o];
        for (int64_t i = 0; i < inputs; ++i) {
          dilated[o * inputs + i] += da[o] * c.x[input(i)];
          dx[input(i)] += da[o] * c.dilated[o * inputs + i];
        }
        if (c.frames.empty()) continue;
        const int64_t f = b * l.bias.frames;
        frames[(f + frame.here) * branches + o] += (1 - frame.weight) * da[o];
        frames[(f + frame.next) * branches + o] += frame.weight * da[o];
      }
    }
  }
  Result found;
  found.add("gates", gates);
  found.add("y", y);
  found.add("dx", dx);
  found.add("dilated", dilated);
  found.add("dilated bias", dilated_bias);
  found.add("output", output);
  found.add("output bias", output_bias);
  found.add("frames", frames);
  return found;
}

// Returns the distance between two arrays relative to the size of the second.
double distance(const Doubles& found, const Doubles& expected) {
  double apart = 0, size = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    apart += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(apart / size);
}

template <typename Stored>
int check_case(unsigned seed, const std::string& set) {
  const Case c(seed);
  const Result found = run_case<Stored>(c, 1), expected = truth(c);
  const double most = sizeof(Stored) == 4 ? 1e-5 : 0.05;
  if (run_case<Stored>(c, 3).values != found.values) {
    std::printf("layer %u, %s: three threads differ from one\n", seed, set.c_str());
    return 1;
  }
  for (size_t index = 0; index < found.values.size(); ++index) {
    const auto& [name, values] = expected.values[index];
    const double apart = distance(found.values[index].second, values);
    if (apart < most) continue;
    std::printf("layer %u, %s, %zu bytes: %s is %g off\n", seed, set.c_str(), sizeof(Stored), name, apart);
    return 1;
  }
  return 0;
}

// Returns the largest amount by which an error exceeds the fraction `part` of its value.
double excess(const Doubles& found, const Doubles& expected, double part) {
  double most = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(found[i])) return HUGE_VAL;
    most = std::max(most, std::fabs(found[i] - expected[i]) - part * std::fabs(expected[i]));
  }
  return most;
}

// Checks cross-entropies of rows of logits and their gradients against sums in double.
template <typename Stored>
int check_losses(unsigned seed, const std::string& set) {
  std::mt19937 random(seed);
  const int64_t rows = pick(random, 0, 40), classes = pick(random, 1, 70);
  const std::vector<Stored> logits = stored<Stored>(noise(random, rows * classes, 3.0f));
  const std::vector<float> dnats = noise(random, rows, 1.0f);
  std::vector<int64_t> targets;
  for (int64_t row = 0; row < rows; ++row) targets.push_back(pick(random, -1, classes - 1));
  std::vector<float> nats(dnats.size()), normalizers(dnats.size());
  std::vector<Stored> dlogits(logits.size());
  wavenet::cpu::Losses losses{
      rows,         classes,       logits.data(), targets.data(), -1, nats.data(), normalizers.data(),
      dnats.data(), dlogits.data()};
  const auto parallel_for = [](int64_t count, const std::function<void(int64_t)>& work) {
    for (int64_t number = 0; number < count; ++number) work(number);
  };
  wavenet::cpu::cross_entropy(losses, sizeof(Stored) == 2, parallel_for);
  wavenet::cpu::cross_entropy_backward(losses, sizeof(Stored) == 2, parallel_for);
  Doubles expected, gradients;
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (int64_t i = 0; i < classes; ++i) sum += std::exp(widen(logits[row * classes + i]));
    const int64_t target = targets[row];
    expected.push_back(target < 0 ? 0.0 : std::log(sum) - widen(logits[row * classes + target]));
    for (int64_t i = 0; i < classes; ++i) {
      const double gradient = std::exp(widen(logits[row * classes + i])) / sum - (i == target ? 1.0 : 0.0);
      gradients.push_back(target < 0 ? 0.0 : gradient * dnats[row]);
    }
  }
  // With few classes results are often close to 0, so the tolerance is relative to each value, plus the
  // rounding of float32 next to 1.
  const double part = sizeof(Stored) == 2 ? 1.01 / 256 : 2e-5;
  double apart = excess(doubles(nats), expected, 2e-5);
  apart = std::max(apart, excess(doubles(dlogits), gradients, part));
  if (apart <= 2e-6) return 0;
  std::printf("losses %u, %s, %zu bytes: error %g\n", seed, set.c_str(), sizeof(Stored), apart);
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned cases = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 50;
  int failures = 0, done = 0;
  for (const char* set : {"avx2", "avx512"}) {
    if (wavenet::cpu::available_instruction_sets().find(set) == std::string::npos) continue;
    setenv("WAVENET_CPU", set, 1);
    for (unsigned seed = 0; seed < cases; ++seed) {
      failures += check_case<float>(seed, set) + check_losses<float>(seed, set);
      ++done;
      if (!wavenet::cpu::can_train(true)) continue;
      failures += check_case<uint16_t>(seed, set) + check_losses<uint16_t>(seed, set);
      ++done;
    }
  }
  std::printf("%d layers of training: %d failures\n", done, failures);
  return failures == 0 ? 0 : 1;
}
