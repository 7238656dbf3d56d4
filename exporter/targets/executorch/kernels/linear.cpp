// Products of float activations with INT4 or INT8 weights in groups: for models so small that INT8 activations cost them quality.
#include "linear.h"

#include <vector>

#include "clones.h"
#include "codec.h"

namespace slm {
namespace {

// One row of weights: codes low nibble first, or bytes -> values.
SLM_CLONES void dequantize(const Weights& weights, int64_t row, float* out) {
  const uint8_t* codes = weights.codes + row * weights.row_bytes;
  if (weights.bits == 4) {
    for (int64_t i = 0; i < weights.row_bytes; i++) {
      out[2 * i] = static_cast<float>(static_cast<int>(codes[i] & 0x0f) - 8);
      out[2 * i + 1] = static_cast<float>(static_cast<int>(codes[i] >> 4) - 8);
    }
  } else {
    for (int64_t i = 0; i < weights.columns; i++) out[i] = static_cast<float>(static_cast<int8_t>(codes[i]));
  }
  for (int64_t group = 0; group < weights.groups; group++) {
    const int64_t end = (group + 1) * weights.group_size < weights.columns ? (group + 1) * weights.group_size : weights.columns;
    const int64_t at = row * weights.groups + group;
    const float scale = weights.scales != nullptr ? weights.scales[at] : from_half(weights.halves[at]);
    for (int64_t i = group * weights.group_size; i < end; i++) out[i] *= scale;
  }
}

SLM_CLONES float dot(const float* left, const float* right, int64_t size) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += left[i] * right[i];
  return sum;
}

}  // namespace

void multiply(const Weights& weights, const float* in, int64_t tokens, int64_t first, int64_t last, float* out) {
  static thread_local std::vector<float> row;
  row.resize(weights.columns + 1);
  for (int64_t index = first; index < last; index++) {
    dequantize(weights, index, row.data());
    for (int64_t token = 0; token < tokens; token++)
      out[token * weights.rows + index] = dot(in + token * weights.columns, row.data(), weights.columns);
  }
}

}  // namespace slm
