// See linear.cpp.
#pragma once

#include <cstdint>

namespace slm {

// A matrix [rows, columns] in groups of columns; the last group may be a remainder.
struct Weights {
  int64_t rows, columns, groups, group_size, row_bytes;
  int bits;                // 8, or 4: nibbles plus 8, low one first
  const uint8_t* codes;    // [rows][row_bytes]
  const float* scales;     // [rows][groups], or null:
  const uint16_t* halves;  // the same in fp16
};

// Rows [first, last) of the product: in [tokens][columns] -> out [tokens][rows].
void multiply(const Weights& weights, const float* in, int64_t tokens, int64_t first, int64_t last, float* out);

}  // namespace slm
