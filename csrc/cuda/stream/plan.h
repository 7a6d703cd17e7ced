// The layout of the shared memory of a block of `stream_cta`.
//
// Values are stored channel by channel, `stride` floats apart; a channel's streams are adjacent. Arrays that
// are not in use at the same time share memory: skip sums and logits; a layer's activation, the first head
// layer and the scratch memory of sampling.
#pragma once

#include <cstdint>

#include "core/gate_bias.h"
#include "core/network.h"
#include "cuda/platform.h"

namespace wavenet::cuda {

constexpr int64_t kMaxClasses = 1024;
// Unused floats between channels, which spread a warp's writes over the banks.
constexpr int kStridePadding = 4;

struct Plan {
  int streams;   // per block
  int stride;    // floats from one channel to the next
  int per_lane;  // classes per lane of a warp in sampling
  int row;       // floats of one stream's logits
  // Byte offsets in shared memory.
  int64_t hidden, taps[2], skip, work, weights, sums, position, frame, last, active, slot, bytes;
};

// Computes the layout for any network, even if `bytes` exceeds the shared memory of the device.
inline Plan make_plan(const Network& net, int streams) {
  Plan plan{};
  plan.streams = streams;
  plan.stride = streams + kStridePadding;
  plan.per_lane = static_cast<int>((net.classes + kWarpSize - 1) / kWarpSize);
  plan.row = plan.per_lane * kWarpSize;
  int64_t end = 0;
  const auto allocate = [&end](int64_t bytes) {
    const int64_t begin = end;
    end += (bytes + 15) / 16 * 16;
    return begin;
  };
  const auto max = [](int64_t a, int64_t b) { return a > b ? a : b; };
  const int64_t channel = plan.stride * int64_t{4};
  plan.hidden = allocate(net.residual_padded * channel);
  // Padded with zeros to a whole tile for tensor cores.
  const int64_t old_taps = ((net.taps - 1) * net.residual + kTile - 1) / kTile * kTile;
  for (int64_t& taps : plan.taps) taps = allocate(old_taps * channel);
  plan.skip = allocate(max(net.skip_padded * channel, int64_t{4} * streams * plan.row));
  const int64_t weights = int64_t{4} * kWarps * plan.row;
  const int64_t sums = int64_t{8} * kWarps * (kWarpSize + 1);
  plan.work = allocate(max(max(2 * net.dilated_padded, net.head_padded) * channel, weights + sums));
  plan.weights = plan.work;
  plan.sums = plan.work + weights;
  plan.position = allocate(int64_t{8} * streams);
  plan.frame = allocate(static_cast<int64_t>(sizeof(GateFrame)) * streams);
  plan.last = allocate(int64_t{4} * streams);
  plan.active = allocate(int64_t{4} * streams);
  plan.slot = allocate(int64_t{4} * streams * net.layers);
  plan.bytes = end;
  return plan;
}

// The supported tile sizes; a stream's values do not depend on the tile size.
constexpr int kTiles[] = {8, 16, 32, 64};

// Returns the smallest tile size with which the whole batch runs at once, otherwise the largest that fits; 0
// if none fits.
inline int select_tile(const Network& net, int64_t batch, int64_t processors, int64_t shared_bytes) {
  int selected = 0;
  for (const int streams : kTiles) {
    if (make_plan(net, streams).bytes > shared_bytes) break;
    selected = streams;
    if ((batch + streams - 1) / streams <= processors) break;
  }
  return selected;
}

}  // namespace wavenet::cuda
