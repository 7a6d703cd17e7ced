#include "cuda/pipeline/plan.h"

#include <algorithm>

#include "core/gate_bias.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {
namespace {

constexpr int64_t kRowBytes = kTileStreams * 4;
constexpr int64_t kChannelBytes = kStageStride * 4;
// No layout comes near what 32 bits hold of bytes; a network so wide is refused before.
constexpr int64_t kMaxBytes = int64_t{1} << 30;

int64_t whole(int64_t count) { return (count + kTile - 1) / kTile * kTile; }

// Hands out consecutive places, each aligned for any type.
class Places {
 public:
  int32_t take(int64_t bytes) {
    const int64_t begin = end_;
    end_ = std::min(end_ + (bytes + 15) / 16 * 16, kMaxBytes);
    return static_cast<int32_t>(begin);
  }
  int64_t end() const { return end_; }

 private:
  int64_t end_ = 0;
};

class Planner {
 public:
  Planner(const Network& network, const Room& room, int64_t tiles)
      : net_(network), room_(room), tiles_(tiles) {}

  // With so many stages; `refusal` is set if a block's memory does not do. Unless it is to be whole, the plan
  // ends at the first block that does not hold all its weights: plans are made for every launch.
  StagePlan plan(int64_t stages, bool whole) {
    StagePlan plan{};
    plan.tiles = tiles_;
    plan.resident = true;
    for (int64_t stage = 0; stage < stages && (whole || plan.resident); ++stage) {
      // The longer ones come first: the last one's work on skip sums is waited for.
      const int64_t least = net_.layers / stages, more = net_.layers % stages;
      const int64_t first = stage * least + std::min(stage, more);
      add_layers(plan, first, least + (stage < more ? 1 : 0));
    }
    if (!whole && !plan.resident) return plan;
    add_head(plan, StageKind::kHead, net_.head1, net_.skip_padded);
    add_head(plan, StageKind::kDraw, net_.head2, net_.head_padded);
    plan.mail_bytes = mail_.end();
    const size_t count = plan.blocks.size();
    plan.flag_bytes = room_.mail_is_shared ? 0 : static_cast<int64_t>(count) * kBoxes * tiles_ * kFlagBytes;
    for (size_t index = 0; index < count; ++index) {
      std::copy_n(plan.blocks[(index + 1) % count].box, kBoxes, plan.blocks[index].next);
    }
    return plan;
  }

 private:
  Mailbox mailbox(Places& places, int64_t rows) {
    Places& where = room_.mail_is_shared ? places : mail_;
    return {static_cast<int32_t>(rows), where.take(rows * kRowBytes * tiles_)};
  }

  static Part part(const int32_t* source, int64_t outputs, int64_t inputs, int64_t pitch_inputs) {
    const int64_t tile = kTileWords / kTile;
    return {source,
            pitch_inputs * tile,
            static_cast<int32_t>(inputs * tile),
            static_cast<int32_t>(outputs / kTileOutputs),
            0,
            0};
  }

  void add_layers(StagePlan& plan, int64_t first, int64_t count) {
    StageBlock block{};
    block.kind = StageKind::kLayers;
    block.first_layer = static_cast<int32_t>(first);
    block.layers = static_cast<int32_t>(count);
    block.first_part = static_cast<int32_t>(plan.parts.size());
    Places places = begin();
    // The latest samples, or else the channels and, behind them, which samples these are.
    block.box[kInput] = mailbox(places, first == 0 ? 1 : net_.residual_padded + 1);
    block.box[kSkipSums] = mailbox(places, first == 0 ? 0 : net_.skip_padded);
    const int64_t old_taps = whole((net_.taps - 1) * net_.residual);
    block.parts = places.take(count * kLayerParts * static_cast<int64_t>(sizeof(Part)));
    block.table = places.take(count * static_cast<int64_t>(sizeof(Layer)));
    const int64_t skip_bias = first == 0 ? net_.skip_padded : 0;
    block.biases = places.take(4 * (count * (2 * net_.dilated_padded + net_.residual_padded) + skip_bias));
    block.values = places.take(net_.residual_padded * kChannelBytes);
    block.activations = places.take(count * net_.dilated_padded * kChannelBytes);
    block.taps = places.take(count * old_taps * kChannelBytes);
    block.starts = places.take(count * 2 * net_.dilated_padded * kRowBytes);
    block.slots = places.take(count * kTileStreams * 4);
    block.frames = places.take(kTileStreams * static_cast<int64_t>(sizeof(GateFrame)));
    block.position = places.take(tiles_ * kTileStreams * 8);
    block.last = places.take(kTileStreams * 4);
    block.active = places.take(kTileStreams * 4);
    for (int64_t index = first; index < first + count; ++index) {
      const Layer& layer = net_.layer[index];
      const int64_t pitch = layer.dilated.inputs, newest = pitch - old_taps;
      const int64_t residual = layer.output.outputs - net_.skip_padded, inputs = layer.output.inputs;
      const auto words = [](const int32_t* from, int64_t inputs_before) {
        return from + inputs_before * (kTileWords / kTile);
      };
      plan.parts.push_back(part(words(layer.dilated.words, old_taps), layer.dilated.outputs, newest, pitch));
      plan.parts.push_back(part(layer.output.words, residual, inputs, inputs));
      plan.parts.push_back(part(words(layer.output.words, residual / kTileOutputs * inputs), net_.skip_padded,
                                inputs, inputs));
      plan.parts.push_back(part(layer.dilated.words, layer.dilated.outputs, old_taps, pitch));
    }
    finish(plan, block, places);
  }

