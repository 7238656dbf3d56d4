// AVX-512 with VNNI: 16 lanes, unsigned codes times the two signed bytes of a number.
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>

#include "path_vector.h"

namespace slm {
namespace {

struct Simd {
  static constexpr int64_t kLanes = 16;
  static constexpr int32_t kMiddle8 = 128, kMiddle4 = 8;
  static constexpr int kSums = 8;
  struct Sum {
    __m512i high, low;
  };
  struct Nibbles {
    __m512i low, high;
  };
  struct Row {
    const int8_t* bytes;
  };

  static Row row(const Terms& terms) { return {terms.bytes}; }
  static Sum zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
  static __m512i load(const uint8_t* lanes) { return _mm512_loadu_si512(lanes); }
  static Nibbles load_nibbles(const uint8_t* lanes) {
    const __m512i bytes = _mm512_loadu_si512(lanes), mask = _mm512_set1_epi8(0x0f);
    return {_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask)};
  }
  static __m512i four(const int8_t* from) {
    int32_t bytes;
    __builtin_memcpy(&bytes, from, 4);
    return _mm512_set1_epi32(bytes);
  }
  static void add(Sum& sum, __m512i codes, const Row& row, int64_t quad) {
    sum.high = _mm512_dpbusd_epi32(sum.high, codes, four(row.bytes + 8 * quad));
    sum.low = _mm512_dpbusd_epi32(sum.low, codes, four(row.bytes + 8 * quad + 4));
  }
  static void store(const Sum& sum, int32_t offset, float* out, bool more) {
    const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(sum.high, 8), sum.low);
    const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(whole, _mm512_set1_epi32(offset)));
    _mm512_storeu_ps(out, more ? _mm512_add_ps(_mm512_loadu_ps(out), exact) : exact);
  }
};

const Path path = vector_path<Simd>("avx512");

}  // namespace

const Path* avx512_path() {
  static const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  return here ? &path : nullptr;
}

}  // namespace slm
#else
#include "attention.h"

namespace slm {
const Path* avx512_path() { return nullptr; }
}  // namespace slm
#endif
