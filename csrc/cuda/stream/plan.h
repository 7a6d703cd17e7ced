// What a block of `stream_cta` keeps in shared memory, and where.
//
// Values of the streams are stored channel by channel, `stride` floats apart, side by side within a channel.
// What is never alive at the same time shares its place: the skip sums with the logits; a layer's activation
// with the first head layer and with what drawing needs.
#pragma once

#include <cstdint>

#include "core/gate_bias.h"
#include "core/network.h"
#include "cuda/platform.h"

namespace wavenet::cuda {

constexpr int64_t kMaxClasses = 1024;
// So many floats between the channels are left empty, to spread over the banks what a warp writes.
constexpr int kSpread = 4;

struct Plan {
  int streams;   // a block's
  int stride;    // floats from one channel to the next
  int per_lane;  // classes that a lane of a warp looks after when a sample is drawn
  int row;       // floats of one stream's logits
  // In bytes from the beginning of shared memory.
  int64_t hidden, taps[2], skip, work, weights, sums, position, frame, last, active, slot, bytes;
};

// Lays a block out; works for any network, whether its `bytes` are to be had or not.
inline Plan make_plan(const Network& net, int streams) {
  Plan plan{};
  plan.streams = streams;
  plan.stride = streams + kSpread;
  plan.per_lane = static_cast<int>((net.classes + kWarpSize - 1) / kWarpSize);
  plan.row = plan.per_lane * kWarpSize;
  int64_t end = 0;
  const auto take = [&end](int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + 15) / 16 * 16;
    return begin;
  };
  const auto larger = [](int64_t a, int64_t b) { return a > b ? a : b; };
  const int64_t channel = plan.stride * int64_t{4};
  plan.hidden = take(net.residual_padded * channel);
  // Up to a whole tile of tensor cores; what is behind the taps stays zero.
  const int64_t old_taps = ((net.taps - 1) * net.residual + kTile - 1) / kTile * kTile;
  for (int64_t& taps : plan.taps) taps = take(old_taps * channel);
  plan.skip = take(larger(net.skip_padded * channel, int64_t{4} * streams * plan.row));
  const int64_t weights = int64_t{4} * kWarps * plan.row;
  const int64_t sums = int64_t{8} * kWarps * (kWarpSize + 1);
  plan.work = take(larger(larger(2 * net.dilated_padded, net.head_padded) * channel, weights + sums));
  plan.weights = plan.work;
  plan.sums = plan.work + weights;
  plan.position = take(int64_t{8} * streams);
  plan.frame = take(static_cast<int64_t>(sizeof(GateFrame)) * streams);
  plan.last = take(int64_t{4} * streams);
  plan.active = take(int64_t{4} * streams);
  plan.slot = take(int64_t{4} * streams * net.layers);
  plan.bytes = end;
  return plan;
}

// The sizes of tile that there are; what a stream's values are does not depend on which it is in.
constexpr int kTiles[] = {8, 16, 32, 64};

// The smallest tile that puts the batch on all processors at once, or else the largest that fits; 0 if none
// does.
inline int select_tile(const Network& net, int64_t batch, int64_t processors, int64_t shared_bytes) {
  int chosen = 0;
  for (const int streams : kTiles) {
    if (make_plan(net, streams).bytes > shared_bytes) break;
    chosen = streams;
    if ((batch + streams - 1) / streams <= processors) break;
  }
  return chosen;
}

}  // namespace wavenet::cuda
