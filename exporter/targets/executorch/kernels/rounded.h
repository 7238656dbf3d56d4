// See rounded.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "linear.h"

namespace slm {

constexpr int64_t kRoundedGroup = 32;  // activations that share a scale

// Rows of activations as INT8 codes: in every run of 32 the even ones, then the odd ones, as nibbles pair them.
struct Rounded {
  int64_t rows = 0, groups = 0;
  std::vector<int8_t> codes;   // [rows][groups][32]
  std::vector<float> scales;   // [rows][groups]
  std::vector<float> offsets;  // [rows][groups]: 8 times the sum of the codes, times the scale; nibbles are stored plus 8
};

// Whether a matrix can meet rounded rows: INT4 in groups of a multiple of 32, without a remainder.
bool takes_rounded(const Weights& weights);

void round_rows(const float* in, int64_t rows, int64_t columns, Rounded& out);

// Rows [first, last) of the product: -> out [in.rows][weights.rows].
void multiply_rounded(const Weights& weights, const Rounded& in, int64_t first, int64_t last, float* out);

}  // namespace slm
