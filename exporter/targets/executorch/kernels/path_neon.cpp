// NEON: 4 lanes. INT8 codes become signed, nibbles stay as they are. With the dot-product extension four products are one instruction; without it they are two multiplications and two pairwise sums.
#if defined(__ARM_NEON)
#include <arm_neon.h>

#include "path_vector.h"

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

struct Simd {
  static constexpr int64_t kLanes = 4;
  static constexpr int32_t kMiddle8 = 0, kMiddle4 = 8;
  static constexpr int kSums = 16;
  struct Sum {
    int32x4_t high, low;
  };
  struct Nibbles {
    int8x16_t low, high;
  };
  struct Row {
    const int8_t* bytes;
  };

  static Row row(const Terms& terms) { return {terms.bytes}; }
  static Sum zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static int8x16_t load(const uint8_t* lanes) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(lanes), vdupq_n_u8(0x80))); }
  static Nibbles load_nibbles(const uint8_t* lanes) {
    const uint8x16_t bytes = vld1q_u8(lanes);
    return {vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(0x0f))), vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4))};
  }
  static int8x16_t four(const int8_t* from) {
    int32_t bytes;
    __builtin_memcpy(&bytes, from, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
  }
  static void add(Sum& sum, int8x16_t codes, const Row& row, int64_t quad) {
    sum.high = dot(sum.high, codes, four(row.bytes + 8 * quad));
    sum.low = dot(sum.low, codes, four(row.bytes + 8 * quad + 4));
  }
  static void store(const Sum& sum, int32_t offset, float* out, bool more) {
    const int32x4_t whole = vaddq_s32(vshlq_n_s32(sum.high, 8), sum.low);
    const float32x4_t exact = vcvtq_f32_s32(vsubq_s32(whole, vdupq_n_s32(offset)));
    vst1q_f32(out, more ? vaddq_f32(vld1q_f32(out), exact) : exact);
  }
};

#if defined(__ARM_FEATURE_DOTPROD)
const Path path = vector_path<Simd>("neon-dotprod");
#else
const Path path = vector_path<Simd>("neon");
#endif

}  // namespace

const Path* neon_path() { return &path; }

}  // namespace slm
#else
#include "attention.h"

namespace slm {
const Path* neon_path() { return nullptr; }
}  // namespace slm
#endif
