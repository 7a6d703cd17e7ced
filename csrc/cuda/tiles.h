// Products of matrices and the values of a block's streams on tensor cores: 16-bit weights, float32 sums.
//
// A warp multiplies 16 outputs by 8 streams, 16 inputs at a time. The instruction determines which numbers
// each lane has (PTX ISA, "Matrix Fragments for mma.m16n8k16"); wavenet/engine/packing_tiles.py stores the
// weights in that order, so that a lane reads its eight weights at once.
#pragma once

#include "core/network.h"
#include "cuda/platform.h"
#include "cuda/stream/matvec.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <cmath>
#endif

namespace wavenet::cuda {

constexpr int kTileOutputs = 16;
constexpr int kTileInputs = 16;
constexpr int kTileStreams = 8;
// Words of a tile's weights, two weights each.
constexpr int kTileWords = kTileOutputs * kTileInputs / 2;

// A lane's eight weights and its four inputs, two to a word.
struct TileWeights {
  uint32_t word[4];
};
struct TileInputs {
  uint32_t word[2];
};

#if defined(__CUDACC__)

// Lanes that one thread executes: on the host, a whole warp.
constexpr int kLanesPerThread = 1;

template <class Work>
WAVENET_DEVICE void for_lanes(int thread, Work work) {
  work(thread % kWarpSize, 0);
}

WAVENET_DEVICE void sync_lanes() { __syncwarp(); }

WAVENET_DEVICE TileWeights read_tile(const int32_t* from) {
  const uint4 four = __ldg(reinterpret_cast<const uint4*>(from));
  return {{four.x, four.y, four.z, four.w}};
}

// Reads from device memory or shared memory.
WAVENET_DEVICE TileWeights read_tile_generic(const int32_t* from) {
  const uint4 four = *reinterpret_cast<const uint4*>(from);
  return {{four.x, four.y, four.z, four.w}};
}

struct Fp16 {
  WAVENET_DEVICE static uint32_t pack(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }

  WAVENET_DEVICE static void multiply(const TileWeights (&w)[1], const TileInputs (&x)[1],
                                      float (&sum)[1][4]) {
    float(&c)[4] = sum[0];
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(w[0].word[0]), "r"(w[0].word[1]), "r"(w[0].word[2]), "r"(w[0].word[3]), "r"(x[0].word[0]),
          "r"(x[0].word[1]));
#else
    // The first half of the inputs, then the second half.
    for (int half = 0; half < 2; ++half) {
      asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(w[0].word[2 * half]), "r"(w[0].word[2 * half + 1]), "r"(x[0].word[half]));
    }
#endif
  }
};

// Not supported on compute capability 7.5, for which select_kernel.cpp rejects it.
struct Bf16 {
  WAVENET_DEVICE static uint32_t pack(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&both);
  }

  WAVENET_DEVICE static void multiply(const TileWeights (&w)[1], const TileInputs (&x)[1],
                                      float (&sum)[1][4]) {
#if __CUDA_ARCH__ >= 800
    float(&c)[4] = sum[0];
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(w[0].word[0]), "r"(w[0].word[1]), "r"(w[0].word[2]), "r"(w[0].word[3]), "r"(x[0].word[0]),
          "r"(x[0].word[1]));
#else
    __trap();
#endif
  }
};

#else

constexpr int kLanesPerThread = kWarpSize;

// The first thread of a warp executes all its lanes.
template <class Work>
inline void for_lanes(int thread, Work work) {
  if (thread % kWarpSize != 0) return;
  for (int lane = 0; lane < kWarpSize; ++lane) work(lane, lane);
}

inline void sync_lanes() {}

inline TileWeights read_tile(const int32_t* from) {
  TileWeights weights;
  std::memcpy(&weights, from, sizeof(weights));
  return weights;
}

inline TileWeights read_tile_generic(const int32_t* from) { return read_tile(from); }

// Computes what the instruction does, according to its definition; `Format` is the 16-bit number format.
template <class Format>
struct HostTile {
  static uint32_t pack(float low, float high) {
    return Format::bits(low) | static_cast<uint32_t>(Format::bits(high)) << 16;
  }

  static float value(uint32_t word, int half) {
    return Format::value(static_cast<uint16_t>(half == 0 ? word & 0xffff : word >> 16));
  }

  static void multiply(const TileWeights (&w)[kWarpSize], const TileInputs (&x)[kWarpSize],
                       float (&sum)[kWarpSize][4]) {
    float a[kTileOutputs][kTileInputs], b[kTileInputs][kTileStreams];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int group = lane / 4, pair = lane % 4 * 2;
      for (int i = 0; i < 8; ++i) {
        const int row = group + (i / 2 % 2) * 8, column = pair + i % 2 + i / 4 * 8;
        a[row][column] = value(w[lane].word[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i) b[pair + i % 2 + i / 2 * 8][group] = value(x[lane].word[i / 2], i % 2);
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < kTileInputs; ++k) sum[lane][i] = fused(a[row][k], b[k][column], sum[lane][i]);
      }
    }
  }
};

struct Fp16Format {
  static uint16_t bits(float x) {
    const auto sign = static_cast<uint16_t>(static_cast<uint32_t>(bits_of(x)) >> 16 & 0x8000);
    const float size = std::fabs(x);
    if (std::isnan(x)) return 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    // If the mantissa is rounded up to the next power of two, it carries into the exponent.
    if (size < 6.103515625e-05f) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
    const int exponent = std::ilogb(size);
    const auto mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return static_cast<uint16_t>(sign | (((exponent + 15) << 10) + mantissa - 1024));
  }
  static float value(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = std::ldexp(static_cast<float>(mantissa + (exponent == 0 ? 0 : 1024)),
                            (exponent == 0 ? 1 : exponent) - 25);
    if (exponent == 31) size = mantissa == 0 ? HUGE_VALF : NAN;
    return (bits & 0x8000) != 0 ? -size : size;
  }
};

