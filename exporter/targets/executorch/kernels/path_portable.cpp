// Plain C++: the reference of the other paths, and the fallback for heads that they do not take.
#include "path_rows.h"

namespace slm {
namespace {

constexpr int kQuad = 4;

inline int code_of(uint8_t byte, int bits, int64_t index) {
  if (bits == 8) return byte - 128;
  return (index % 8 < 4 ? byte & 0x0f : byte >> 4) - 8;
}

void scores(const uint8_t* keys, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count, float* const* sums) {
  const int64_t lane = 8 / bits * kQuad, quads = head_dim / lane;
  for (int64_t first = 0; first < head_dim; first += kExact) {
    const int64_t end = head_dim < first + kExact ? head_dim : first + kExact;
    for (int64_t t = 0; t < tokens; t++) {
      int32_t total[kRows] = {};
      for (int64_t i = first; i < end; i++) {
        const int code = code_of(keys[((t / kLane * quads + i / lane) * kLane + t % kLane) * kQuad + i % kQuad], bits, i);
        for (int row = 0; row < count; row++) total[row] += rows[row].whole[i] * code;
      }
      for (int row = 0; row < count; row++) sums[row][t] = (first != 0 ? sums[row][t] : 0) + static_cast<float>(total[row]);
    }
  }
}

void means(const uint8_t* values, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count, float* const* sums) {
  const int64_t lane = 8 / bits * kQuad;
  for (int64_t first = 0; first < tokens; first += kExact) {
    const int64_t end = tokens < first + kExact ? tokens : first + kExact;
    for (int64_t i = 0; i < head_dim; i++) {
      int32_t total[kRows] = {};
      for (int64_t t = first; t < end; t++) {
        const int code = code_of(values[(t / lane * head_dim + i) * kQuad + t % kQuad], bits, t);
        for (int row = 0; row < count; row++) total[row] += rows[row].whole[t] * code;
      }
      for (int row = 0; row < count; row++) sums[row][i] = (first != 0 ? sums[row][i] : 0) + static_cast<float>(total[row]);
    }
  }
}

}  // namespace

const Path& portable_path() {
  static const Path path{"portable", read_halves, round_row, scores, weigh_row, means, silu_row};
  return path;
}

}  // namespace slm
