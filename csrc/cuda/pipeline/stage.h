// The computation of a pipeline's block in the kernels `stage_cluster` and `stage_grid`, for any kind of
// mailbox.
//
// plan.h describes the messages. A block processes them tile by tile, step by step, so that all blocks number
// them alike. `process` handles one message; the caller waits for the next message in between and provides
// the mailboxes.
//
// The arithmetic is identical to that of `stream_cta`: the same instructions and the same order of sums. A
// sum that is started early, or in another block, continues from its exact value.
#pragma once

#include <type_traits>

#include "cuda/pipeline/mailbox.h"
#include "cuda/pipeline/shared_memory.h"
#include "cuda/step.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {

template <class Block, class Mail, class Format>
class Stage : private StageMemory {
 public:
  using Sums = TileSums<Format, 1>;

  // Block `index` of the pipeline whose first stream is `first`.
  WAVENET_DEVICE Stage(const Block& block, const Mail& mail, const Params& params, const Pipeline& pipeline,
                       int index, int64_t first, unsigned char* shared)
      : StageMemory(params.network, pipeline, index, shared),
        block_(block),
        mail_(mail),
        params_(params),
        first_(first) {
    const int64_t left = (params.batch - first + kTileStreams - 1) / kTileStreams;
    tiles_ = static_cast<int>(left < pipeline.tiles ? left : pipeline.tiles);
  }

  // Loads tables and weights, and prepares the first message.
  WAVENET_DEVICE void prepare() {
    block_.phase([&](int thread) { load_plan(thread); });
    block_.phase([&](int thread) { load_tables(thread); });
    block_.phase([&](int thread) {
      load_weights(thread);
      if (plan_.kind == StageKind::kHead) return;
      const bool has_state = plan_.kind == StageKind::kSample;
      for (int i = thread; i < tiles_ * kTileStreams && first_ + i < params_.batch; i += kThreadsHere) {
        position()[i] = params_.position[first_ + i];
        if (!has_state) continue;
        last()[i] = static_cast<int32_t>(params_.last_sample[first_ + i]);
        active()[i] = 1;
      }
    });
    if (plan_.kind != StageKind::kLayers) return;
    prefetch_turn({0, 0});
    block_.phase([](int) { Block::wait_for_copies(); });
    precompute_sums();
  }

  WAVENET_DEVICE bool done() const { return step_ == params_.steps; }

  // Returns whether the next call of `process` needs a message.
  WAVENET_DEVICE bool needs_message() const {
    if (box() == kSkipSums) return plan_.box[kSkipSums].rows > 0;
    return index_ > 0 || step_ > 0;
  }
  WAVENET_DEVICE PendingMessage pending_message() const {
    // Samples return for the following step.
    const bool samples = index_ == 0 && box() == kInput;
    return {box(), tile_, samples ? step_ - 1 : step_, more()};
  }

  WAVENET_DEVICE void process() {
    if (plan_.kind == StageKind::kHead) {
      process_head();
    } else if (plan_.kind == StageKind::kSample) {
      process_sampling();
    } else if (!skip_sums_next_) {
      process_layers();
      prefetch_turn(next());
      skip_sums_next_ = true;
      return;
    } else {
      process_skip_sums();
      skip_sums_next_ = false;
    }
    const Turn turn = next();
    tile_ = turn.tile;
    step_ = turn.step;
    if (plan_.kind == StageKind::kLayers && !done()) precompute_sums();
  }

  // Writes the state of the streams back.
  WAVENET_DEVICE void finish() {
    if (plan_.kind != StageKind::kSample) return;
    block_.phase([&](int thread) {
      for (int i = thread; i < tiles_ * kTileStreams && first_ + i < params_.batch; i += kThreadsHere) {
        params_.position[first_ + i] = position()[i];
        params_.last_sample[first_ + i] = last()[i];
      }
    });
  }

 private:
  // A tile and a step.
  struct Turn {
    int tile;
    int64_t step;
  };
  WAVENET_DEVICE Turn next() const {
    return tile_ + 1 == tiles_ ? Turn{0, step_ + 1} : Turn{tile_ + 1, step_};
  }

  WAVENET_DEVICE Box box() const {
    return plan_.kind == StageKind::kHead || skip_sums_next_ ? kSkipSums : kInput;
  }
  WAVENET_DEVICE bool more() const { return step_ + 1 < params_.steps; }

