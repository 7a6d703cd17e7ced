// Runs the CPU engine on random networks without torch or Python, under sanitizers and on other processors;
// csrc/checks/check_cpu.sh builds it. Every array has its exact size, so that sanitizers detect reads beyond
// it.
//
// Checks in every precision: chunks on several threads equal one call on one thread, to the bit; feeding
// generated samples results in the same queues as generating them, to the bit; instruction sets agree to
// rounding, in int8 to the bit; memory allocation does not depend on the number of samples (if a sanitizer
// can count allocations). The last line is a checksum of the int8 results of the first networks, which is
// equal on all processors.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/engine.h"

// Declared in sanitizer/allocator_interface.h, which GCC does not install. Null without a sanitizer.
extern "C" __attribute__((weak)) int __sanitizer_install_malloc_and_free_hooks(
    void (*)(const volatile void*, size_t), void (*)(const volatile void*));

namespace {

using wavenet::cpu::Params;

// A random network, the state of its streams, and the parameters of a call.
struct Case {
  std::vector<int64_t> entries;
  wavenet::Geometry geometry;
  std::vector<wavenet::Layer> layers;
  std::vector<unsigned char> weights;
  std::vector<float> queues, uniforms, gate;
  std::vector<double> temperature, top_p;
  std::vector<int64_t> top_k;
  std::vector<int64_t> position, last_sample, samples;
  int64_t batch, steps, frames;
  Params params{};
};

// The distributions of the standard library differ between implementations; these do not.
int64_t pick(std::mt19937& random, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(random()) % (high - low + 1);
}

// Returns an approximately normal number, a sum of four uniform ones.
float noise(std::mt19937& random, float scale) {
  float sum = -2.0f;
  for (int each = 0; each < 4; ++each) sum += static_cast<float>(random() >> 8) / 16777216.0f;
  return sum * 1.7320508f * scale;
}

void fill(std::mt19937& random, std::vector<float>& values, size_t count, float scale) {
  values.resize(count);
  for (float& value : values) value = noise(random, scale);
}

int64_t count_weights(const wavenet::Geometry& geometry) {
  // Only the error message contains the required size.
  std::vector<wavenet::Layer> layers;
  try {
    wavenet::bind_weights(geometry, nullptr, -1, layers);
  } catch (const std::exception& error) {
    const std::string message = error.what();
    return std::stoll(message.substr(message.rfind(' ') + 1));
  }
  return 0;
}

// Fills the weights through the engine's pointers.
class Filler {
 public:
  explicit Filler(std::mt19937& random) : random_(random) {}

  void floats(const float* to, int64_t count, float scale) {
    for (int64_t index = 0; index < count; ++index) const_cast<float*>(to)[index] = noise(random_, scale);
  }

  void matrix(const wavenet::Network& net, const wavenet::Matrix& matrix) {
    const int64_t count = matrix.outputs * matrix.inputs;
    if (net.precision == wavenet::Precision::kFp32) {
      floats(reinterpret_cast<const float*>(matrix.words), count, 0.2f);
    } else if (net.precision == wavenet::Precision::kBf16) {
      auto* to = reinterpret_cast<uint16_t*>(const_cast<int32_t*>(matrix.words));
      // Magnitudes from 2^-8 to 2^-1, of both signs.
      for (int64_t index = 0; index < count; ++index) {
        const int64_t exponent = pick(random_, 119, 126), fraction = pick(random_, 0, 127);
        to[index] = static_cast<uint16_t>(exponent << 7 | fraction | pick(random_, 0, 1) << 15);
      }
    } else {
      int8(matrix);
    }
  }

