#include "cpu/engine.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/simd/denormals.h"

#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace wavenet::cpu {
namespace {

struct InstructionSet {
  const char* name;
  RunGroup run_group;
  FrameBias frame_bias;
  ReadWords read_words;
  MultiplyAdds multiply_adds;
};

#if defined(__aarch64__)
// Returns whether the processor has the int8 dot product instructions (FEAT_DotProd).
bool has_dot_product() {
#if defined(__APPLE__)
  int found = 0;
  size_t size = sizeof(found);
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found != 0;
#elif defined(AT_HWCAP)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // HWCAP_ASIMDDP of asm/hwcap.h
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#else
  return false;
#endif
}
#endif

// Returns the instruction sets that this processor supports, slowest first.
const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> found{
        {"base", base::run_group, base::frame_bias, base::read_words, base::multiply_adds}};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      found.push_back({"avx2", avx2::run_group, avx2::frame_bias, avx2::read_words, avx2::multiply_adds});
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back(
          {"avx512", avx512::run_group, avx512::frame_bias, avx512::read_words, avx512::multiply_adds});
      if (__builtin_cpu_supports("avx512vnni"))
        found.push_back({"avx512vnni", avx512vnni::run_group, avx512vnni::frame_bias, avx512vnni::read_words,
                         avx512vnni::multiply_adds});
    }
#elif defined(__aarch64__)
    found.push_back({"neon", neon::run_group, neon::frame_bias, neon::read_words, neon::multiply_adds});
    if (has_dot_product()) {
      found.push_back(
          {"neondot", neondot::run_group, neondot::frame_bias, neondot::read_words, neondot::multiply_adds});
    }
#endif
    return found;
  }();
  return sets;
}

const InstructionSet& selected() {
  const std::vector<InstructionSet>& sets = instruction_sets();
  const char* forced = std::getenv("WAVENET_CPU");
  if (forced == nullptr || *forced == '\0') return sets.back();
  for (const InstructionSet& set : sets) {
    if (std::string(forced) == set.name) return set;
  }
  throw std::runtime_error("WAVENET_CPU = " + std::string(forced) +
                           ": not available on this machine; choose from: " + available_instruction_sets());
}

int64_t groups_of(int64_t streams) { return (streams + kGroup - 1) / kGroup; }

// Owns the arrays of a Scratch: all memory of a thread, allocated before its first sample.
class Workspace {
 public:
  Workspace(const Network& net, int64_t streams) {
    // The first call adds up the sizes, the second one assigns the addresses.
    lay_out(net, streams);
    memory_.resize(used_ + kAlignment);
    next_ = memory_.data();
    next_ += (kAlignment - reinterpret_cast<uintptr_t>(next_) % kAlignment) % kAlignment;
    lay_out(net, streams);
  }

  const Scratch& scratch() const { return scratch_; }

 private:
  static constexpr size_t kAlignment = 64;

  template <typename T>
  void take(T*& array, int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (next_ != nullptr) {
      array = reinterpret_cast<T*>(next_);
      next_ += bytes;
    }
    used_ += bytes;
  }

  void lay_out(const Network& net, int64_t streams) {
    const auto padded = [](int64_t count) { return (count + kPad - 1) / kPad * kPad; };
    scratch_.taps_stride = padded(net.taps * net.residual);
    const auto take_int8 = [&](QuantizedRows& bytes, int64_t inputs) {
      bytes.stride = padded(inputs / kPacked);
      take(bytes.words, streams * bytes.stride);
      take(bytes.scale, streams);
    };
    take(scratch_.hidden, streams * (net.residual_padded + net.skip_padded));
    take(scratch_.taps, streams * scratch_.taps_stride);
    take(scratch_.activation, streams * 2 * net.dilated_padded);
    take(scratch_.gated, streams * net.dilated_padded);
    take(scratch_.head, streams * net.head_padded);
    take(scratch_.logits, streams * net.classes_padded);
    take(scratch_.slot, streams * net.layers);
    take_int8(scratch_.taps_int8, scratch_.taps_stride);
    take_int8(scratch_.gated_int8, net.dilated_padded);
    take_int8(scratch_.head_int8, std::max(net.skip_padded, net.head_padded));
    take(scratch_.weights, net.classes_padded);
    take(scratch_.order, net.classes);
    take(scratch_.frame, streams);
    take(scratch_.sums, net.layers * 2 * net.dilated_padded);
    take(scratch_.cached_bias, 1);
  }

  std::vector<unsigned char> memory_;
  unsigned char* next_ = nullptr;
  size_t used_ = 0;
  Scratch scratch_{};
};

