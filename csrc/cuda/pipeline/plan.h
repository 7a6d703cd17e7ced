// The plan of a pipeline: the layout of a network over thread blocks that keep its weights in shared memory.
//
// Each stage of consecutive layers is one block; two more blocks compute the two head layers, the second of
// which also samples. Weights stay in shared memory for the whole launch. Those on the critical path from
// layer to layer, of the newest tap and the residual, are always there. Those of skip sums, old taps and
// heads are there as far as the memory suffices; the rest is read from device memory.
//
// A tile of 8 streams is a message that is passed from block to block and returns from the last one as
// samples. Several tiles are in flight at once, each with its own slot in every mailbox. A slot is therefore
// free when it is written: a tile's next message starts only after the previous one has returned, having
// passed through every block.
//
// A block's shared memory starts with a `SlotCounters` for each slot of its mailboxes, followed by a copy of
// its own `StageBlock`, at `Pipeline::own`. That and its tables are copied once per launch, so that no sample
// waits for a table in device memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/network.h"

namespace wavenet::cuda {

constexpr int kStageWarps = 16;
// Maximum number of tiles in flight in one pipeline; more of them are not faster.
constexpr int kMaxTilesInFlight = 4;

enum class StageKind : int32_t { kLayers, kHead, kSample };

// The parts of a layer's weights, in the order in which they are placed in shared memory.
enum LayerPart { kNewestTap, kResidual, kSkip, kOldTaps, kLayerParts };

// Some inputs of a matrix, in tiles: rows of 16 outputs with `words` contiguous words each, `pitch` words
// apart.
struct Part {
  const int32_t* source;
  int64_t pitch;
  int32_t words, rows;
  int32_t resident;  // the first rows, this many, are in shared memory, without gaps
  int32_t offset;    // byte offset in shared memory
};

// Memory for messages: a slot for each tile, each of `rows` rows of 8 numbers.
struct Mailbox {
  int32_t rows;    // 0: no mailbox
  int32_t offset;  // byte offset in shared memory or in the pipeline's messages
};

// A block has up to two mailboxes: for its main input and, in a stage, for the skip sums so far.
enum Box { kInput, kSkipSums, kBoxes };

// A block's state of one slot.
struct SlotCounters {
  uint64_t barrier;  // an mbarrier, if mailboxes are in shared memory
  int32_t sent;      // number of messages sent to this slot of the next block
  int32_t received;  // number of messages received in this block's slot
};

// Distance between the flags in device memory that blocks poll: a cache line, so that polling one flag does
// not wait for a store to another.
constexpr int64_t kFlagBytes = 128;

struct StageBlock {
  StageKind kind;
  int32_t first_layer, layers;
  int32_t first_part;  // index into the pipeline's parts: kLayerParts for each layer, one for a head
  Mailbox box[kBoxes];
  Mailbox next[kBoxes];  // mailboxes of the block that it sends to: the next one; of the last block, the
                         // first one
  // Byte offsets in shared memory. Memory before `values` is not cleared at the beginning.
  int32_t parts;                   // the block's `Part`s
  int32_t table;                   // each layer's `Layer`
  int32_t biases;                  // for each layer of its gate, then of the residual; then of the head
  int32_t values;                  // channels of the current tile, `kStageStride` floats apart
  int32_t activations;             // the same for each layer
  int32_t taps;                    // old taps of each layer
  int32_t starts;                  // for each layer: sums of bias, gate bias and old taps, rows of 8
  int32_t slots;                   // for each layer and stream: ring row of the next input
  int32_t frames;                  // for each stream
  int32_t position, last, active;  // for each stream of each tile
  int32_t logits, weights, sums;
  int32_t uniforms;  // for each stream
  int32_t bytes;
};

// Floats from one channel to the next in the operands of products; spreads a warp's reads over all banks.
constexpr int kStageStride = 12;

// The plan as kernels use it.
struct Pipeline {
  const StageBlock* block;
  const Part* part;
  int32_t blocks, tiles;
  int32_t per_lane, row;  // classes per lane, floats per stream of logits
  int32_t own;            // offset of a block's `StageBlock` in its shared memory
  int64_t mail_bytes;     // device memory for messages
  int64_t flag_bytes;     // device memory for flags
};

// The resources of one pipeline.
struct PipelineResources {
  int64_t blocks;
  int64_t shared_bytes;  // per block
  bool mail_is_shared;   // mailboxes are in shared memory
};

struct StagePlan {
  std::vector<StageBlock> blocks;
  std::vector<Part> parts;
  int64_t tiles, bytes, mail_bytes, flag_bytes;
  bool resident;        // all weights are in shared memory
  std::string refusal;  // why there is no plan; empty if there is one
};

// Divides a network, whose matrices are in tiles, among the smallest number of blocks that keep all its
// weights in shared memory; if there are too few blocks, among all of them.
StagePlan plan_stages(const Network& network, const PipelineResources& resources, int64_t tiles);

// Returns a pipeline that refers to the plan's tables, `blocks` and `parts`.
Pipeline view(const StagePlan& plan, const Network& network, const StageBlock* blocks, const Part* parts);

}  // namespace wavenet::cuda