 private:
  void int8(const wavenet::Matrix& matrix) {
    const int64_t steps = (matrix.inputs + wavenet::kPacked - 1) / wavenet::kPacked;
    auto* to = reinterpret_cast<int8_t*>(const_cast<int32_t*>(matrix.words));
    for (int64_t output = 0; output < matrix.outputs; ++output) {
      const int64_t block = output / wavenet::kBlock * wavenet::kBlock;
      const int64_t width = std::min(wavenet::kBlock, matrix.outputs - block);
      int32_t sum = 0;
      for (int64_t input = 0; input < steps * wavenet::kPacked; ++input) {
        const int64_t word = block * steps + input / wavenet::kPacked * width + output - block;
        const int64_t weight = input < matrix.inputs ? pick(random_, -127, 127) : 0;
        to[word * wavenet::kPacked + input % wavenet::kPacked] = static_cast<int8_t>(weight);
        sum += static_cast<int32_t>(weight);
      }
      const float scale = 0.001f * static_cast<float>(pick(random_, 1, 5));
      uint32_t bits;
      std::memcpy(&bits, &scale, sizeof(bits));
      // With this few inputs, the sum fits in 16 bits.
      bits = (bits & 0xffff0000u) | static_cast<uint32_t>(32768 + sum);
      std::memcpy(const_cast<float*>(matrix.scale) + output, &bits, sizeof(bits));
    }
  }

  std::mt19937& random_;
};

void fill_weights(std::mt19937& random, const wavenet::Network& net) {
  Filler filler(random);
  filler.floats(net.embedding, net.classes * net.residual_padded, 1.0f);
  for (int64_t index = 0; index < net.layers; ++index) {
    const wavenet::Layer& layer = net.layer[index];
    filler.matrix(net, layer.dilated);
    filler.floats(layer.dilated_bias, 2 * net.dilated_padded, 0.2f);
    if (layer.residual_bias != nullptr) filler.floats(layer.residual_bias, net.residual_padded, 0.2f);
    filler.matrix(net, layer.output);
  }
  filler.floats(net.skip_bias, net.skip_padded, 0.2f);
  filler.matrix(net, net.head1);
  filler.floats(net.head1_bias, net.head_padded, 0.2f);
  filler.matrix(net, net.head2);
  filler.floats(net.head2_bias, net.classes_padded, 0.2f);
}

Case random_case(unsigned seed, int64_t precision) {
  std::mt19937 random(seed);
  Case c;
  const int64_t layers = pick(random, 1, 6);
  c.entries = {precision,
               pick(random, 2, 300),
               pick(random, 1, 70),
               pick(random, 1, 70),
               pick(random, 1, 140),
               pick(random, 1, 140),
               pick(random, 2, 4),
               layers};
  for (int64_t layer = 0; layer < layers; ++layer) c.entries.push_back(int64_t{1} << pick(random, 0, 4));
  c.geometry = wavenet::parse_geometry(c.entries.data(), c.entries.size());
  c.weights.resize(static_cast<size_t>(count_weights(c.geometry)));
  c.params.network =
      wavenet::bind_weights(c.geometry, c.weights.data(), static_cast<int64_t>(c.weights.size()), c.layers);
  // A packed network has zeros as padding; noise is fine too, since padded logits only have to be finite.
  fill_weights(random, c.params.network);
  // Sometimes more streams than a group can contain.
  c.batch = pick(random, 0, 3) > 0 ? pick(random, 1, 13) : pick(random, wavenet::cpu::kGroup, 90);
  c.steps = pick(random, 1, c.batch > 13 ? 12 : 60);
  c.frames = pick(random, 1, 5);
  const wavenet::Network& net = c.params.network;
  fill(random, c.queues, static_cast<size_t>(c.batch * net.queue_steps * net.residual), 1.0f);
  fill(random, c.gate, static_cast<size_t>(c.batch * c.frames * net.layers * 2 * net.dilated), 0.5f);
  for (int64_t row = 0; row < c.batch; ++row) {
    c.position.push_back(pick(random, 0, 100000));
    c.last_sample.push_back(pick(random, 0, net.classes - 1));
  }
  for (int64_t index = 0; index < c.batch * c.steps; ++index) {
    c.samples.push_back(pick(random, 0, net.classes - 1));
    c.uniforms.push_back(static_cast<float>(pick(random, 0, (1 << 24) - 1)) / 16777216.0f);
  }
  for (int64_t row = 0; row < c.batch; ++row) {
    c.temperature.push_back(pick(random, 0, 3) * 0.5);
    c.top_k.push_back(std::max<int64_t>(0, pick(random, -20, 20)));
    c.top_p.push_back(pick(random, 0, 1) == 0 ? 1.0 : 0.7);
  }
  c.params.sampling = {c.temperature.data(), c.top_k.data(), c.top_p.data()};
  if (pick(random, 0, 1) == 1) {
    c.params.gate = {c.gate.data(),
                     c.frames * net.layers * 2 * net.dilated,
                     c.frames,
                     pick(random, 1, 30),
                     pick(random, -50, 50),
                     pick(random, 0, 1) == 1};
  }
  return c;
}

// The results of a case.
struct Result {
  std::vector<float> logits, queues;
  std::vector<int64_t> output, position, last_sample;

