// Softmax attention around the two exact products of a path.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "codec.h"

namespace slm {
namespace {

constexpr int kRows = 8;  // query rows that read a cached lane together
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer

// exp(x) for x <= 0, to 2 units in the last place; below -87 it is as good as zero. Written so that compilers vectorize the loop.
inline float exp_of(float x) {
  x = std::max(x, -87.0f);
  const float count = (x * 1.44269504f + kRound) - kRound;
  const float rest = (x - count * 0.693145751953125f) - count * 1.428606765330187e-6f;
  float power = 1.0f / 720;
  power = power * rest + 1.0f / 120;
  power = power * rest + 1.0f / 24;
  power = power * rest + 1.0f / 6;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  const int32_t bits = (static_cast<int32_t>(count) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return power * scale;
}

void round_row(const float* row, int64_t count, int64_t padded, Terms& terms) {
  float peak = 0.0f;
  for (int64_t i = 0; i < count; i++) peak = std::max(peak, std::fabs(row[i]));
  terms.step = std::max(peak, 1e-30f) / kSteps;
  terms.high.assign(padded, 0);
  terms.low.assign(padded, 0);
  terms.whole.assign(padded, 0);
  const float steps = 1.0f / terms.step;
  int64_t sum = 0;
  float total = 0.0f;
  for (int64_t i = 0; i < count; i++) {
    total += row[i];
    const int whole = static_cast<int>(std::min(std::max((row[i] * steps + kRound) - kRound, -1.0f * kSteps), 1.0f * kSteps));
    const int high = (whole + kFine / 2 + 128 * kFine) / kFine - 128;  // rounds to the nearest, also below zero
    terms.whole[i] = static_cast<int16_t>(whole);
    terms.high[i] = static_cast<int8_t>(high);
    terms.low[i] = static_cast<int8_t>(whole - high * kFine);
    sum += whole;
  }
  terms.sum = sum;
  terms.total = total;
}

// What one call works with; kept per thread.
struct Scratch {
  std::vector<float> query, key_scale, key_middle, value_scale, value_middle, probability[kRows];
  std::vector<int64_t> held, sums[kRows];
  Terms rows[kRows], weights[kRows];
};

void read_halves(const uint16_t* stored, int64_t count, std::vector<float>& out) {
  out.resize(count);
  for (int64_t i = 0; i < count; i++) out[i] = from_half(stored[i]);
}

// Products use codes minus half their range, which keeps what rounding costs small: a zero point moves to what that code stands for.
void read_middles(const uint16_t* zeros, int bits, const std::vector<float>& scales, std::vector<float>& out) {
  read_halves(zeros, scales.size(), out);
  for (size_t i = 0; i < scales.size(); i++) out[i] += scales[i] * (1 << (bits - 1));
}

// Position that each slot holds once `length` tokens are stored.
void held_positions(const Layer& layer, int64_t length, int64_t used, std::vector<int64_t>& held) {
  const int64_t last = length - 1, ring = layer.slots - layer.sinks;
  held.resize(used);
  for (int64_t slot = 0; slot < used; slot++)
    held[slot] = slot < layer.sinks ? slot : last - (last - slot) % ring;
}

bool visible(const Layer& layer, int64_t held, int64_t query) {
  if (held > query) return false;
  return layer.window == 0 || held > query - layer.window || held < layer.sinks;
}

// Turns one row of exact sums into probabilities that sum to one.
void probabilities(const Layer& layer, const Scratch& scratch, const int64_t* sums, const Terms& terms, int64_t head, int64_t query,
                   int64_t used, float* out) {
  const int64_t offset = terms.sum * (1 << (layer.bits - 1));
  const float step = terms.step;
  for (int64_t t = 0; t < used; t++) out[t] = static_cast<float>(sums[t] - offset) * (step * scratch.key_scale[t]);
  if (layer.zero_point) {
    for (int64_t t = 0; t < used; t++) out[t] += terms.total * scratch.key_middle[t];
  }
  if (layer.score_cap > 0)
    for (int64_t t = 0; t < used; t++) out[t] = std::tanh(out[t] / layer.score_cap) * layer.score_cap;
  if (layer.slopes != nullptr)
    for (int64_t t = 0; t < used; t++) out[t] += layer.slopes[head] * static_cast<float>(scratch.held[t] - query);
  float peak = -std::numeric_limits<float>::infinity();
  for (int64_t t = 0; t < used; t++)
    if (!visible(layer, scratch.held[t], query)) out[t] = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : peak)
  for (int64_t t = 0; t < used; t++) peak = out[t] > peak ? out[t] : peak;
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t t = 0; t < used; t++) {
    out[t] = exp_of(out[t] - peak);
    total += out[t];
  }
  const float share = 1.0f / total;
  for (int64_t t = 0; t < used; t++) out[t] *= share;
}

// Up to kRows query rows: the queries of one token that share the head, for one token or several.
void attend_rows(const Layer& layer, const Chunk& chunk, const Path& path, int64_t head, int64_t first, int count, Scratch& scratch) {
  const int64_t size = layer.head_dim, group = layer.query_heads / layer.kv_heads, used = static_cast<int64_t>(scratch.held.size());
  const int64_t block = layer.slots % kTokenBlock == 0 ? kTokenBlock : 1;
  const int64_t padded = std::min((used + block - 1) / block * block, layer.slots), bytes = size * layer.slots * layer.bits / 8;
  const float* balance = layer.constants + (layer.kv_heads + head) * size;
  int64_t* sums[kRows];
  scratch.query.resize(size);
  for (int row = 0; row < count; row++) {
    const int64_t token = (first + row) / group, query_head = head * group + (first + row) % group;
    const float* given = chunk.query + (token * layer.query_heads + query_head) * size;
    for (int64_t i = 0; i < size; i++) scratch.query[i] = given[i] * balance[i] * layer.score_scale;
    if (layer.rotation) rotate(scratch.query.data(), size);
    round_row(scratch.query.data(), size, (size + 7) / 8 * 8, scratch.rows[row]);
    scratch.sums[row].resize(std::max(padded, size));
    sums[row] = scratch.sums[row].data();
  }
  path.scores(layer.keys + head * bytes, layer.bits, size, layer.slots, padded, scratch.rows, count, sums);
  std::vector<float> weighted(padded);
  float shifts[kRows];
  for (int row = 0; row < count; row++) {
    const int64_t token = (first + row) / group, query_head = head * group + (first + row) % group;
    scratch.probability[row].resize(used);
    float* probability = scratch.probability[row].data();
    probabilities(layer, scratch, sums[row], scratch.rows[row], query_head, chunk.start + token, used, probability);
    for (int64_t t = 0; t < used; t++) weighted[t] = probability[t] * scratch.value_scale[t];
    round_row(weighted.data(), used, (padded + 7) / 8 * 8, scratch.weights[row]);
    float shift = 0.0f;
    if (layer.zero_point)
      for (int64_t t = 0; t < used; t++) shift += probability[t] * scratch.value_middle[t];
    shifts[row] = shift;
  }
  path.means(layer.values + head * bytes, layer.bits, size, padded, scratch.weights, count, sums);
  const float* value_center = layer.constants + (2 * layer.kv_heads + head) * size;
  const float* value_balance = layer.constants + (3 * layer.kv_heads + head) * size;
  for (int row = 0; row < count; row++) {
    const int64_t token = (first + row) / group, query_head = head * group + (first + row) % group;
    float* out = chunk.out + (token * layer.query_heads + query_head) * size;
    const int64_t offset = scratch.weights[row].sum * (1 << (layer.bits - 1));
    for (int64_t i = 0; i < size; i++) out[i] = static_cast<float>(sums[row][i] - offset) * scratch.weights[row].step + shifts[row];
    if (layer.rotation) rotate(out, size);
    for (int64_t i = 0; i < size; i++) out[i] = out[i] * value_balance[i] + value_center[i];
  }
}

}  // namespace

