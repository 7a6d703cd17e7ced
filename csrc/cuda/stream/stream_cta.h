// The kernel `stream_cta`: a block computes all samples of a chunk for a tile of streams.
//
// Weights are read from the L2 cache, which all blocks share, once per block and sample. Intermediate values
// stay in shared memory, queues in device memory. Blocks never wait for each other.
#pragma once

#include "cuda/params.h"
#include "cuda/step.h"
#include "cuda/stream/matvec.h"
#include "cuda/stream/plan.h"

namespace wavenet::cuda {

// Records an input that is out of range, in which case no stream advances; `index` numbers the inputs.
WAVENET_DEVICE void check_input(const Params& params, int64_t index) {
  if (index < params.batch) {
    if (params.position[index] < 0 || params.position[index] >= kMaxPosition)
      atomic_min(params.invalid, index);
    const int64_t sample = params.last_sample[index];
    if (sample < 0 || sample >= params.network.classes) atomic_min(params.invalid + 1, index);
  }
  if (index >= params.batch * params.steps) return;
  if (params.forced != nullptr) {
    if (params.forced[index] < 0 || params.forced[index] >= params.network.classes)
      atomic_min(params.invalid + 2, index);
  } else if (!(params.uniforms[index] >= 0.0f && params.uniforms[index] < 1.0f)) {
    atomic_min(params.invalid + 2, index);
  }
}

template <class Block, class Product>
class StreamCta {
 public:
  static constexpr int kStreams = Product::kStreams;

  WAVENET_DEVICE StreamCta(const Block& block, const Params& params, const Plan& plan, int64_t first,
                           unsigned char* shared)
      : block_(block), params_(params), net_(params.network), plan_(plan), first_(first), shared_(shared) {}

  WAVENET_DEVICE void run() {
    if (has_invalid_input(params_)) return;
    prepare();
    for (int64_t step = 0; step < params_.steps; ++step) {
      begin();
      for (int index = 0; index < net_.layers; ++index) step_layer(index);
      step_head(step + 1 < params_.steps);
      block_.warps([&](const auto& warp) {
        for (int s = warp.index(); s < kStreams; s += kWarps) finish(warp, s, step);
      });
    }
    block_.phase([&](int thread) {
      if (thread >= kStreams || first_ + thread >= params_.batch) return;
      params_.position[first_ + thread] = position()[thread];
      params_.last_sample[first_ + thread] = last()[thread];
    });
  }

 private:
  template <class T>
  WAVENET_DEVICE T* at(int64_t offset) const {
    return reinterpret_cast<T*>(shared_ + offset);
  }
  WAVENET_DEVICE float* hidden() const { return at<float>(plan_.hidden); }
  WAVENET_DEVICE float* taps(int index) const { return at<float>(plan_.taps[index % 2]); }
  WAVENET_DEVICE float* skip() const { return at<float>(plan_.skip); }
  WAVENET_DEVICE float* logits() const { return at<float>(plan_.skip); }
  WAVENET_DEVICE float* activation() const { return at<float>(plan_.work); }
  WAVENET_DEVICE float* head() const { return at<float>(plan_.work); }
  WAVENET_DEVICE int64_t* position() const { return at<int64_t>(plan_.position); }
  WAVENET_DEVICE GateFrame* frame() const { return at<GateFrame>(plan_.frame); }
  WAVENET_DEVICE int32_t* last() const { return at<int32_t>(plan_.last); }
  // Whether a stream exists and has not stopped.
  WAVENET_DEVICE int32_t* active() const { return at<int32_t>(plan_.active); }
  // Ring row of each stream's next input to a layer.
  WAVENET_DEVICE int32_t* slot(int index) const { return at<int32_t>(plan_.slot) + index * kStreams; }
  WAVENET_DEVICE float* queues(int s) const {
    return params_.queues + (first_ + s) * net_.queue_steps * net_.residual;
  }

  WAVENET_DEVICE void prepare() {
    // Streams that do not exist are computed too, without effect, so their channels must be finite.
    block_.phase([&](int thread) {
      for (int64_t word = thread; word < plan_.bytes / 4; word += kThreads) at<int32_t>(0)[word] = 0;
    });
    block_.phase([&](int thread) {
      for (int s = thread; s < kStreams && first_ + s < params_.batch; s += kThreads) {
        position()[s] = params_.position[first_ + s];
        last()[s] = static_cast<int32_t>(params_.last_sample[first_ + s]);
        active()[s] = 1;
      }
    });
    block_.phase([&](int thread) {
      for (int i = thread; i < net_.layers * kStreams; i += kThreads) {
        const Layer& layer = net_.layer[i / kStreams];
        slot(0)[i] = static_cast<int32_t>(position()[i % kStreams] % layer.depth);
      }
    });
    block_.phase([&](int thread) {
      gather(thread, 0);
      Block::wait_for_copies();
    });
  }

  // Starts to copy a layer's old taps; a warp copies a row of a ring.
  WAVENET_DEVICE void gather(int thread, int index) {
    const int old_taps = static_cast<int>(net_.taps) - 1;
    for (int row = thread / kWarpSize; row < kStreams * old_taps; row += kWarps) {
      const int s = row / old_taps;
      if (!active()[s]) continue;
      fetch_tap<Block>(net_, net_.layer[index], queues(s), slot(index)[s], row % old_taps, taps(index) + s,
                       plan_.stride, thread % kWarpSize);
    }
  }