// Runs rows [begin, end) in groups of nearly equal size; `failed` has one entry per row.
void run_rows(const Params& params, RunGroup run_group, const Scratch& scratch, int64_t begin, int64_t end,
              int64_t* failed) {
  const FlushDenormals flush;
  const int64_t groups = groups_of(end - begin);
  for (int64_t index = 0; index < groups; ++index) {
    const int64_t first = begin + (end - begin) * index / groups;
    const int64_t next = begin + (end - begin) * (index + 1) / groups;
    run_group(params, first, next - first, scratch, failed + first);
  }
}

// Joins its threads on destruction, so that none outlives the tensors that it writes to.
class Threads {
 public:
  explicit Threads(size_t most) { threads_.reserve(most); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads() {
    for (std::thread& thread : threads_) thread.join();
  }

  template <typename Work>
  void start(Work work) {
    try {
      threads_.emplace_back(work);
    } catch (const std::system_error& error) {
      throw std::runtime_error("thread " + std::to_string(threads_.size() + 2) +
                               " could not be started: " + error.what() + "; use fewer threads");
    }
  }

 private:
  std::vector<std::thread> threads_;
};

}  // namespace

void run(const Params& params, int64_t threads) {
  const RunGroup run_group = selected().run_group;
  if (params.batch == 0 || params.steps == 0) return;
  const int64_t count = threads < params.batch ? threads : params.batch;
  std::vector<int64_t> failed(static_cast<size_t>(params.batch), kFinite);
  std::vector<Workspace> workspaces;
  workspaces.reserve(static_cast<size_t>(count));
  const int64_t rows_each = (params.batch + count - 1) / count;
  for (int64_t index = 0; index < count; ++index) {
    // With forced samples, consecutive steps of one stream form a group.
    const int64_t rows = params.forced == nullptr ? rows_each : params.steps;
    workspaces.emplace_back(params.network, rows < kGroup ? rows : kGroup);
  }
  {
    const auto rows = [&](int64_t index) {
      run_rows(params, run_group, workspaces[static_cast<size_t>(index)].scratch(),
               params.batch * index / count, params.batch * (index + 1) / count, failed.data());
    };
    Threads helpers(static_cast<size_t>(count));
    for (int64_t index = 1; index < count; ++index) helpers.start([&rows, index] { rows(index); });
    rows(0);
  }
  for (int64_t row = 0; row < params.batch; ++row) {
    const int64_t position = failed[static_cast<size_t>(row)];
    if (position != kFinite) throw NonFinite(position, row);
  }
}

void frame_bias(const Conditioner& conditioner, float limit, const float* frames, int64_t batch,
                int64_t count, float* bias) {
  const auto run_frames = selected().frame_bias;
  if (batch == 0) return;
  const size_t rows = static_cast<size_t>(count);
  const size_t inputs = static_cast<size_t>(std::max(conditioner.features, conditioner.classes));
  const size_t width = static_cast<size_t>(conditioner.width_padded);
  std::vector<float> features(rows * inputs), hidden(rows * width), other(rows * width), block(rows * kBlock);
  FrameParams params{conditioner,     limit,         frames,       count,       bias,
                     features.data(), hidden.data(), other.data(), block.data()};
  const FlushDenormals flush;
  for (int64_t row = 0; row < batch; ++row) {
    run_frames(params);
    params.frames += (conditioner.classes + conditioner.features) * count;
    params.bias += (count - conditioner.context_frames) * conditioner.outputs;
  }
}

namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double read_rate(const void* data, int64_t bytes, double seconds) {
  const ReadWords read_words = selected().read_words;
  const auto start = std::chrono::steady_clock::now();
  volatile int32_t sink = 0;
  int64_t times = 0;
  do {
    sink = sink ^ read_words(static_cast<const int32_t*>(data), bytes / 4);
    ++times;
  } while (seconds_since(start) < seconds);
  return static_cast<double>(times * bytes) / seconds_since(start);
}

double multiply_add_rate(bool int8, double seconds) {
  const MultiplyAdds multiply_adds = selected().multiply_adds;
  const auto start = std::chrono::steady_clock::now();
  const int32_t table[kTable] = {};
  float sink = 0.0f;
  int64_t done = 0;
  do {
    done += multiply_adds(int8, table, 10000, &sink);
  } while (seconds_since(start) < seconds);
  return static_cast<double>(done) / seconds_since(start) + sink;
}

std::string available_instruction_sets() {
  std::string names;
  for (const InstructionSet& set : instruction_sets())
    names += (names.empty() ? "" : " ") + std::string(set.name);
  return names;
}

std::string instruction_set() { return selected().name; }

}  // namespace wavenet::cpu