struct Bf16Format {
  static uint16_t bits(float x) {
    const auto word = static_cast<uint32_t>(bits_of(x));
    if (std::isnan(x)) return 0x7fc0;
    return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  static float value(uint16_t bits) { return float_of(static_cast<int32_t>(uint32_t{bits} << 16)); }
};

using Fp16 = HostTile<Fp16Format>;
using Bf16 = HostTile<Bf16Format>;

#endif

// Sums of 16 outputs for `kTiles` tiles of streams, computed by one warp.
template <class Format, int kTiles>
class TileSums {
 public:
  WAVENET_DEVICE explicit TileSums(int thread) : thread_(thread) {}

  // Calls work(sum, output, stream) for each of a lane's four sums of every tile; indices start at 0.
  template <class Work>
  WAVENET_DEVICE void for_each(Work work) {
    visit<1>([&](int tile, int local, int i, int output, int s) { work(sums_[tile][local][i], output, s); });
  }

  // The same for pairs of adjacent streams: work(sum, sum of the next stream, output, stream).
  template <class Work>
  WAVENET_DEVICE void for_pairs(Work work) {
    visit<2>([&](int tile, int local, int i, int output, int s) {
      work(sums_[tile][local][i], sums_[tile][local][i + 1], output, s);
    });
  }

  // The same for two sets of sums: work(sum, sum of the other set, output, stream).
  template <class Work>
  WAVENET_DEVICE void for_both(TileSums& other, Work work) {
    visit<1>([&](int tile, int local, int i, int output, int s) {
      work(sums_[tile][local][i], other.sums_[tile][local][i], output, s);
    });
  }

  // Adds the products of `tiles` consecutive tiles of weights with channels `stride` floats apart. All
  // kernels add in this order and into one sum, so that a stream's values do not depend on the kernel or the
  // batch.
  template <class Read>
  WAVENET_DEVICE void accumulate(const int32_t* weights, const float* x, int stride, int tiles, Read read) {
    // The lanes may have diverged before, but the instruction needs the whole warp.
    sync_lanes();
    for (int inputs = 0; inputs < tiles; ++inputs) {
      TileWeights w[kLanesPerThread];
      for_lanes(thread_,
                [&](int lane, int local) { w[local] = read(weights + (inputs * kWarpSize + lane) * 4); });
      WAVENET_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        TileInputs values[kLanesPerThread];
        for_lanes(thread_, [&](int lane, int local) {
          const float* from =
              x + (inputs * kTileInputs + lane % 4 * 2) * stride + tile * kTileStreams + lane / 4;
          values[local].word[0] = Format::pack(from[0], from[stride]);
          values[local].word[1] = Format::pack(from[8 * stride], from[9 * stride]);
        });
        if (computes_for_warp()) Format::multiply(w, values, sums_[tile]);
      }
    }
  }

 private:
  template <int kSumsAtOnce, class Work>
  WAVENET_DEVICE void visit(Work work) const {
    for_lanes(thread_, [&](int lane, int local) {
      WAVENET_UNROLL
      for (int tile = 0; tile < kTiles; ++tile) {
        WAVENET_UNROLL
        for (int i = 0; i < 4; i += kSumsAtOnce) {
          work(tile, local, i, lane / 4 + i / 2 * 8, tile * kTileStreams + lane % 4 * 2 + i % 2);
        }
      }
    });
  }

  WAVENET_DEVICE bool computes_for_warp() const { return kLanesPerThread == 1 || thread_ % kWarpSize == 0; }

  int thread_;
  float sums_[kTiles][kLanesPerThread][4];
};

// A block's warps compute 16 outputs each in turn, for all streams, so that weights are read once for all
// streams.
template <class Format, int kOfStreams>
struct TileShare {
  static constexpr int kStreams = kOfStreams;
  int thread;

  WAVENET_DEVICE explicit TileShare(int of_thread) : thread(of_thread) {}

  // Calls finish(output, stream, begin(output, stream) + W x) for every output and stream. Padding channels,
  // up to a whole tile, must be finite; their weights are zero.
  template <class Begin, class Finish>
  WAVENET_DEVICE void multiply(const Matrix& matrix, const Inputs& x, int stride, Begin begin,
                               Finish finish) const {
    const int tiles = static_cast<int>(matrix.inputs) / kTileInputs;
    const int first_tiles = (x.first_count + kTileInputs - 1) / kTileInputs;
    const int blocks = static_cast<int>(matrix.outputs) / kTileOutputs;
    for (int block = thread / kWarpSize; block < blocks; block += kWarps) {
      const int first = block * kTileOutputs;
      TileSums<Format, kStreams / kTileStreams> sums(thread);
      sums.for_each([&](float& sum, int output, int s) { sum = begin(first + output, s); });
      const int32_t* weights = matrix.words + static_cast<int64_t>(block) * tiles * kTileWords;
      sums.accumulate(weights, x.first, stride, first_tiles, read_tile);
      sums.accumulate(weights + first_tiles * kTileWords, x.second, stride, tiles - first_tiles, read_tile);
      sums.for_each([&](float& sum, int output, int s) { finish(first + output, s, sum); });
    }
  }
};

}  // namespace wavenet::cuda
