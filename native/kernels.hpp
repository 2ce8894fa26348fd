// What a kernel works on, and the table of kernels that each instruction set fills in.
//
// Weights are packed in groups of 16 output columns (`kGroup`); a group holds, for all K in turn, the bytes that one vector
// register or one row of a matrix tile wants:
//     bf16   [n/16][k/2][16][2]                    a tile of 32 k x 16 columns is 1 KiB in a row
//     int8   [n/16][k/4][16][4], stored as q + 128 a tile of 64 k x 16 columns is 1 KiB in a row; rotated along k by a
//                                                  Hadamard transform of every 64, as the activations are
//     int4   [n/16][k/32]{ 4 x 64 bytes: the low nibbles are k 4j..4j+3 of 16 columns, the high ones k 16+4j..;
//                          16 scales, 16 minima in f16 }            w = scale * q + minimum
// n is padded to kColumns and k to kDepth with zeros. One layout serves every instruction set, so one file on disk does too.
#pragma once
#include <cstdint>

namespace vglm {

constexpr int kGroup = 16;     // output columns in a group
constexpr int kColumns = 64;   // n is a multiple of this
constexpr int kDepth = 64;     // k is a multiple of this
constexpr int kBlock4 = 320;   // bytes of an int4 block: 16 columns x 32 k
constexpr int kTokenTile = 16; // tokens in a tile of the KV cache
constexpr int kChunk = 256;    // KV slots that attention takes in one go; fixed, so that results do not depend on the plan

enum class WeightType : int32_t { bf16 = 0, int8 = 1, int4 = 2 };

inline int64_t group_bytes(WeightType type, int64_t k) {
  return type == WeightType::bf16 ? k * 32 : type == WeightType::int8 ? k * 16 : k / 32 * kBlock4;
}

struct Linear {
  WeightType type = WeightType::bf16;
  int32_t n = 0, k = 0;            // padded
  const uint8_t* data = nullptr;
  const float* scale = nullptr;    // int8: [n]
  const float* bias = nullptr;     // [n] or null
  // A of a low-rank adapter W + B A (arXiv:2106.09685), for int4, which is too coarse to have the adapter merged into it. The
  // outputs of A are the last inputs of this matrix, and B is its last columns.
  const Linear* low_rank = nullptr;
  int32_t inputs() const { return low_rank ? k - low_rank->n : k; }
};

// Rows of activations in the form that the next matrix multiplication reads. Only the members of its weight type are used.
struct Activations {
  int32_t k = 0;                   // what is written of a row
  int32_t stride = 0;              // elements from row to row; more than k where a low-rank part follows
  uint16_t* bf16 = nullptr;        // [rows][stride]
  int8_t* int8 = nullptr;          // [rows][stride], symmetric; for int8 weights after a Hadamard transform of every 64
  float* scale = nullptr;          // int8 weights: [rows];  int4 weights: [rows][stride/32]
  int32_t* sum = nullptr;          // int8 weights: [rows] sum of the row's int8
  float* group_sum = nullptr;      // int4 weights: [rows][stride/32] scale * sum of the group's int8
};

enum class Store : int32_t {
  f32 = 0,       // out[row][column] = y
  add_f32 = 1,   // out[row][column] += y                     (residual)
  swiglu = 2,    // groups alternate gate, up; out_bf16[row][column/2] = silu(gate) * up
};

struct Epilogue {
  Store store = Store::f32;
  float* out = nullptr;
  uint16_t* out_bf16 = nullptr;
  int64_t stride = 0;    // elements from row to row of the output
  float scale = 1.f;     // multiplies y
};

// How K and V lie in a block of the pool: [layer][kv head][tile of 16 tokens]{K, V, (K scales, V scales)}
//     K [head_dim/2][16 tokens][2]   V [8 token pairs][head_dim][2]     bf16, or int8 with a float scale per token
struct KVLayout {
  int32_t layers = 0, kv_heads = 0, head_dim = 0, block_size = 0;
  bool int8 = false;
  int64_t plane_bytes() const { return (int64_t)kTokenTile * head_dim * (int8 ? 1 : 2); }
  int64_t tile_bytes() const { return 2 * plane_bytes() + (int8 ? 2 * kTokenTile * 4 : 0); }
  int64_t head_bytes() const { return tile_bytes() * (block_size / kTokenTile); }
  int64_t block_bytes() const { return head_bytes() * kv_heads * layers; }
};

// One tile of 16 KV slots of one head; slots at or past `valid` are not part of the sequence.
struct KVTile {
  const uint8_t* data;
  int32_t begin;    // first slot's index in the sequence
  int32_t valid;
};

// Partial softmax over one chunk: out is not divided by sum.
struct Partial {
  float* max;
  float* sum;
  float* out;   // [head_dim]
};

inline int64_t attend_scratch_bytes(int head_dim) {
  const int64_t depth = (head_dim + 31) / 32 * 32;
  return 4 * kChunk * depth + 64 * depth + 192 * kChunk + 128 * depth;   // K and V of a chunk, 32 rows of Q, P, S and O
}

// Dense weights of relational message passing (propagation.hpp); widths are multiples of 16.
constexpr int kMaxMessageWidth = 256;
struct MessageLayer {
  int32_t width;
  float epsilon;
  const float* mix;    // [3 * width][width]; each of its rows, and the bias, sums to 0, so that the norm need not take the mean away
  const float *bias, *gain, *shift;   // [width]
};
struct ScoreLayer {
  int32_t width, hidden;   // hidden at most 2 * kMaxMessageWidth
  const float *weight, *bias, *out;   // [width][hidden], [hidden], [hidden]
  float out_bias;
};

struct Kernels {
  const char* name;
  // y[rows, groups] = a @ w.T, then the epilogue. Rows and groups are half-open ranges; groups come in pairs.
  void (*matmul)(const Linear& w, const Activations& a, int row0, int row1, int group0, int group1, const Epilogue& e);
  // Rows of x (or of bf16 x) into the form that weights of `type` read; with RMSNorm first if eps >= 0 (weight may be null).
  void (*normalize)(const float* x, int64_t stride, int width, const float* weight, float eps, WeightType type,
                    Activations& a, int row0, int row1);
  void (*convert_f32)(const float* x, int64_t stride, WeightType type, Activations& a, int row0, int row1);
  void (*convert_bf16)(const uint16_t* x, int64_t stride, WeightType type, Activations& a, int row0, int row1);
  // x = x + rmsnorm(y) * weight, and plain RMSNorm in place
  void (*add_normalized)(float* x, const float* y, int64_t stride, int width, const float* weight, float eps, int row0, int row1);
  void (*rmsnorm)(float* x, int width, const float* weight, float eps);
  // Rotary embedding of one head in place, half-split pairs (i, i + rotary/2).
  void (*rope)(float* head, const float* cos, const float* sin, int rotary_dim);
  // Orthonormal Hadamard transform in place, of every 64 elements (every 16 where head_dim is not a multiple of 64).
  void (*rotate)(float* head, int head_dim);
  void (*f32_to_bf16)(const float* x, uint16_t* y, int n);
  void (*bf16_to_f32)(const uint16_t* x, float* y, int n);
  // Writes one token's K and V into slot `slot` of a tile.
  void (*store_kv)(uint8_t* tile, int slot, const float* k, const float* v, int head_dim, bool int8);
  // For each of `rows` queries (bf16 [head_dim]) the partial softmax over the slots < limit[row] of the tiles.
  // `scratch`: attend_scratch_bytes(head_dim), aligned to 64. `next`: kChunk / kTokenTile tiles that will be asked for next
  // and are worth fetching meanwhile, or null. `kept`: so many tiles at the front are those of the last call with this scratch,
  // unchanged and seen by its rows.
  void (*attend)(const uint16_t* const* q, const int32_t* limit, int rows, const KVTile* tiles, int num_tiles, int head_dim,
                 bool int8, float scale, const Partial* out, uint8_t* scratch, const KVTile* next, int kept);
  // into = into + from, the softmax-weighted sum of two parts of a row's context; then out /= sum.
  void (*merge)(const Partial& into, const Partial& from, int head_dim);
  void (*divide)(float* out, float sum, int head_dim);
  // states [rows][width] += relu(norm([state, mean * received, sqrt(mean) * received] @ mix + bias) * gain + shift)
  void (*mix_messages)(const MessageLayer& layer, const float* received, const float* mean, int64_t rows, float* states);
  // scores [rows] = relu(states @ weight + bias) @ out + out_bias
  void (*score_states)(const ScoreLayer& layer, const float* states, int64_t rows, float* scores);
  // Limits of the machine, for benchmarks: multiply-adds of registers alone (returns how many), and reading memory.
  int64_t (*spin)(WeightType type, int64_t rounds);
  int32_t (*read)(const uint8_t* data, int64_t bytes);
};

// Instruction sets that this build has and this processor runs, best first; the last is always "portable".
int available_kernels(const Kernels** out, int capacity);
const Kernels* find_kernels(const char* name);  // null when there is none of that name here

}  // namespace vglm