  void add_head(StagePlan& plan, StageKind kind, const Matrix& matrix, int64_t channels) {
    StageBlock block{};
    block.kind = kind;
    block.first_part = static_cast<int32_t>(plan.parts.size());
    const bool draws = kind == StageKind::kDraw;
    Places places = begin();
    block.box[draws ? kInput : kSkipSums] = mailbox(places, channels);
    block.parts = places.take(sizeof(Part));
    block.biases = places.take(4 * matrix.outputs);
    block.values = places.take(channels * kChannelBytes);
    if (draws) {
      block.position = places.take(tiles_ * kTileStreams * 8);
      block.last = places.take(tiles_ * kTileStreams * 4);
      block.active = places.take(tiles_ * kTileStreams * 4);
      block.logits = places.take(kTileStreams * 4 * logits_row(net_));
      block.weights = places.take(kTileStreams * 4 * logits_row(net_));
      block.sums = places.take(kTileStreams * 8 * (kWarpSize + 1));
      block.uniforms = places.take(kTileStreams * 4);
    }
    plan.parts.push_back(part(matrix.words, matrix.outputs, matrix.inputs, matrix.inputs));
    finish(plan, block, places);
  }

  Places begin() const {
    Places places;
    places.take(kBoxes * tiles_ * static_cast<int64_t>(sizeof(SlotCounters)));
    places.take(sizeof(StageBlock));
    return places;
  }

  // Gives room to weights: first to what every layer needs at once, then to the rest.
  void finish(StagePlan& plan, StageBlock& block, Places& places) {
    const auto first = plan.parts.begin() + block.first_part;
    const auto give = [&](Part& part, bool all) {
      const int64_t row = int64_t{4} * part.words;
      const int64_t left = std::max<int64_t>(0, room_.shared_bytes - places.end()) / row;
      const int64_t rows = all ? part.rows : std::min<int64_t>(part.rows, left);
      part.offset = places.take(rows * row);
      part.resident = static_cast<int32_t>(rows);
      plan.resident = plan.resident && rows == part.rows;
    };
    if (block.kind == StageKind::kLayers) {
      for (int kind = 0; kind < kLayerParts; ++kind) {
        for (int layer = 0; layer < block.layers; ++layer) {
          give(first[layer * kLayerParts + kind], kind == kNewestTap || kind == kResidual);
        }
      }
    } else {
      give(*first, false);
    }
    block.bytes = static_cast<int32_t>(places.end());
    plan.bytes = std::max(plan.bytes, places.end());
    plan.resident = plan.resident && places.end() <= room_.shared_bytes;
    if (places.end() > room_.shared_bytes && plan.refusal.empty()) {
      const std::string what = block.kind == StageKind::kLayers ? std::to_string(block.layers) + " layer(s)"
                                                                : std::string("a head layer's values");
      plan.refusal = what + " to a block need " + std::to_string(places.end()) +
                     " bytes of shared memory, there are " + std::to_string(room_.shared_bytes);
    }
    plan.blocks.push_back(block);
  }

  static int64_t logits_row(const Network& net) {
    return (net.classes + kWarpSize - 1) / kWarpSize * kWarpSize;
  }

  const Network& net_;
  const Room& room_;
  int64_t tiles_;
  Places mail_;
};

}  // namespace

StagePlan plan_stages(const Network& network, const Room& room, int64_t tiles) {
  StagePlan best{};
  const int64_t most = std::min(room.blocks - 2, network.layers);
  if (most < 1) {
    best.refusal = "a pipeline has three blocks or more, there is room for " + std::to_string(room.blocks);
    return best;
  }
  for (int64_t stages = 1; stages <= most; ++stages) {
    best = Planner(network, room, tiles).plan(stages, stages == most);
    if (best.refusal.empty() && best.resident) return best;
  }
  if (!best.refusal.empty() && most < network.layers) {
    best.refusal = "of " + std::to_string(network.layers) + " layers in " + std::to_string(most) +
                   " stages, " + best.refusal;
  }
  return best;
}

Pipeline view(const StagePlan& plan, const Network& network, const StageBlock* blocks, const Part* parts) {
  const auto per_lane = static_cast<int32_t>((network.classes + kWarpSize - 1) / kWarpSize);
  return {blocks,
          parts,
          static_cast<int32_t>(plan.blocks.size()),
          static_cast<int32_t>(plan.tiles),
          per_lane,
          per_lane * kWarpSize,
          static_cast<int32_t>(kBoxes * plan.tiles * static_cast<int64_t>(sizeof(SlotCounters))),
          plan.mail_bytes,
          plan.flag_bytes};
}

}  // namespace wavenet::cuda
