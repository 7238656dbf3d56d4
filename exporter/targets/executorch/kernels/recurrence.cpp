// Short convolutions, selective scans and state space duals. A state is read from one copy and written to the other once; what a chunk
// does in between stays in the processor's caches.
#include "recurrence.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "clones.h"

namespace slm {
namespace {

constexpr int64_t kNowhere = -1, kUsual = 16;
constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer
constexpr float kLeast = -87.0f;

// `exp_of` of path_rows.h for one number, in terms that a compiler turns into vectors.
inline float exp_of(float x) {
  const float within = x > kLeast ? x : kLeast;
  const float count = (within * 1.44269504f + kRound) - kRound;
  const float rest = (within - count * 0.693145751953125f) - count * 1.428606765330187e-6f;
  float power = 1.0f / 720;
  power = power * rest + 1.0f / 120;
  power = power * rest + 1.0f / 24;
  power = power * rest + 1.0f / 6;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  const int32_t bits = (static_cast<int32_t>(count) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x > kLeast ? power * scale : 0.0f;
}

// log(1 + exp(x)) = max(x, 0) + log(1 + u) with u = exp(-|x|), and log(1 + u) = 2 * atanh(u / (2 + u)), a series in at most 1/3.
inline float softplus(float x) {
  const float power = exp_of(x > 0.0f ? -x : x), part = power / (2.0f + power), square = part * part;
  float series = 1.0f / 15;
  series = series * square + 1.0f / 13;
  series = series * square + 1.0f / 11;
  series = series * square + 1.0f / 9;
  series = series * square + 1.0f / 7;
  series = series * square + 1.0f / 5;
  series = series * square + 1.0f / 3;
  series = series * square + 1.0f;
  return (x > 0.0f ? x : 0.0f) + 2.0f * part * series;
}

SLM_CLONES void softplus_row(const float* __restrict row, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; i++) out[i] = softplus(row[i]);
}

void take_over(const Turn& turn, int64_t first, int64_t count) {
  if (turn.from == nullptr) {
    std::fill(turn.to + first, turn.to + first + count, 0.0f);
  } else {
    std::memcpy(turn.to + first, turn.from + first, sizeof(float) * count);
  }
}

// Adds a row times weights of its own.
SLM_CLONES void add_product(const float* __restrict row, const float* __restrict weights, int64_t count, float* __restrict out) {
  for (int64_t i = 0; i < count; i++) out[i] += row[i] * weights[i];
}

// One token of one channel: the states [N] go on, and what they give comes back.
inline float scan_channel(const float* __restrict decay, float length, float given, const float* __restrict entering,
                          const float* __restrict leaving, int64_t size, float* __restrict state) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t n = 0; n < size; n++) {
    state[n] = exp_of(length * decay[n]) * state[n] + given * entering[n];
    sum += state[n] * leaving[n];
  }
  return sum;
}

// One token of channels [first, last), whose steps come from `lengths` on. Published models have 16 states, one vector or two.
SLM_CLONES void scan_token(const Scan& scan, int64_t token, int64_t first, int64_t last, const float* lengths, float* states) {
  const int64_t size = scan.size, row = token * scan.channels;
  const float *entering = scan.entering + token * size, *leaving = scan.leaving + token * size;
  for (int64_t channel = first; channel < last; channel++) {
    const float length = lengths[channel - first], in = scan.in[row + channel], *decay = scan.decay + channel * size;
    float* state = states + channel * size;
    const float sum = size == kUsual ? scan_channel(decay, length, length * in, entering, leaving, kUsual, state)
                                     : scan_channel(decay, length, length * in, entering, leaving, size, state);
    scan.out[row + channel] = sum + scan.skip[channel] * in;
  }
}

// One token of one head: states [N][P]; adds to out [P].
SLM_CLONES void scan_head(float faded, float length, const float* __restrict entering, const float* __restrict leaving, int64_t size,
                          int64_t width, const float* __restrict in, float* __restrict state, float* __restrict out) {
  for (int64_t n = 0; n < size; n++, state += width) {
    const float enters = length * entering[n], leaves = leaving[n];
    for (int64_t i = 0; i < width; i++) {
      state[i] = faded * state[i] + enters * in[i];
      out[i] += leaves * state[i];
    }
  }
}

}  // namespace

Turn begin(const States& states, int64_t position, int64_t tokens) {
  float* second = states.copies + states.numbers;
  if (position == 0) {
    states.held[0] = tokens;
    states.held[1] = kNowhere;
    return {nullptr, states.copies};
  }
  for (int copy = 0; copy < 2; copy++)
    if (states.held[copy] == position) {
      states.held[1 - copy] = position + tokens;
      return copy == 0 ? Turn{states.copies, second} : Turn{second, states.copies};
    }
  return {nullptr, nullptr};
}

void convolve(const Convolution& convolution, const Turn& turn, int64_t first, int64_t last) {
  const int64_t channels = convolution.channels, reach = convolution.taps - 1, count = last - first;
  auto row_of = [&](int64_t token) -> const float* {  // null: zeros
    if (token >= 0) return convolution.in + token * channels + first;
    return turn.from == nullptr ? nullptr : turn.from + (token + reach) * channels + first;
  };
  for (int64_t token = 0; token < convolution.tokens; token++) {
    float* out = convolution.out + token * channels + first;
    if (convolution.bias != nullptr) {
      std::memcpy(out, convolution.bias + first, sizeof(float) * count);
    } else {
      std::fill(out, out + count, 0.0f);
    }
    for (int64_t tap = 0; tap < convolution.taps; tap++)
      if (const float* row = row_of(token + tap - reach)) add_product(row, convolution.weights + tap * channels + first, count, out);
  }
  for (int64_t kept = 0; kept < reach; kept++) {
    float* to = turn.to + kept * channels + first;
    if (const float* row = row_of(convolution.tokens + kept - reach)) {
      std::memcpy(to, row, sizeof(float) * count);
    } else {
      std::fill(to, to + count, 0.0f);
    }
  }
}

void scan(const Scan& scan, const Turn& turn, int64_t first, int64_t last) {
  static thread_local std::vector<float> lengths;
  lengths.resize(last - first);
  take_over(turn, first * scan.size, (last - first) * scan.size);
  for (int64_t token = 0; token < scan.tokens; token++) {
    softplus_row(scan.step + token * scan.channels + first, last - first, lengths.data());
    scan_token(scan, token, first, last, lengths.data(), turn.to);
  }
}

void scan_heads(const Dual& dual, const Turn& turn, int64_t first, int64_t last) {
  const int64_t heads = dual.groups * dual.group_heads, width = dual.width, numbers = dual.size * width;
  for (int64_t head = first; head < last; head++) {
    take_over(turn, head * numbers, numbers);
    for (int64_t token = 0; token < dual.tokens; token++) {
      const int64_t at = (token * heads + head) * width, shared = (token * dual.groups + head / dual.group_heads) * dual.size;
      const float length = std::max(softplus(dual.step[token * heads + head] + dual.step_bias[head]), dual.shortest_step);
      for (int64_t i = 0; i < width; i++) dual.out[at + i] = dual.skip[head] * dual.in[at + i];
      scan_head(std::exp(length * dual.decay[head]), length, dual.entering + shared, dual.leaving + shared, dual.size, width,
                dual.in + at, turn.to + head * numbers, dual.out + at);
    }
  }
}

}  // namespace slm
