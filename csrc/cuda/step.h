// The beginning and end of a stream's step, shared by all kernels.
#pragma once

#include "cuda/params.h"
#include "cuda/sampling.h"

namespace wavenet::cuda {

// Returns whether an input is out of range, in which case no stream may advance.
WAVENET_DEVICE bool has_invalid_input(const Params& params) {
  bool any = false;
  for (int kind = 0; kind < kInputKinds; ++kind) any = any || params.invalid[kind] != kNone;
  return any;
}

// Returns a layer's bias plus the gate bias for one output; `frame` is null if there is no gate bias.
WAVENET_DEVICE float initial_activation(const Network& net, const GateBias& gate, float bias, int index,
                                        int output, const GateFrame* frame) {
  const int half = output >= net.dilated_padded ? 1 : 0;
  const int channel = output - half * static_cast<int>(net.dilated_padded);
  if (frame == nullptr || channel >= net.dilated) return bias;
  const int64_t offset = (2 * index + half) * net.dilated + channel;
  if (!gate.linear) return bias + frame->here[offset];
  return bias + ((1.0f - frame->weight) * frame->here[offset] + frame->weight * frame->next[offset]);
}

// Starts to copy old tap `tap` of a layer for one stream from its ring, whose next input goes to row `slot`.
// A warp's lanes copy channels in turn; channels are stored `stride` floats apart.
template <class Block>
WAVENET_DEVICE void fetch_tap(const Network& net, const Layer& layer, const float* queues, int slot, int tap,
                              float* taps, int stride, int lane) {
  const int channels = static_cast<int>(net.residual);
  const int old_taps = static_cast<int>(net.taps) - 1;
  int64_t from = slot - (old_taps - tap) * layer.dilation;
  if (from < 0) from += layer.depth;
  const float* row = queues + (layer.ring_row + from) * channels;
  float* to = taps + tap * channels * stride;
  for (int c = lane; c < channels; c += kWarpSize) Block::start_copy(to + c * stride, row + c);
}

// Writes a layer's input to a stream's ring.
WAVENET_DEVICE void store_input(const Network& net, const Layer& layer, float* queues, int slot,
                                const float* hidden, int stride, int lane) {
  const int channels = static_cast<int>(net.residual);
  float* row = queues + (layer.ring_row + slot) * channels;
  for (int c = lane; c < channels; c += kWarpSize) row[c] = hidden[c * stride];
}

// Returns the index of a class in a row of logits.
WAVENET_DEVICE int logit_index(int index, int per_lane) {
  return index % per_lane * kWarpSize + index / per_lane;
}

// The state of a stream that changes at the end of a step.
struct StreamEnd {
  int32_t& active;
  int64_t& position;
  int32_t& last;
};

// Ends a stream's step: writes its logits, or samples from them with `*uniform`. Stops the stream if the
// logits are not finite.
template <class Warp>
WAVENET_DEVICE void finish_step(const Warp& warp, const Params& params, const WarpSampler<Warp>& sampler,
                                const float* row, int per_lane, int64_t stream, int64_t step,
                                const float* uniform, StreamEnd end) {
  if (!end.active) return;
  const int classes = static_cast<int>(params.network.classes);
  const int64_t at = stream * params.steps + step;
  int sample = 0;
  const bool finite = sampler.finite();
  if (finite && params.forced == nullptr) {
    sample = sampler.sample(sampling_of(params.sampling, stream), *uniform);
  }
  warp.each([&](int lane) {
    if (lane != 0) return;
    if (!finite) {
      params.failed[stream] = end.position;
      end.active = 0;
      return;
    }
    if (params.forced == nullptr) params.output[at] = sample;
    end.last = params.forced == nullptr ? sample : static_cast<int32_t>(params.forced[at]);
    ++end.position;
  });
  if (!finite || params.forced == nullptr) return;
  warp.each([&](int lane) {
    for (int c = lane; c < classes; c += kWarpSize) {
      params.logits[at * classes + c] = row[logit_index(c, per_lane)];
    }
  });
}

}  // namespace wavenet::cuda