  WAVENET_DEVICE int64_t stream(int tile, int s) const { return first_ + tile * kTileStreams + s; }
  WAVENET_DEVICE int64_t stream(int s) const { return stream(tile_, s); }
  WAVENET_DEVICE bool exists(int s) const { return stream(s) < params_.batch; }
  WAVENET_DEVICE float* queues(int64_t stream) const {
    return params_.queues + stream * net_.queue_steps * net_.residual;
  }

  // Adds the products of a part's outputs, from 16 * `row` on, to one warp's sums.
  WAVENET_DEVICE void multiply(Sums& sums, const Part& part, int row, const float* x) const {
    sums.accumulate(weights(part, row), x, kStageStride, part.words / kTileWords, read_tile_generic);
  }

  // Writes a warp's sums, of outputs from 16 * `row` on, to a mailbox.
  WAVENET_DEVICE void send(Sums& sums, int to, int box, int row) const {
    sums.for_pairs([&](float a, float b, int output, int s) {
      mail_.put(to, box, tile_, row * kTileOutputs + output, s, a, b);
    });
  }

  // Copies a message to the operands of products, converting rows of 8 numbers to channels.
  WAVENET_DEVICE void load_message(int thread, int box, int64_t channels) const {
    const float* from = mail_.slot(box, tile_);
    for (int i = thread; i < channels * kTileStreams; i += kThreadsHere) {
      values()[i / kTileStreams * kStageStride + i % kTileStreams] = from[i];
    }
  }

  // Starts to load what a turn needs apart from its message: ring rows, frames, and the old taps, of which
  // the oldest is about to be overwritten. The copies run while the stage waits for the skip sums of the
  // current turn, whose inputs are in the rings already, and adds to them.
  WAVENET_DEVICE void prefetch_turn(Turn turn) {
    if (turn.step == params_.steps) return;
    block_.phase([&](int thread) {
      for (int i = thread; i < plan_.layers * kTileStreams; i += kThreadsHere) {
        const int64_t now = position()[turn.tile * kTileStreams + i % kTileStreams] + turn.step;
        slots(0)[i] = static_cast<int32_t>(now % layer(i / kTileStreams).depth);
      }
      if (params_.gate.values == nullptr || thread >= kTileStreams) return;
      const int64_t of = stream(turn.tile, thread);
      if (of >= params_.batch) return;
      frames()[thread] =
          gate_frame(params_.gate, of, position()[turn.tile * kTileStreams + thread] + turn.step,
                     net_.layers * 2 * net_.dilated);
    });
    block_.phase([&](int thread) {
      const int old_taps = static_cast<int>(net_.taps) - 1;
      const int rows = kTileStreams * old_taps;
      for (int i = thread / kWarpSize; i < plan_.layers * rows; i += kStageWarps) {
        const int number = i / rows, s = i % rows / old_taps;
        const int64_t of = stream(turn.tile, s);
        if (of >= params_.batch) continue;
        fetch_tap<Block>(net_, layer(number), queues(of), slots(number)[s], i % old_taps, taps(number) + s,
                         kStageStride, thread % kWarpSize);
      }
    });
  }

  // Computes each layer's sums of bias, gate bias and old taps, which must have been loaded.
  WAVENET_DEVICE void precompute_sums() {
    block_.phase([&](int thread) {
      const int rows = 2 * static_cast<int>(net_.dilated_padded) / kTileOutputs;
      for (int i = thread / kWarpSize; i < plan_.layers * rows; i += kStageWarps) {
        const int number = i / rows, row = i % rows;
        Sums sums(thread);
        sums.for_each([&](float& sum, int output, int s) {
          const bool conditioned = params_.gate.values != nullptr && exists(s);
          const int of = row * kTileOutputs + output;
          sum = initial_activation(net_, params_.gate, biases(number)[of], plan_.first_layer + number, of,
                                   conditioned ? frames() + s : nullptr);
        });
        multiply(sums, part(number, kOldTaps), row, taps(number));
        float* to = starts(number) + row * kTileOutputs * kTileStreams;
        sums.for_each([&](float& sum, int output, int s) { to[output * kTileStreams + s] = sum; });
      }
    });
  }