  bool operator==(const Result& other) const {
    return logits == other.logits && queues == other.queues && output == other.output &&
           position == other.position && last_sample == other.last_sample;
  }
};

// Runs the steps in chunks. `drawing`: samples are generated, otherwise forced.
Result run_case(const Case& c, bool drawing, int64_t chunk, int64_t threads) {
  Result result;
  result.queues = c.queues;
  result.position = c.position;
  result.last_sample = c.last_sample;
  const int64_t classes = c.params.network.classes;
  result.output.resize(drawing ? c.samples.size() : 0);
  result.logits.resize(drawing ? 0 : c.samples.size() * static_cast<size_t>(classes));
  for (int64_t first = 0; first < c.steps; first += chunk) {
    Params params = c.params;
    params.batch = c.batch;
    params.steps = std::min(chunk, c.steps - first);
    params.queues = result.queues.data();
    params.position = result.position.data();
    params.last_sample = result.last_sample.data();
    std::vector<int64_t> forced, output(static_cast<size_t>(params.batch * params.steps));
    std::vector<float> uniforms, logits(output.size() * static_cast<size_t>(classes));
    for (int64_t row = 0; row < c.batch; ++row) {
      const int64_t at = row * c.steps + first;
      forced.insert(forced.end(), c.samples.begin() + at, c.samples.begin() + at + params.steps);
      uniforms.insert(uniforms.end(), c.uniforms.begin() + at, c.uniforms.begin() + at + params.steps);
    }
    if (drawing) {
      params.uniforms = uniforms.data();
      params.output = output.data();
    } else {
      params.forced = forced.data();
      params.logits = logits.data();
    }
    wavenet::cpu::run(params, threads);
    for (int64_t row = 0; row < c.batch; ++row) {
      const int64_t from = row * params.steps;
      const int64_t to = row * c.steps + first;
      if (drawing) {
        std::copy_n(output.begin() + from, params.steps, result.output.begin() + to);
      } else {
        std::copy_n(logits.begin() + from * classes, params.steps * classes,
                    result.logits.begin() + to * classes);
      }
    }
  }
  return result;
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 1.0f;
  for (float value : a) largest = std::max(largest, std::fabs(value));
  for (size_t index = 0; index < a.size(); ++index) {
    if (!(std::fabs(a[index] - b[index]) <= 1e-4f * largest)) return false;
  }
  return a.size() == b.size();
}

std::atomic<long> allocations{0};

void count_allocation(const volatile void*, size_t) { ++allocations; }

// Returns the number of allocations during one call. `leaky` adds one for every sample, to test the counter.
long allocations_of(const Case& c, bool drawing, int64_t steps, bool leaky) {
  Params params = c.params;
  std::vector<float> queues = c.queues;
  std::vector<int64_t> position = c.position, last_sample = c.last_sample;
  std::vector<int64_t> output(static_cast<size_t>(c.batch * steps));
  std::vector<float> logits(output.size() * static_cast<size_t>(params.network.classes));
  params.batch = c.batch;
  params.steps = steps;
  params.queues = queues.data();
  params.position = position.data();
  params.last_sample = last_sample.data();
  if (drawing) {
    params.uniforms = c.uniforms.data();
    params.output = output.data();
  } else {
    params.forced = c.samples.data();
    params.logits = logits.data();
  }
  const long before = allocations;
  wavenet::cpu::run(params, 1);
  for (int64_t step = 0; leaky && step < steps; ++step) {
    // Volatile, so that the compiler does not remove the pair.
    void* volatile block = std::malloc(16);
    std::free(block);
  }
  return allocations - before;
}

int check_allocations(const Case& c, unsigned seed, const std::string& name) {
  if (__sanitizer_install_malloc_and_free_hooks == nullptr) return 0;
  for (const bool drawing : {false, true}) {
    const long once = allocations_of(c, drawing, 1, false);
    if (once == 0 || allocations_of(c, drawing, c.steps, false) != once) {
      std::printf("case %u, %s: allocates in the sample loop\n", seed, name.c_str());
      return 1;
    }
    // The counter has to detect leaks.
    if (allocations_of(c, drawing, c.steps, true) != once + c.steps) {
      std::printf("case %u: the allocation counter does not work\n", seed);
      return 1;
    }
  }
  return 0;
}

// A checksum of values that are equal on all processors.
class Checksum {
 public:
  template <typename T>
  void add(const std::vector<T>& values) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
    // FNV-1a.
    for (size_t index = 0; index < values.size() * sizeof(T); ++index) {
      sum_ = (sum_ ^ bytes[index]) * 1099511628211u;
    }
  }

