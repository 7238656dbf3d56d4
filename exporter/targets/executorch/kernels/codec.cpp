// The codec of exporter/quantize/kv_codec.py: centre, balance, rotate, scale, round; and its inverse for what attention mixed.
#include "codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace slm {

uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u) return sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u);  // NaN, or beyond the largest: infinity
  if (bits < 0x38800000u) {                                                          // subnormal: let the adder round
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return sign | (bits - 0x3f000000u);
  }
  bits += 0xc8000fffu + ((bits >> 13) & 1u);  // rebias the exponent, round half to even
  return sign | (bits >> 13);
}

void rotate(float* row, int64_t size) {
  for (int64_t span = 1; span < size; span *= 2)
    for (int64_t start = 0; start < size; start += 2 * span)
      for (int64_t i = start; i < start + span; i++) {
        const float a = row[i], b = row[i + span];
        row[i] = a + b;
        row[i + span] = a - b;
      }
  const float norm = 1.0f / std::sqrt(static_cast<float>(size));
  for (int64_t i = 0; i < size; i++) row[i] *= norm;
}

namespace {

constexpr float kSmallest = 1.0f / (1 << 24);
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer

// The number of largest magnitude; of two, the first.
float peak_of(const float* row, float low, float high) {
  if (-low != high) return -low > high ? low : high;
  while (*row != low && *row != high) row++;
  return *row;
}

// Codes of one prepared vector, with its scale and zero point as they are stored.
void encode(const float* row, int64_t size, int bits, bool zero_point, uint8_t* codes, uint16_t* scale, uint16_t* zero) {
  const int levels = 1 << bits;
  float low = row[0], high = row[0];
#pragma omp simd reduction(min : low) reduction(max : high)
  for (int64_t i = 1; i < size; i++) {
    low = row[i] < low ? row[i] : low;
    high = row[i] > high ? row[i] : high;
  }
  float shift = 0.0f, offset = levels / 2;
  if (zero_point) {
    *scale = to_half(std::max((high - low) / (levels - 1), kSmallest));
    *zero = to_half(low);
    shift = from_half(*zero);
    offset = 0.0f;
  } else {
    const float peak = peak_of(row, low, high);
    *scale = to_half(bits >= 8 ? std::fabs(peak) / (levels / 2 - 1) : peak / -(levels / 2));
    if ((*scale & 0x7fff) == 0) *scale = to_half(kSmallest);
  }
  const float step = from_half(*scale);
  for (int64_t i = 0; i < size; i++) {
    const float code = (((row[i] - shift) / step + kRound) - kRound) + offset;
    codes[i] = static_cast<uint8_t>(std::min(std::max(code, 0.0f), static_cast<float>(levels - 1)));
  }
}

// Puts a code into its lane of 4 bytes, at place `index` of an axis that is cut into quads.
void place(uint8_t* lane, int bits, int64_t index, uint8_t code) {
  uint8_t& byte = lane[index % 4];
  if (bits == 8) byte = code;
  else byte = (index % 8 < 4) ? (byte & 0xf0) | code : (byte & 0x0f) | (code << 4);
}

}  // namespace

int64_t slot_of(const Layer& layer, int64_t position) {
  return position < layer.sinks ? position : layer.sinks + (position - layer.sinks) % (layer.slots - layer.sinks);
}

void store(const Layer& layer, const Chunk& chunk, int64_t head) {
  const int64_t size = layer.head_dim, heads = layer.kv_heads, bytes = size * layer.slots * layer.bits / 8;
  std::vector<float> row(size);
  std::vector<uint8_t> codes(size);
  for (int64_t token = 0; token < chunk.tokens; token++) {
    const int64_t slot = slot_of(layer, chunk.start + token);
    for (int side = 0; side < 2; side++) {
      const float* given = (side ? chunk.value : chunk.key) + (token * heads + head) * size;
      const float* center = layer.constants + ((2 * side) * heads + head) * size;
      const float* balance = layer.constants + ((2 * side + 1) * heads + head) * size;
      for (int64_t i = 0; i < size; i++) row[i] = (given[i] - center[i]) / balance[i];
      if (layer.rotation) rotate(row.data(), size);
      uint16_t* scale = layer.scales + (side * heads + head) * layer.slots + slot;
      encode(row.data(), size, layer.bits, layer.zero_point, codes.data(), scale, scale + 2 * heads * layer.slots);
      uint8_t* lanes = (side ? layer.values : layer.keys) + head * bytes;
      const int64_t quad = 32 / layer.bits, block = slot / kLane * (size / quad);
      for (int64_t i = 0; i < size; i++) {
        if (side) place(lanes + (slot / quad * size + i) * 4, layer.bits, slot, codes[i]);
        else place(lanes + ((block + i / quad) * kLane + slot % kLane) * 4, layer.bits, i, codes[i]);
      }
    }
  }
}

}  // namespace slm
