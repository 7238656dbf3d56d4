// NEON: 4 lanes. Codes become signed (INT8 codes minus 128), and the offset is taken back from the sum of the row's numbers. With the
// dot-product extension four products are one instruction; without it they are two multiplications and two pairwise sums.
#include "path_vector.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>

namespace slm {
namespace {

inline int32x4_t dot(int32x4_t sum, int8x16_t codes, int8x16_t numbers) {
#if defined(__ARM_FEATURE_DOTPROD)
  return vdotq_s32(sum, codes, numbers);
#else
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(numbers)));
  const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(codes), vget_high_s8(numbers)));
  return vaddq_s32(sum, vcombine_s32(vpadd_s32(vget_low_s32(low), vget_high_s32(low)), vpadd_s32(vget_low_s32(high), vget_high_s32(high))));
#endif
}

template <int kOffset>
struct Simd {
  static constexpr int64_t kLanes = 4;
  struct Sum {
    int32x4_t high, low;
  };
  struct Nibbles {
    int8x16_t low, high;
  };
  struct Row {
    const int8_t *high, *low;
    const int16_t* whole;
  };

  static Row row(const Terms& terms) { return {terms.high.data(), terms.low.data(), terms.whole.data()}; }
  static Sum zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static int8x16_t load(const uint8_t* lanes) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(lanes), vdupq_n_u8(0x80))); }
  static Nibbles load_nibbles(const uint8_t* lanes) {
    const uint8x16_t bytes = vld1q_u8(lanes);
    return {vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0x0f))), vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4))};
  }
  static int8x16_t quad_of(const int8_t* numbers, int64_t quad) {
    int32_t bytes;
    __builtin_memcpy(&bytes, numbers + 4 * quad, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
  }
  static void add(Sum& sum, int8x16_t codes, const Row& row, int64_t quad) {
    sum.high = dot(sum.high, codes, quad_of(row.high, quad));
    sum.low = dot(sum.low, codes, quad_of(row.low, quad));
  }
  static void store(const Sum& sum, int64_t* out, bool more, const Row& row, int64_t first_quad, int64_t end_quad) {
    int64_t offset = 0;
    if constexpr (kOffset != 0) {
      for (int64_t i = 4 * first_quad; i < 4 * end_quad; i++) offset += row.whole[i];
      offset *= kOffset;
    }
    const int32x4_t whole = vmlaq_n_s32(sum.low, sum.high, kFine);
    int32_t lanes[4];
    vst1q_s32(lanes, whole);
    for (int lane = 0; lane < 4; lane++) out[lane] = (more ? out[lane] : 0) + lanes[lane] + offset;
  }
};

void scores(const uint8_t* keys, int bits, int64_t head_dim, int64_t slots, int64_t tokens, const Terms* rows, int count,
            int64_t* const* sums) {
  const auto run = bits == 8 ? accumulate_counted<Simd<128>, 8> : accumulate_counted<Simd<0>, 4>;
  run(keys, tokens, slots, head_dim / 4, rows, count, sums);
}

void means(const uint8_t* values, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count, int64_t* const* sums) {
  const auto run = bits == 8 ? accumulate_counted<Simd<128>, 8> : accumulate_counted<Simd<0>, 4>;
  run(values, head_dim, head_dim, tokens / 4, rows, count, sums);
}

#if defined(__ARM_FEATURE_DOTPROD)
const Path path{"neon-dotprod", scores, means};
#else
const Path path{"neon", scores, means};
#endif

}  // namespace

const Path* neon_path() { return &path; }

}  // namespace slm
#else
namespace slm {
const Path* neon_path() { return nullptr; }
}  // namespace slm
#endif
