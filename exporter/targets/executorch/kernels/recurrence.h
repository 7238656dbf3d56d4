// Recurrent mixers, token by token, as exporter/decoder/scan.py defines them. Everything is float32.
//
// Notation: S tokens of a chunk, I channels, N states of each, H heads of P channels, G groups of heads.
#pragma once

#include <cstdint>

namespace slm {

// Two copies of a state, and the positions before which they stand. A call reads one and writes the other, so that the same tokens, or
// more of them, can be given again from where they began. At position 0 whatever lies in either is forgotten.
struct States {
  float* copies;     // [2][numbers]
  int64_t* held;     // [2]
  int64_t numbers;
};

struct Turn {
  const float* from;  // null: zeros
  float* to;          // null: no copy stands at that position
};

// Where a chunk of so many tokens from a position on begins; what it leaves is then held for the position behind it.
Turn begin(const States& states, int64_t position, int64_t tokens);

// in [S][I] with weights [taps][I] -> out [S][I]; the state is [taps - 1][I].
struct Convolution {
  int64_t tokens, channels, taps;
  const float *in, *weights, *bias;  // bias [I], or null
  float* out;
};

// h = exp(step * decay) * h + step * B * x,  y = C h + skip * x
struct Scan {
  int64_t tokens, channels, size;
  const float *in, *step, *entering, *leaving;  // x and steps before the softplus [S][I]; B and C [S][N]
  const float *decay, *skip;                    // [I][N] of negative numbers, [I]
  float* out;                                   // [S][I]; the state is [I][N]
};

// The same where the channels of a head share step and decay, and the heads of a group B and C.
struct Dual {
  int64_t tokens, groups, group_heads, size, width;
  float shortest_step;
  const float *in, *step, *entering, *leaving;  // [S][H * P], steps before bias and softplus [S][H], [S][G * N] twice
  const float *step_bias, *decay, *skip;        // [H] each, decays negative
  float* out;                                   // [S][H * P]; the state is [H][N][P]
};

// Channels, or heads, [first, last). They may run in parallel.
void convolve(const Convolution& convolution, const Turn& turn, int64_t first, int64_t last);
void scan(const Scan& scan, const Turn& turn, int64_t first, int64_t last);
void scan_heads(const Dual& dual, const Turn& turn, int64_t first, int64_t last);

}  // namespace slm
