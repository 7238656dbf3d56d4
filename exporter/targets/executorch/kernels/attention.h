// Attention over a cache of INT8 or INT4 codes: what every path (portable, AVX2, AVX-512, NEON) computes.
//
// A cached vector is codes, one fp16 scale and optionally one fp16 zero point, as in exporter/quantize/kv_codec.py. Only the order of
// the codes differs from there, so that a path reads them one after another and gathers nothing:
//
//   keys    [C / 16][Hd / quad][16][4 bytes]   one lane of 4 bytes holds a token's channels
//   values  [C / quad][Hd][4 bytes]            one lane of 4 bytes holds a channel's tokens
//
// with quad = 4 at 8 bits. At 4 bits quad = 8: low nibbles are the first four, high nibbles the last four.
//
// Queries, and probabilities times scales, are rounded to 16 bits per row, or to 16 and 16 bits more. The products are then exact integers. What is left in floats
// is done 16 numbers at a time in one order, without fused operations: every path gives the same bits.
#pragma once

#include <cstdint>

namespace slm {

constexpr int kLane = 16;                  // slots are a multiple of this, and rows of numbers are padded to it
constexpr int kSteps = 127 * 256 + 127;    // largest magnitude of a rounded number: its upper byte, rounded, is at most 127
constexpr int64_t kExact = 512;            // so many products with codes around zero fit 32 bits: 128 * kSteps * kExact < 2^31
constexpr int kRows = 8;                   // most query rows that read a cached lane together

// One layer of a cache and how it is read. Pointers to [K] heads' data, one head after another.
struct Layer {
  int64_t slots, kv_heads, query_heads, head_dim;
  int64_t window, sinks;    // window 0: full attention
  int bits;                 // 8 or 4
  bool zero_point, rotation;
  bool fine;                // rounds what rounding left over once more: 32 bits per number, and twice the products
  float score_scale, score_cap;  // score_cap 0: none
  const float* constants;   // [4][K][Hd]: centre and balance of keys, then of values
  const float* slopes;      // [H], or null
  const float* learned;     // [H]: scores beside those of all keys, whose share of the probabilities reads nothing; or null
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

// A row of numbers 16 bits wide, in steps; also as two bytes for dot products of bytes: whole = 256 * high + low, of every four numbers
// the high bytes and then the low ones. `sums` adds up every kExact of them, `total` what was given.
struct Terms {
  int16_t* whole;
  int8_t* bytes;
  int32_t* sums;
  float step, total;
};

// Slots [first, end) hold the positions slot + shift, and the query may read them.
struct Run {
  int64_t first, end, shift;
};

// How one row of sums becomes weights. Scales and middles [padded]: zero behind the last slot in use. A middle is what the middle code
// stands for; null without zero points.
struct Softmax {
  const float *key_scale, *key_middle, *value_scale, *value_middle;
  int64_t padded, query;
  const Run* runs;
  int run_count;
  float slope, score_cap;
  float learned;  // minus infinity: none
};

// Of a row of weights: their largest magnitude, the sum that divides them, and what all middles add, before that division.
struct Weighted {
  float peak, total, shift;
};

// What a path brings. Counts of numbers and tokens are multiples of kLane; sums are with codes around zero, in steps.
struct Path {
  const char* name;
  void (*read_halves)(const uint16_t* stored, int64_t count, float* out);
  void (*round)(const float* row, int64_t count, float peak, Terms& terms);
  // rows: up to kRows queries against the first `tokens` keys of one head. sums [rows][tokens].
  void (*scores)(const uint8_t* keys, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count, float* const* sums);
  // In place: sums of one query -> probabilities, not yet divided by their sum, times the values' scales.
  Weighted (*weigh)(const Softmax& softmax, const Terms& query, float* row);
  // rows: up to kRows weightings of the first `tokens` values. sums [rows][Hd].
  void (*means)(const uint8_t* values, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count, float* const* sums);
  // x / (1 + exp(-x)), for any count.
  void (*silu)(const float* row, int64_t count, float* out);
};

const Path& portable_path();
const Path* avx2_path();    // null where the build or the processor has none
const Path* avx512_path();
const Path* neon_path();

// The fastest one of this processor, and the fastest for heads of this size.
const Path& fastest_path();
const Path& chosen_path(const Layer& layer);

// Encodes and stores the chunk's keys and values of one head. Heads may run in parallel.
void store(const Layer& layer, const Chunk& chunk, int64_t head);

// Attends with the chunk's tokens [first, last) of the queries that share one head. Everything must be stored before.
void attend(const Layer& layer, const Chunk& chunk, const Path& path, int64_t head, int64_t first, int64_t last);

}  // namespace slm
