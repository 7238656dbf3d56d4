// Half precision, the rotation, and slots: shared by storing and attending.
#pragma once

#include <cstdint>
#include <cstring>

#include "attention.h"

namespace slm {

uint16_t to_half(float value);

// Exact for every finite half, subnormal ones included.
inline float from_half(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  value *= 5.192296858534828e+33f;  // 2^112: from half's exponent bias to float's
  return (half & 0x8000) ? -value : value;
}

// The orthonormal Hadamard matrix (Sylvester's) times a row, in place. It is its own inverse.
void rotate(float* row, int64_t size);

// The rule of exporter/decoder/cache.py.
int64_t slot_of(const Layer& layer, int64_t position);

}  // namespace slm
