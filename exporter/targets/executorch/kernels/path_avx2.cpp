// AVX2: 8 lanes. Codes and numbers are widened to 16 bits, so that nothing saturates.
#if defined(__AVX2__)
#include <immintrin.h>

#include "path_vector.h"

namespace slm {
namespace {

struct Simd {
  static constexpr int64_t kLanes = 8;
  static constexpr int32_t kMiddle8 = 128, kMiddle4 = 8;
  struct Codes {
    __m256i first, second;  // 16 bits each: lanes 0-3 and 4-7
  };
  struct Nibbles {
    Codes low, high;
  };
  static constexpr int kSums = 8;
  struct Sum {
    __m256i first, second;  // two sums of 32 bits per lane
  };
  struct Row {
    const int16_t* whole;
  };

  static Row row(const Terms& terms) { return {terms.whole}; }
  static Sum zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static Codes widen(__m256i bytes) {
    return {_mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes)), _mm256_cvtepu8_epi16(_mm256_extracti128_si256(bytes, 1))};
  }
  static Codes load(const uint8_t* lanes) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes))); }
  static Nibbles load_nibbles(const uint8_t* lanes) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)), mask = _mm256_set1_epi8(0x0f);
    return {widen(_mm256_and_si256(bytes, mask)), widen(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask))};
  }
  static void add(Sum& sum, const Codes& codes, const Row& row, int64_t quad) {
    int64_t numbers;
    __builtin_memcpy(&numbers, row.whole + 4 * quad, 8);
    const __m256i four = _mm256_set1_epi64x(numbers);
    sum.first = _mm256_add_epi32(sum.first, _mm256_madd_epi16(codes.first, four));
    sum.second = _mm256_add_epi32(sum.second, _mm256_madd_epi16(codes.second, four));
  }
  static void store(const Sum& sum, int32_t offset, float* out, bool more) {
    const __m256i whole = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sum.first, sum.second), 0xd8);
    const __m256 exact = _mm256_cvtepi32_ps(_mm256_sub_epi32(whole, _mm256_set1_epi32(offset)));
    _mm256_storeu_ps(out, more ? _mm256_add_ps(_mm256_loadu_ps(out), exact) : exact);
  }
};

const Path path = vector_path<Simd>("avx2");

}  // namespace

const Path* avx2_path() {
  static const bool here = __builtin_cpu_supports("avx2");
  return here ? &path : nullptr;
}

}  // namespace slm
#else
#include "attention.h"

namespace slm {
const Path* avx2_path() { return nullptr; }
}  // namespace slm
#endif