  // Writes a layer's inputs to its rings, over the oldest taps, which were copied during the previous layer.
  WAVENET_DEVICE void store_inputs(int thread, int index) {
    for (int s = thread / kWarpSize; s < kStreams; s += kWarps) {
      if (!active()[s]) continue;
      store_input(net_, net_.layer[index], queues(s), slot(index)[s], hidden() + s, plan_.stride,
                  thread % kWarpSize);
    }
  }

  // Initializes the inputs of the first layer, the skip sums and the frames.
  WAVENET_DEVICE void begin() {
    const int channels = static_cast<int>(net_.residual_padded);
    block_.phase([&](int thread) {
      for (int s = thread / kWarpSize; s < kStreams; s += kWarps) {
        const float* embedding = net_.embedding + static_cast<int64_t>(last()[s]) * channels;
        for (int c = thread % kWarpSize; c < channels; c += kWarpSize) {
          hidden()[c * plan_.stride + s] = embedding[c];
        }
      }
      for (int i = thread; i < net_.skip_padded * kStreams; i += kThreads) {
        skip()[i / kStreams * plan_.stride + i % kStreams] = net_.skip_bias[i / kStreams];
      }
      if (params_.gate.values == nullptr || thread >= kStreams || !active()[thread]) return;
      frame()[thread] =
          gate_frame(params_.gate, first_ + thread, position()[thread], net_.layers * 2 * net_.dilated);
    });
  }

  // Computes one gated layer and updates the residual path and the skip sums.
  WAVENET_DEVICE void step_layer(int index) {
    const Layer& layer = net_.layer[index];
    const bool last = index + 1 == net_.layers;
    const int stride = plan_.stride;
    const int channels = static_cast<int>(net_.residual);
    const int width = static_cast<int>(net_.dilated_padded);
    block_.phase([&](int thread) {
      if (!last) gather(thread, index + 1);
      store_inputs(thread, index);
      const Inputs x{taps(index), static_cast<int>(net_.taps - 1) * channels, hidden(), channels};
      Product(thread).multiply(
          layer.dilated, x, stride,
          [&](int output, int s) {
            const bool conditioned = params_.gate.values != nullptr && active()[s];
            return initial_activation(net_, params_.gate, layer.dilated_bias[output], index, output,
                                      conditioned ? frame() + s : nullptr);
          },
          [&](int output, int s, float sum) { activation()[output * stride + s] = sum; });
    });
    block_.phase([&](int thread) {
      for (int i = thread; i < width * kStreams; i += kThreads) {
        float* filter = activation() + i / kStreams * stride + i % kStreams;
        *filter = gate(*filter, filter[width * stride]);
      }
      if (thread >= kStreams) return;
      int32_t& next = slot(index)[thread];
      next = next + 1 == layer.depth ? 0 : next + 1;
    });
    block_.phase([&](int thread) {
      step_output(thread, layer, last);
      Block::wait_for_copies();
    });
  }

  WAVENET_DEVICE void step_output(int thread, const Layer& layer, bool last) {
    const int residual = last ? 0 : static_cast<int>(net_.residual_padded);
    const auto place = [&](int output, int s) {
      float* to = output < residual ? hidden() : skip() - residual * plan_.stride;
      return to + output * plan_.stride + s;
    };
    Product(thread).multiply(
        layer.output, {activation(), static_cast<int>(net_.dilated), nullptr, 0}, plan_.stride,
        [&](int output, int s) {
          const float sum = *place(output, s);
          return output < residual ? sum + layer.residual_bias[output] : sum;
        },
        // The head applies ReLU to the complete skip sums.
        [&](int output, int s, float sum) { *place(output, s) = last ? relu(sum) : sum; });
  }

  // Computes the logits from the skip sums. Meanwhile copies the first layer's old taps for the next step.
  WAVENET_DEVICE void step_head(bool more) {
    const int stride = plan_.stride;
    block_.phase([&](int thread) {
      if (more) gather(thread, 0);
      Product(thread).multiply(
          net_.head1, {skip(), static_cast<int>(net_.skip), nullptr, 0}, stride,
          [&](int output, int) { return net_.head1_bias[output]; },
          [&](int output, int s, float sum) { head()[output * stride + s] = relu(sum); });
    });
    block_.phase([&](int thread) {
      Product(thread).multiply(
          net_.head2, {head(), static_cast<int>(net_.head), nullptr, 0}, stride,
          [&](int output, int) { return net_.head2_bias[output]; },
          [&](int output, int s, float sum) {
            if (output < net_.classes) logits()[s * plan_.row + logit_index(output, plan_.per_lane)] = sum;
          });
      Block::wait_for_copies();
    });
  }

  template <class Warp>
  WAVENET_DEVICE void finish(const Warp& warp, int s, int64_t step) {
    const float* row = logits() + s * plan_.row;
    const WarpSampler<Warp> sampler(warp, row, at<float>(plan_.weights) + warp.index() * plan_.row,
                                    at<double>(plan_.sums) + warp.index() * (kWarpSize + 1),
                                    static_cast<int>(net_.classes), plan_.per_lane);
    const int64_t number = (first_ + s) * params_.steps + step;
    finish_step(warp, params_, sampler, row, plan_.per_lane, first_ + s, step,
                params_.forced == nullptr ? params_.uniforms + number : nullptr,
                {active()[s], position()[s], last()[s]});
  }

  const Block& block_;
  const Params& params_;
  const Network& net_;
  const Plan& plan_;
  int64_t first_;
  unsigned char* shared_;
};

}  // namespace wavenet::cuda