const Path& chosen_path(const Layer& layer) {
  const bool whole = layer.head_dim % 16 == 0 && layer.slots % kTokenBlock == 0 && layer.head_dim <= 256;
  for (const Path* path : {avx512_path(), avx2_path(), neon_path()})
    if (whole && path != nullptr) return *path;
  return portable_path();
}

void attend(const Layer& layer, const Chunk& chunk, const Path& path, int64_t head, int64_t first, int64_t last) {
  static thread_local Scratch scratch;
  const int64_t length = chunk.start + chunk.tokens, used = std::min(length, layer.slots), group = layer.query_heads / layer.kv_heads;
  const int64_t side = layer.kv_heads * layer.slots;
  const uint16_t* scales = layer.scales + head * layer.slots;
  read_halves(scales, used, scratch.key_scale);
  read_halves(scales + side, used, scratch.value_scale);
  if (layer.zero_point) {
    read_middles(scales + 2 * side, layer.bits, scratch.key_scale, scratch.key_middle);
    read_middles(scales + 3 * side, layer.bits, scratch.value_scale, scratch.value_middle);
  }
  held_positions(layer, length, used, scratch.held);
  for (int64_t row = first * group; row < last * group; row += kRows)
    attend_rows(layer, chunk, path, head, row, static_cast<int>(std::min<int64_t>(kRows, last * group - row)), scratch);
}

}  // namespace slm
