// The shared memory of a pipeline's block, as laid out in plan.h: access to its arrays, and loading of tables
// and weights, which stay for the whole launch.
#pragma once

#include "cuda/params.h"
#include "cuda/pipeline/plan.h"
#include "cuda/tiles.h"

namespace wavenet::cuda {

// Returns a block's entry of the plan; valid after `StageMemory::load_plan`.
WAVENET_DEVICE const StageBlock& own_plan(const Pipeline& pipeline, const unsigned char* shared) {
  return *reinterpret_cast<const StageBlock*>(shared + pipeline.own);
}

// The shared memory of block `index` of a pipeline. All threads load the plan, then the tables, then the
// weights, with a barrier after each.
class StageMemory {
 public:
  WAVENET_DEVICE StageMemory(const Network& network, const Pipeline& pipeline, int index,
                             unsigned char* shared)
      : net_(network),
        pipeline_(pipeline),
        plan_(own_plan(pipeline, shared)),
        index_(index),
        shared_(shared) {}

  WAVENET_DEVICE void load_plan(int thread) { copy(thread, pipeline_.own, pipeline_.block + index_, 1); }

  // Loads the tables and clears everything else, except for mailboxes and weights.
  WAVENET_DEVICE void load_tables(int thread) {
    for (int word = plan_.values / 4 + thread; word < end_of_state() / 4; word += kThreadsHere) {
      at<int32_t>(0)[word] = 0;
    }
    copy(thread, plan_.parts, pipeline_.part + plan_.first_part, parts());
    int32_t to = plan_.biases;
    const auto append = [&](const float* bias, int64_t count) {
      if (bias != nullptr) copy(thread, to, bias, count);
      to += static_cast<int32_t>(4 * count);
    };
    if (plan_.kind == StageKind::kHead) append(net_.head1_bias, net_.head_padded);
    if (plan_.kind == StageKind::kSample) append(net_.head2_bias, net_.classes_padded);
    if (plan_.kind != StageKind::kLayers) return;
    copy(thread, plan_.table, net_.layer + plan_.first_layer, plan_.layers);
    for (int number = 0; number < plan_.layers; ++number) {
      const Layer& layer = net_.layer[plan_.first_layer + number];
      append(layer.dilated_bias, 2 * net_.dilated_padded);
      append(layer.residual_bias, net_.residual_padded);
    }
    if (index_ == 0) append(net_.skip_bias, net_.skip_padded);
  }

  WAVENET_DEVICE void load_weights(int thread) {
    for (int each = 0; each < parts(); ++each) {
      const Part& some = part(each);
      for (int i = 4 * thread; i < some.resident * some.words; i += 4 * kThreadsHere) {
        const int32_t* from = some.source + i / some.words * some.pitch + i % some.words;
        *reinterpret_cast<TileWeights*>(at<int32_t>(some.offset) + i) = read_tile(from);
      }
    }
  }

 protected:
  static constexpr int kThreadsHere = kStageWarps * kWarpSize;

  template <class T>
  WAVENET_DEVICE T* at(int32_t offset) const {
    return reinterpret_cast<T*>(shared_ + offset);
  }
  WAVENET_DEVICE float* values() const { return at<float>(plan_.values); }
  WAVENET_DEVICE float* activation(int layer) const {
    return at<float>(plan_.activations) + layer * static_cast<int>(net_.dilated_padded) * kStageStride;
  }
  WAVENET_DEVICE float* taps(int layer) const {
    return at<float>(plan_.taps) + layer * old_tiles() * kTileInputs * kStageStride;
  }
  WAVENET_DEVICE float* starts(int layer) const {
    return at<float>(plan_.starts) + layer * 2 * static_cast<int>(net_.dilated_padded) * kTileStreams;
  }
  WAVENET_DEVICE int32_t* slots(int layer) const { return at<int32_t>(plan_.slots) + layer * kTileStreams; }
  WAVENET_DEVICE GateFrame* frames() const { return at<GateFrame>(plan_.frames); }
  WAVENET_DEVICE int64_t* position() const { return at<int64_t>(plan_.position); }
  WAVENET_DEVICE int32_t* last() const { return at<int32_t>(plan_.last); }
  WAVENET_DEVICE int32_t* active() const { return at<int32_t>(plan_.active); }
  WAVENET_DEVICE const Layer& layer(int number) const { return at<Layer>(plan_.table)[number]; }
  WAVENET_DEVICE const float* biases(int layer) const {
    return at<float>(plan_.biases) + layer * static_cast<int>(2 * net_.dilated_padded + net_.residual_padded);
  }
  WAVENET_DEVICE const float* residual_bias(int layer) const {
    return biases(layer) + 2 * net_.dilated_padded;
  }
  // Biases of a head's outputs, or of the skip sums.
  WAVENET_DEVICE const float* head_bias() const { return biases(plan_.layers); }
  WAVENET_DEVICE int old_tiles() const {
    return (static_cast<int>((net_.taps - 1) * net_.residual) + kTileInputs - 1) / kTileInputs;
  }
  WAVENET_DEVICE bool ends_network(int number) const { return plan_.first_layer + number + 1 == net_.layers; }
  WAVENET_DEVICE int parts() const {
    return plan_.kind == StageKind::kLayers ? plan_.layers * kLayerParts : 1;
  }
  WAVENET_DEVICE const Part& part(int number) const { return at<Part>(plan_.parts)[number]; }
  WAVENET_DEVICE const Part& part(int layer, LayerPart which) const {
    return part(layer * kLayerParts + which);
  }
  // Returns the weights of a part's outputs from 16 * `row` on.
  WAVENET_DEVICE const int32_t* weights(const Part& part, int row) const {
    if (row < part.resident) return at<int32_t>(part.offset) + row * part.words;
    return part.source + row * part.pitch;
  }

  const Network& net_;
  const Pipeline& pipeline_;
  const StageBlock& plan_;
  int index_;

 private:
  // Weights come after everything else.
  WAVENET_DEVICE int32_t end_of_state() const { return pipeline_.part[plan_.first_part].offset; }

  template <class T>
  WAVENET_DEVICE void copy(int thread, int32_t offset, const T* from, int64_t count) {
    const auto* words = reinterpret_cast<const int32_t*>(from);
    const int64_t size = count * static_cast<int64_t>(sizeof(T)) / 4;
    for (int64_t i = thread; i < size; i += kThreadsHere) at<int32_t>(offset)[i] = words[i];
  }

  unsigned char* shared_;
};

}  // namespace wavenet::cuda