  // Computes the stage's layers and sends the results as soon as they are complete.
  WAVENET_DEVICE void process_layers() {
    block_.phase([&](int thread) { load_inputs(thread); });
    for (int number = 0; number < plan_.layers; ++number) {
      block_.phase([&](int thread) {
        step_gate(thread, number);
        // Starts with the warps that have no part of the gate.
        for (int s = kStageWarps - 1 - thread / kWarpSize; s < kTileStreams; s += kStageWarps) {
          if (active()[s] == 0) continue;
          store_input(net_, layer(number), queues(stream(s)), slots(number)[s], values() + s, kStageStride,
                      thread % kWarpSize);
        }
      });
      if (ends_network(number)) return;
      block_.phase([&](int thread) { step_residual(thread, number); });
    }
    mail_.post(index_ + 1, kInput, tile_, step_);
  }

  WAVENET_DEVICE void load_inputs(int thread) const {
    if (index_ > 0) load_message(thread, kInput, net_.residual_padded);
    // A sample of -1 marks a stream that does not exist or has stopped.
    const auto sample_of = [&](int s) {
      if (index_ > 0) return bits_of(mail_.slot(kInput, tile_)[net_.residual_padded * kTileStreams + s]);
      if (step_ > 0) return bits_of(mail_.slot(kInput, tile_)[s]);
      return exists(s) ? static_cast<int32_t>(params_.last_sample[stream(s)]) : -1;
    };
    if (thread < kTileStreams) {
      last()[thread] = sample_of(thread);
      active()[thread] = last()[thread] >= 0 ? 1 : 0;
    }
    if (index_ > 0) return;
    const int channels = static_cast<int>(net_.residual_padded);
    for (int s = thread / kWarpSize; s < kTileStreams; s += kStageWarps) {
      const int32_t sample = sample_of(s);
      const float* embedding = net_.embedding + static_cast<int64_t>(sample < 0 ? 0 : sample) * channels;
      for (int c = thread % kWarpSize; c < channels; c += kWarpSize) {
        values()[c * kStageStride + s] = embedding[c];
      }
    }
  }

  // A warp computes both halves of its gates, so that it needs no results of other warps.
  WAVENET_DEVICE void step_gate(int thread, int number) const {
    const int rows = static_cast<int>(net_.dilated_padded) / kTileOutputs;
    const Part& newest = part(number, kNewestTap);
    for (int row = thread / kWarpSize; row < rows; row += kStageWarps) {
      Sums filter(thread), gated(thread);
      const auto begin = [&](Sums& sums, int of) {
        const float* from = starts(number) + of * kTileOutputs * kTileStreams;
        sums.for_each([&](float& sum, int output, int s) { sum = from[output * kTileStreams + s]; });
        multiply(sums, newest, of, values());
      };
      begin(filter, row);
      begin(gated, row + rows);
      float* to = activation(number) + row * kTileOutputs * kStageStride;
      filter.for_both(
          gated, [&](float a, float b, int output, int s) { to[output * kStageStride + s] = gate(a, b); });
    }
  }

  WAVENET_DEVICE void step_residual(int thread, int number) const {
    const bool leaves = number + 1 == plan_.layers;
    const int rows = static_cast<int>(net_.residual_padded) / kTileOutputs;
    const float* bias = residual_bias(number);
    for (int row = thread / kWarpSize; row < rows; row += kStageWarps) {
      float* place = values() + row * kTileOutputs * kStageStride;
      Sums sums(thread);
      sums.for_each([&](float& sum, int output, int s) {
        sum = place[output * kStageStride + s] + bias[row * kTileOutputs + output];
      });
      multiply(sums, part(number, kResidual), row, activation(number));
      if (leaves) {
        send(sums, index_ + 1, kInput, row);
      } else {
        sums.for_each([&](float& sum, int output, int s) { place[output * kStageStride + s] = sum; });
      }
    }
    if (!leaves) return;
    send_samples(thread, index_ + 1, static_cast<int>(net_.residual_padded), last(), active());
  }

  // Uses the block's last threads, since the first ones compute products.
  WAVENET_DEVICE void send_samples(int thread, int to, int row, const int32_t* samples,
                                   const int32_t* there) const {
    const int s = 2 * (kThreadsHere - 1 - thread);
    if (s >= kTileStreams) return;
    const auto coded = [&](int of) { return float_of(there[of] != 0 ? samples[of] : -1); };
    mail_.put(to, kInput, tile_, row, s, coded(s), coded(s + 1));
  }

