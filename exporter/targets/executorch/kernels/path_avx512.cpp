// AVX-512 with VNNI: 16 lanes, unsigned codes times the two signed 8-bit terms of a row.
#include "path_vector.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>

namespace slm {
namespace {

struct Simd {
  static constexpr int64_t kLanes = 16;
  struct Sum {
    __m512i high, low;
  };
  struct Nibbles {
    __m512i low, high;
  };
  struct Row {
    const int8_t *high, *low;
  };

  static Row row(const Terms& terms) { return {terms.high.data(), terms.low.data()}; }
  static Sum zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
  static __m512i load(const uint8_t* lanes) { return _mm512_loadu_si512(lanes); }
  static Nibbles load_nibbles(const uint8_t* lanes) {
    const __m512i bytes = _mm512_loadu_si512(lanes), mask = _mm512_set1_epi8(0x0f);
    return {_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask)};
  }
  static __m512i quad_of(const int8_t* numbers, int64_t quad) {
    int32_t bytes;
    __builtin_memcpy(&bytes, numbers + 4 * quad, 4);
    return _mm512_set1_epi32(bytes);
  }
  static void add(Sum& sum, __m512i codes, const Row& row, int64_t quad) {
    sum.high = _mm512_dpbusd_epi32(sum.high, codes, quad_of(row.high, quad));
    sum.low = _mm512_dpbusd_epi32(sum.low, codes, quad_of(row.low, quad));
  }
  static void store(const Sum& sum, int64_t* out, bool more, const Row&, int64_t, int64_t) {
    const __m512i whole = _mm512_add_epi32(_mm512_mullo_epi32(sum.high, _mm512_set1_epi32(kFine)), sum.low);
    __m512i first = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(whole));
    __m512i second = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(whole, 1));
    if (more) {
      first = _mm512_add_epi64(first, _mm512_loadu_si512(out));
      second = _mm512_add_epi64(second, _mm512_loadu_si512(out + 8));
    }
    _mm512_storeu_si512(out, first);
    _mm512_storeu_si512(out + 8, second);
  }
};

const Path path{"avx512", vector_scores<Simd>, vector_means<Simd>};

}  // namespace

const Path* avx512_path() {
  static const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  return here ? &path : nullptr;
}

}  // namespace slm
#else
namespace slm {
const Path* avx512_path() { return nullptr; }
}  // namespace slm
#endif
