// Attention over a cache of INT8 or INT4 codes: what every path (portable, AVX2, AVX-512, NEON) computes.
//
// A cached vector is codes, one fp16 scale and optionally one fp16 zero point, as in exporter/quantize/kv_codec.py. Only the order of
// the codes differs from there, so that no path has to gather:
//
//   keys    [Hd / quad][C][4 bytes]   one lane of 4 bytes holds a token's channels
//   values  [C / quad][Hd][4 bytes]   one lane of 4 bytes holds a channel's tokens
//
// with quad = 4 at 8 bits. At 4 bits quad = 8: low nibbles are the first four, high nibbles the last four.
//
// Queries, and probabilities times scales, are rounded to 16 bits per row (127 * 254 + 126 steps to each side). The products are then
// exact integers, and the same in every path.
#pragma once

#include <cstdint>
#include <vector>

namespace slm {

constexpr int kFine = 254;                        // steps of the second 8-bit term in one of the first
constexpr int kSteps = 127 * kFine + kFine / 2 - 1;  // largest magnitude of a rounded number
constexpr int kTokenBlock = 16;                   // slots are a multiple of this for the vector paths

// One layer of a cache and how it is read. Pointers to [K] heads' data, one head after another.
struct Layer {
  int64_t slots, kv_heads, query_heads, head_dim;
  int64_t window, sinks;    // window 0: full attention
  int bits;                 // 8 or 4
  bool zero_point, rotation;
  float score_scale, score_cap;  // score_cap 0: none
  const float* constants;   // [4][K][Hd]: centre and balance of keys, then of values
  const float* slopes;      // [H], or null
  uint8_t* keys;
  uint8_t* values;
  uint16_t* scales;         // [2][K][C] keys, values; with zero points [4][K][C]: their zero points follow
};

// S tokens at absolute positions from `start` on.
struct Chunk {
  int64_t start, tokens;
  const float* query;  // [S][H][Hd]
  const float* key;    // [S][K][Hd]
  const float* value;  // [S][K][Hd]
  float* out;          // [S][H * Hd]
};

// A row of numbers 16 bits wide, also as two 8-bit terms for dot products of bytes: number = high * kFine + low. `sum` adds up what
// was rounded, in steps; `total` what was given.
struct Terms {
  std::vector<int8_t> high, low;
  std::vector<int16_t> whole;
  int64_t sum = 0;
  float step = 0, total = 0;
};

// The two products that a path brings. All sums are exact.
struct Path {
  const char* name;
  // rows: up to 8 queries against the first `tokens` keys of one head. sums [rows][tokens].
  void (*scores)(const uint8_t* keys, int bits, int64_t head_dim, int64_t slots, int64_t tokens, const Terms* rows, int count,
                 int64_t* const* sums);
  // rows: up to 8 weightings of the first `tokens` values. sums [rows][Hd]. A vector path is given whole blocks of kTokenBlock tokens.
  void (*means)(const uint8_t* values, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count,
                int64_t* const* sums);
};

const Path& portable_path();
const Path* avx2_path();    // null where the build or the processor has none
const Path* avx512_path();
const Path* neon_path();

// The fastest path of this processor for these sizes.
const Path& chosen_path(const Layer& layer);

// Encodes and stores the chunk's keys and values of one head. Heads may run in parallel.
void store(const Layer& layer, const Chunk& chunk, int64_t head);

// Attends with the chunk's tokens [first, last) of the queries that share one head. Everything must be stored before.
void attend(const Layer& layer, const Chunk& chunk, const Path& path, int64_t head, int64_t first, int64_t last);

}  // namespace slm
