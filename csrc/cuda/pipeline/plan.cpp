#include "cuda/pipeline/plan.h"

#include <algorithm>

#include "core/gate_bias.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {
namespace {

constexpr int64_t kRowBytes = kTileStreams * 4;
constexpr int64_t kChannelBytes = kStageStride * 4;
// Limits offsets to 32 bits; networks that need that much are rejected earlier.
constexpr int64_t kMaxBytes = int64_t{1} << 30;

int64_t whole(int64_t count) { return (count + kTile - 1) / kTile * kTile; }

// Returns consecutive offsets, each aligned for any type.
class OffsetAllocator {
 public:
  int32_t allocate(int64_t bytes) {
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
  Planner(const Network& network, const PipelineResources& resources, int64_t tiles)
      : net_(network), resources_(resources), tiles_(tiles) {}

  // Plans a number of stages; sets `refusal` if a block needs more memory than there is. Unless `whole` is
  // set, stops at the first block that cannot keep all its weights, since plans are computed for every
  // launch.
  StagePlan plan(int64_t stages, bool whole) {
    StagePlan plan{};
    plan.tiles = tiles_;
    plan.resident = true;
    for (int64_t stage = 0; stage < stages && (whole || plan.resident); ++stage) {
      // Longer stages come first, since the skip sums of the last one are on the critical path.
      const int64_t min_layers = net_.layers / stages, more = net_.layers % stages;
      const int64_t first = stage * min_layers + std::min(stage, more);
      add_layers(plan, first, min_layers + (stage < more ? 1 : 0));
    }
    if (!whole && !plan.resident) return plan;
    add_head(plan, StageKind::kHead, net_.head1, net_.skip_padded);
    add_head(plan, StageKind::kSample, net_.head2, net_.head_padded);
    plan.mail_bytes = mail_.end();
    const size_t count = plan.blocks.size();
    plan.flag_bytes =
        resources_.mail_is_shared ? 0 : static_cast<int64_t>(count) * kBoxes * tiles_ * kFlagBytes;
    for (size_t index = 0; index < count; ++index) {
      std::copy_n(plan.blocks[(index + 1) % count].box, kBoxes, plan.blocks[index].next);
    }
    return plan;
  }

 private:
  Mailbox mailbox(OffsetAllocator& allocator, int64_t rows) {
    OffsetAllocator& where = resources_.mail_is_shared ? allocator : mail_;
    return {static_cast<int32_t>(rows), where.allocate(rows * kRowBytes * tiles_)};
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
    OffsetAllocator allocator = begin();
    // The first stage receives the latest samples; others receive channels, followed by their samples.
    block.box[kInput] = mailbox(allocator, first == 0 ? 1 : net_.residual_padded + 1);
    block.box[kSkipSums] = mailbox(allocator, first == 0 ? 0 : net_.skip_padded);
    const int64_t old_taps = whole((net_.taps - 1) * net_.residual);
    block.parts = allocator.allocate(count * kLayerParts * static_cast<int64_t>(sizeof(Part)));
    block.table = allocator.allocate(count * static_cast<int64_t>(sizeof(Layer)));
    const int64_t skip_bias = first == 0 ? net_.skip_padded : 0;
    block.biases =
        allocator.allocate(4 * (count * (2 * net_.dilated_padded + net_.residual_padded) + skip_bias));
    block.values = allocator.allocate(net_.residual_padded * kChannelBytes);
    block.activations = allocator.allocate(count * net_.dilated_padded * kChannelBytes);
    block.taps = allocator.allocate(count * old_taps * kChannelBytes);
    block.starts = allocator.allocate(count * 2 * net_.dilated_padded * kRowBytes);
    block.slots = allocator.allocate(count * kTileStreams * 4);
    block.frames = allocator.allocate(kTileStreams * static_cast<int64_t>(sizeof(GateFrame)));
    block.position = allocator.allocate(tiles_ * kTileStreams * 8);
    block.last = allocator.allocate(kTileStreams * 4);
    block.active = allocator.allocate(kTileStreams * 4);
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
    finish(plan, block, allocator);
  }

  void add_head(StagePlan& plan, StageKind kind, const Matrix& matrix, int64_t channels) {
    StageBlock block{};
    block.kind = kind;
    block.first_part = static_cast<int32_t>(plan.parts.size());
    const bool samples = kind == StageKind::kSample;
    OffsetAllocator allocator = begin();
    block.box[samples ? kInput : kSkipSums] = mailbox(allocator, channels);
    block.parts = allocator.allocate(sizeof(Part));
    block.biases = allocator.allocate(4 * matrix.outputs);
    block.values = allocator.allocate(channels * kChannelBytes);
    if (samples) {
      block.position = allocator.allocate(tiles_ * kTileStreams * 8);
      block.last = allocator.allocate(tiles_ * kTileStreams * 4);
      block.active = allocator.allocate(tiles_ * kTileStreams * 4);
      block.logits = allocator.allocate(kTileStreams * 4 * logits_row(net_));
      block.weights = allocator.allocate(kTileStreams * 4 * logits_row(net_));
      block.sums = allocator.allocate(kTileStreams * 8 * (kWarpSize + 1));
      block.uniforms = allocator.allocate(kTileStreams * 4);
    }
    plan.parts.push_back(part(matrix.words, matrix.outputs, matrix.inputs, matrix.inputs));
    finish(plan, block, allocator);
  }

  OffsetAllocator begin() const {
    OffsetAllocator allocator;
    allocator.allocate(kBoxes * tiles_ * static_cast<int64_t>(sizeof(SlotCounters)));
    allocator.allocate(sizeof(StageBlock));
    return allocator;
  }

  // Places weights in shared memory: first those on the critical path of every layer, then the others.
  void finish(StagePlan& plan, StageBlock& block, OffsetAllocator& allocator) {
    const auto first = plan.parts.begin() + block.first_part;
    const auto allocate_part = [&](Part& part, bool all) {
      const int64_t row = int64_t{4} * part.words;
      const int64_t left = std::max<int64_t>(0, resources_.shared_bytes - allocator.end()) / row;
      const int64_t rows = all ? part.rows : std::min<int64_t>(part.rows, left);
      part.offset = allocator.allocate(rows * row);
      part.resident = static_cast<int32_t>(rows);
      plan.resident = plan.resident && rows == part.rows;
    };
    if (block.kind == StageKind::kLayers) {
      for (int kind = 0; kind < kLayerParts; ++kind) {
        for (int layer = 0; layer < block.layers; ++layer) {
          allocate_part(first[layer * kLayerParts + kind], kind == kNewestTap || kind == kResidual);
        }
      }
    } else {
      allocate_part(*first, false);
    }
    block.bytes = static_cast<int32_t>(allocator.end());
    plan.bytes = std::max(plan.bytes, allocator.end());
    plan.resident = plan.resident && allocator.end() <= resources_.shared_bytes;
    if (allocator.end() > resources_.shared_bytes && plan.refusal.empty()) {
      const std::string what = block.kind == StageKind::kLayers ? std::to_string(block.layers) + " layer(s)"
                                                                : std::string("the values of a head layer");
      plan.refusal = what + " per block need " + std::to_string(allocator.end()) +
                     " bytes of shared memory; available: " + std::to_string(resources_.shared_bytes);
    }
    plan.blocks.push_back(block);
  }

  static int64_t logits_row(const Network& net) {
    return (net.classes + kWarpSize - 1) / kWarpSize * kWarpSize;
  }

  const Network& net_;
  const PipelineResources& resources_;
  int64_t tiles_;
  OffsetAllocator mail_;
};

}  // namespace

StagePlan plan_stages(const Network& network, const PipelineResources& resources, int64_t tiles) {
  StagePlan best{};
  const int64_t max_stages = std::min(resources.blocks - 2, network.layers);
  if (max_stages < 1) {
    best.refusal = "a pipeline needs at least 3 blocks; available: " + std::to_string(resources.blocks);
    return best;
  }
  for (int64_t stages = 1; stages <= max_stages; ++stages) {
    best = Planner(network, resources, tiles).plan(stages, stages == max_stages);
    if (best.refusal.empty() && best.resident) return best;
  }
  if (!best.refusal.empty() && max_stages < network.layers) {
    best.refusal = "with " + std::to_string(network.layers) + " layers in " + std::to_string(max_stages) +
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