  // Adds the stage's layers to the skip sums and sends them on; the last stage applies ReLU.
  WAVENET_DEVICE void process_skip_sums() {
    block_.phase([&](int thread) {
      const int rows = static_cast<int>(net_.skip_padded) / kTileOutputs;
      for (int row = thread / kWarpSize; row < rows; row += kStageWarps) {
        Sums sums(thread);
        const int first = row * kTileOutputs;
        sums.for_each([&](float& sum, int output, int s) {
          sum = index_ == 0 ? head_bias()[first + output]
                            : mail_.slot(kSkipSums, tile_)[(first + output) * kTileStreams + s];
        });
        for (int number = 0; number < plan_.layers; ++number) {
          multiply(sums, part(number, kSkip), row, activation(number));
        }
        if (ends_network(plan_.layers - 1)) sums.for_each([](float& sum, int, int) { sum = relu(sum); });
        send(sums, index_ + 1, kSkipSums, row);
      }
      Block::wait_for_copies();
    });
    mail_.post(index_ + 1, kSkipSums, tile_, step_);
  }

  WAVENET_DEVICE void process_head() {
    block_.phase([&](int thread) { load_message(thread, kSkipSums, net_.skip_padded); });
    block_.phase([&](int thread) {
      const Part& all = part(0);
      for (int row = thread / kWarpSize; row < all.rows; row += kStageWarps) {
        Sums sums(thread);
        sums.for_each([&](float& sum, int output, int) { sum = head_bias()[row * kTileOutputs + output]; });
        multiply(sums, all, row, values());
        sums.for_each([](float& sum, int, int) { sum = relu(sum); });
        send(sums, index_ + 1, kInput, row);
      }
    });
    mail_.post(index_ + 1, kInput, tile_, step_);
  }

  WAVENET_DEVICE void process_sampling() {
    float* logits = at<float>(plan_.logits);
    float* uniforms = at<float>(plan_.uniforms);
    block_.phase([&](int thread) {
      // This copy runs during the products.
      if (params_.forced == nullptr && thread < kTileStreams && exists(thread)) {
        Block::start_copy(uniforms + thread, params_.uniforms + stream(thread) * params_.steps + step_);
      }
      load_message(thread, kInput, net_.head_padded);
    });
    block_.phase([&](int thread) {
      const Part& all = part(0);
      for (int row = thread / kWarpSize; row < all.rows; row += kStageWarps) {
        Sums sums(thread);
        const int first = row * kTileOutputs;
        sums.for_each([&](float& sum, int output, int) { sum = head_bias()[first + output]; });
        multiply(sums, all, row, values());
        sums.for_each([&](float& sum, int output, int s) {
          if (first + output >= net_.classes) return;
          logits[s * pipeline_.row + logit_index(first + output, pipeline_.per_lane)] = sum;
        });
      }
      Block::wait_for_copies();
    });
    block_.warps([&](const auto& warp) {
      const int s = warp.index(), of = tile_ * kTileStreams + s;
      if (s >= kTileStreams) return;
      const float* row = logits + s * pipeline_.row;
      using Warp = std::decay_t<decltype(warp)>;
      const WarpSampler<Warp> sampler(warp, row, at<float>(plan_.weights) + s * pipeline_.row,
                                      at<double>(plan_.sums) + s * (kWarpSize + 1),
                                      static_cast<int>(net_.classes), pipeline_.per_lane);
      finish_step(warp, params_, sampler, row, pipeline_.per_lane, stream(s), step_, uniforms + s,
                  {active()[of], position()[of], last()[of]});
    });
    if (!more() || step_ == params_.dropped_step) return;
    const int first = tile_ * kTileStreams;
    block_.phase([&](int thread) { send_samples(thread, 0, 0, last() + first, active() + first); });
    mail_.post(0, kInput, tile_, step_);
  }

  const Block& block_;
  const Mail& mail_;
  const Params& params_;
  int64_t first_;
  int tiles_ = 0, tile_ = 0;
  int64_t step_ = 0;
  bool skip_sums_next_ = false;
};

// Runs a block until it is done or a wait times out.
template <class Block, class Stage, class Mail>
WAVENET_DEVICE void run_stage(Stage& stage, const Mail& mail) {
  stage.prepare();
  while (!stage.done()) {
    if (stage.needs_message() && !mail.wait(stage.pending_message())) {
      // No copy may arrive after the block has exited.
      Block::wait_for_copies();
      return;
    }
    stage.process();
  }
  stage.finish();
}

}  // namespace wavenet::cuda
