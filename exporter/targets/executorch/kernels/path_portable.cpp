// Plain C++: the reference of the other paths, and the fallback for sizes that they do not take.
#include "attention.h"

namespace slm {
namespace {

// The code at place `index` of an axis that is cut into quads, beside `other` of `others`: see attention.h.
inline int code_at(const uint8_t* lanes, int bits, int64_t index, int64_t other, int64_t others) {
  if (bits == 8) return lanes[((index / 4) * others + other) * 4 + index % 4];
  const uint8_t byte = lanes[((index / 8) * others + other) * 4 + index % 4];
  return index % 8 < 4 ? byte & 0x0f : byte >> 4;
}

void scores(const uint8_t* keys, int bits, int64_t head_dim, int64_t slots, int64_t tokens, const Terms* rows, int count,
            int64_t* const* sums) {
  for (int64_t t = 0; t < tokens; t++) {
    int64_t total[8] = {};
    for (int64_t i = 0; i < head_dim; i++) {
      const int code = code_at(keys, bits, i, t, slots);
      for (int row = 0; row < count; row++) total[row] += rows[row].whole[i] * code;
    }
    for (int row = 0; row < count; row++) sums[row][t] = total[row];
  }
}

void means(const uint8_t* values, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count, int64_t* const* sums) {
  for (int row = 0; row < count; row++)
    for (int64_t i = 0; i < head_dim; i++) sums[row][i] = 0;
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t i = 0; i < head_dim; i++) {
      const int code = code_at(values, bits, t, i, head_dim);
      for (int row = 0; row < count; row++) sums[row][i] += rows[row].whole[t] * code;
    }
}

}  // namespace

const Path& portable_path() {
  static const Path path{"portable", scores, means};
  return path;
}

}  // namespace slm