  uint64_t sum() const { return sum_; }

 private:
  uint64_t sum_ = 14695981039346656037u;
};

constexpr unsigned kSummed = 2;  // number of cases in the checksum

int check_case(unsigned seed, int64_t precision, Checksum& checksum) {
  const Case c = random_case(seed, precision);
  std::vector<float> first;
  std::vector<int64_t> first_output;
  std::istringstream names(wavenet::cpu::available_instruction_sets());
  for (std::string name; names >> name;) {
    setenv("WAVENET_CPU", name.c_str(), 1);
    if (check_allocations(c, seed, name) != 0) return 1;
    for (const bool drawing : {false, true}) {
      const Result whole = run_case(c, drawing, c.steps, 1);
      if (name == "base" && seed < kSummed && c.params.network.precision == wavenet::Precision::kInt8) {
        checksum.add(whole.logits);
        checksum.add(whole.queues);
        checksum.add(whole.output);
      }
      for (const int64_t threads : {1, 2, 5}) {
        if (!(run_case(c, drawing, 1 + threads * 3, threads) == whole)) {
          std::printf("case %u, layout %d, %s: %ld threads differ from one call\n", seed, int(precision),
                      name.c_str(), long(threads));
          return 1;
        }
      }
      const bool exact = c.params.network.precision == wavenet::Precision::kInt8;
      if (drawing) {
        if (first_output.empty()) first_output = whole.output;
        if (exact && first_output != whole.output) {
          std::printf("case %u, layout %d: %s generates other samples than base\n", seed, int(precision),
                      name.c_str());
          return 1;
        }
        Case again = c;
        again.samples = whole.output;
        if (run_case(again, false, 1 + c.steps / 2, 2).queues != whole.queues) {
          std::printf("case %u, layout %d, %s: feeding differs from generating\n", seed, int(precision),
                      name.c_str());
          return 1;
        }
        continue;
      }
      if (first.empty()) first = whole.logits;
      if (exact ? first != whole.logits : !close(first, whole.logits)) {
        std::printf("case %u, layout %d: %s differs from base\n", seed, int(precision), name.c_str());
        return 1;
      }
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned cases = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 50;
  const bool counts = __sanitizer_install_malloc_and_free_hooks != nullptr;
  if (counts) __sanitizer_install_malloc_and_free_hooks(count_allocation, [](const volatile void*) {});
  Checksum checksum;
  int failures = 0;
  for (unsigned seed = 0; seed < cases; ++seed) {
    for (const int64_t precision : {1, 2, 3}) failures += check_case(seed, precision, checksum);
  }
  std::printf("%u random networks in 3 precisions on %s%s: %d failures\n", cases,
              wavenet::cpu::available_instruction_sets().c_str(), counts ? "" : ", allocations not counted",
              failures);
  std::printf("int8 checksum of the first %u: %016llx\n", std::min(cases, kSummed),
              static_cast<unsigned long long>(checksum.sum()));
  return failures == 0 ? 0 : 1;
}
