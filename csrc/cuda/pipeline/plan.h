// How a network is laid out over blocks of threads that hold its weights: a pipeline.
//
// Consecutive layers make a stage, one block each; two more blocks have the two head layers, the second of
// which draws. A block keeps weights in its shared memory for the whole launch. What is on the way of a
// sample from layer to layer, the newest tap and the residual, always lies there; skip sums and old taps,
// which have time, and the heads lie there as far as there is room, and are read from the device's memory
// beyond that.
//
// A tile of 8 streams takes part as a message that goes from block to block, and comes back from the last as
// the samples drawn. Several tiles are under way at once, each with a slot of its own in every mailbox. So a
// slot is free when it is written: a tile's next message sets out only after its last one has come back, and
// that has been through every block.
//
// A block's shared memory begins with a `SlotCounters` for each slot of its mailboxes; then comes a copy of
// its own `StageBlock`, at `Pipeline::own`. That and the tables it tells of are copied once a launch, so that
// no sample waits for a table in the device's memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/network.h"

namespace wavenet::cuda {

constexpr int kStageWarps = 16;
// Tiles under way in one pipeline; more than this many serve no one sooner.
constexpr int kMaxTilesUnderWay = 4;

enum class StageKind : int32_t { kLayers, kHead, kDraw };

// The parts of a layer's weights, in the order in which they are given room.
enum LayerPart { kNewestTap, kResidual, kSkip, kOldTaps, kLayerParts };

// Some inputs of a matrix, in tiles: for each 16 outputs `words` words in a row, `pitch` words apart.
struct Part {
  const int32_t* source;
  int64_t pitch;
  int32_t words, rows;
  int32_t resident;  // of the rows, so many of the first lie in shared memory, without gaps
  int32_t offset;    // bytes from the beginning of shared memory
};

// A place for messages: a slot for each tile, each of so many rows of 8 numbers.
struct Mailbox {
  int32_t rows;    // 0: there is none
  int32_t offset;  // bytes from the beginning of shared memory, or of the pipeline's mail
};

// A block has up to two: what starts its work, and, in a stage, the skip sums so far.
enum Box { kInput, kSkipSums, kBoxes };

// What a block knows of one slot.
struct SlotCounters {
  uint64_t barrier;  // an mbarrier, if mailboxes lie in shared memory
  int32_t sent;      // messages so far: to that slot of the next block
  int32_t received;  // and from its own
};

// Flags in the device's memory, at which blocks look, stand so many bytes apart, a line of the caches: a look
// at one does not wait for a store to another.
constexpr int64_t kFlagBytes = 128;

struct StageBlock {
  StageKind kind;
  int32_t first_layer, layers;
  int32_t first_part;  // of the pipeline's: kLayerParts for each layer, or a head's one
  Mailbox box[kBoxes];
  Mailbox next[kBoxes];  // those of the block that it sends to: the next, or from the last the first
  // Bytes from the beginning of shared memory. What lies before `values` is not cleared at the beginning.
  int32_t parts;        // the block's `Part`s
  int32_t table;        // each layer's `Layer`
  int32_t biases;       // of each layer those of its gate, then of the residual; at last the head's
  int32_t values;       // channels of the tile at hand, `kStageStride` floats apart
  int32_t activations;  // one such for each layer
  int32_t taps;         // and the old taps of each layer
  int32_t starts;       // of each layer: bias, conditioning and old taps, summed, rows of 8
  int32_t slots;        // of each layer and stream: the ring's row for the next input
  int32_t frames;       // of each stream
  int32_t position, last, active;  // of each stream of each tile
  int32_t logits, weights, sums;
  int32_t uniforms;  // of each stream
  int32_t bytes;
};

// Floats from one channel to the next where products read them: spreads a warp's reads over all banks.
constexpr int kStageStride = 12;

// As a kernel sees it.
struct Pipeline {
  const StageBlock* block;
  const Part* part;
  int32_t blocks, tiles;
  int32_t per_lane, row;  // classes of a lane, floats of a stream's logits
  int32_t own;            // where a block's shared memory has its `StageBlock`
  int64_t mail_bytes;     // of the device's memory, for messages
  int64_t flag_bytes;     // and for flags
};

// What there is for one pipeline.
struct Room {
  int64_t blocks;
  int64_t shared_bytes;  // a block's
  bool mail_is_shared;   // mailboxes lie in shared memory
};

struct StagePlan {
  std::vector<StageBlock> blocks;
  std::vector<Part> parts;
  int64_t tiles, bytes, mail_bytes, flag_bytes;
  bool resident;        // all weights lie in shared memory
  std::string refusal;  // why there is none, or empty
};

// Divides a network, whose matrices are in tiles, among the fewest blocks that hold all its weights, or else
// among as many as there are.
StagePlan plan_stages(const Network& network, const Room& room, int64_t tiles);

// The plan's tables are those it points to.
Pipeline view(const StagePlan& plan, const Network& network, const StageBlock* blocks, const Part* parts);

}  // namespace wavenet::cuda
