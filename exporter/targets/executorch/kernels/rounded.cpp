// Products of INT8 activations, with a scale for every 32 of them, with INT4 weights in groups.
#include "rounded.h"

#include <algorithm>
#include <cmath>

#include "codec.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace slm {
namespace {

struct Line {
  const uint8_t* codes;
  const float* scales;  // or null:
  const uint16_t* halves;
  int64_t runs_per_scale;  // runs of 32 weights
};

using Dot = float (*)(const Line& line, const int8_t* codes, const float* scales, const float* offsets, int64_t runs);

[[maybe_unused]] float dot_portable(const Line& line, const int8_t* codes, const float* scales, const float* offsets, int64_t runs) {
  float sum = 0.0f;
  for (int64_t run = 0; run < runs; run++) {
    const uint8_t* bytes = line.codes + run * 16;
    const int8_t* numbers = codes + run * 32;
    int32_t whole = 0;
    for (int64_t i = 0; i < 16; i++) whole += (bytes[i] & 0x0f) * numbers[i] + (bytes[i] >> 4) * numbers[16 + i];
    const int64_t at = run / line.runs_per_scale;
    const float scale = line.scales != nullptr ? line.scales[at] : from_half(line.halves[at]);
    sum += scale * (scales[run] * static_cast<float>(whole) - offsets[run]);
  }
  return sum;
}

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx2,fma,f16c"))) float dot_avx2(const Line& line, const int8_t* codes, const float* scales,
                                                       const float* offsets, int64_t runs) {
  const __m128i low = _mm_set1_epi8(0x0f);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 sums = _mm256_setzero_ps();
  float offset = 0.0f;
  for (int64_t run = 0; run < runs; run++) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(line.codes + run * 16));
    const __m256i weights = _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(bytes, 4), low), _mm_and_si128(bytes, low));
    const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + run * 32));
    const __m256i whole = _mm256_madd_epi16(_mm256_maddubs_epi16(weights, numbers), ones);
    const int64_t at = run / line.runs_per_scale;
    const float scale = line.scales != nullptr ? line.scales[at] : _cvtsh_ss(line.halves[at]);
    sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(scale * scales[run]), sums);
    offset += scale * offsets[run];
  }
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1))) - offset;
}

Dot chosen_dot() {
  static const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return wide ? dot_avx2 : dot_portable;
}
#elif defined(__ARM_NEON)
inline int32x4_t products(int8x16_t left, int8x16_t right) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(vdupq_n_s32(0), left, right);
#else
  return vpaddlq_s16(vmlal_s8(vmull_s8(vget_low_s8(left), vget_low_s8(right)), vget_high_s8(left), vget_high_s8(right)));
#endif
}

float dot_neon(const Line& line, const int8_t* codes, const float* scales, const float* offsets, int64_t runs) {
  const uint8x16_t low = vdupq_n_u8(0x0f);
  float32x4_t sums = vdupq_n_f32(0.0f);
  float offset = 0.0f;
  for (int64_t run = 0; run < runs; run++) {
    const uint8x16_t bytes = vld1q_u8(line.codes + run * 16);
    const int8x16_t even = vreinterpretq_s8_u8(vandq_u8(bytes, low)), odd = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
    const int8_t* numbers = codes + run * 32;
    const int32x4_t whole = vaddq_s32(products(even, vld1q_s8(numbers)), products(odd, vld1q_s8(numbers + 16)));
    const int64_t at = run / line.runs_per_scale;
    const float scale = line.scales != nullptr ? line.scales[at] : from_half(line.halves[at]);
    sums = vmlaq_n_f32(sums, vcvtq_f32_s32(whole), scale * scales[run]);
    offset += scale * offsets[run];
  }
  return vaddvq_f32(sums) - offset;
}

Dot chosen_dot() { return dot_neon; }
#else
Dot chosen_dot() { return dot_portable; }
#endif

}  // namespace

bool takes_rounded(const Weights& weights) {
  return weights.bits == 4 && weights.group_size % kRoundedGroup == 0 && weights.columns % weights.group_size == 0;
}

void round_rows(const float* in, int64_t rows, int64_t columns, Rounded& out) {
  out.rows = rows;
  out.groups = columns / kRoundedGroup;
  out.codes.resize(rows * columns);
  out.scales.resize(rows * out.groups);
  out.offsets.resize(rows * out.groups);
  for (int64_t group = 0; group < rows * out.groups; group++) {
    const float* numbers = in + group * kRoundedGroup;
    int8_t* codes = out.codes.data() + group * kRoundedGroup;
    float peak = 0.0f;
    for (int64_t i = 0; i < kRoundedGroup; i++) peak = std::max(peak, std::fabs(numbers[i]));
    const float scale = peak / 127.0f, inverse = peak > 0.0f ? 127.0f / peak : 0.0f;
    int32_t sum = 0;
    for (int64_t i = 0; i < kRoundedGroup; i++) {
      const auto code = static_cast<int8_t>(std::lrint(numbers[i] * inverse));
      codes[i / 2 + i % 2 * (kRoundedGroup / 2)] = code;
      sum += code;
    }
    out.scales[group] = scale;
    out.offsets[group] = 8.0f * scale * static_cast<float>(sum);
  }
}

void multiply_rounded(const Weights& weights, const Rounded& in, int64_t first, int64_t last, float* out) {
  const Dot dot = chosen_dot();
  for (int64_t index = first; index < last; index++) {
    const Line line{weights.codes + index * weights.row_bytes,
                    weights.scales != nullptr ? weights.scales + index * weights.groups : nullptr,
                    weights.halves != nullptr ? weights.halves + index * weights.groups : nullptr,
                    weights.group_size / kRoundedGroup};
    for (int64_t row = 0; row < in.rows; row++) {
      const int64_t at = row * in.groups;
      out[row * weights.rows + index] = dot(line, &in.codes[at * kRoundedGroup], &in.scales[at], &in.offsets[at], in.groups);
    }
  }
}

}  // namespace slm
