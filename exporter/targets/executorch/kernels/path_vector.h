// The two products for any processor with dot products of 4 bytes, written once over a small type `Simd`:
//
//   Simd::Sum          a vector of 32-bit sums, one per lane of 4 bytes; Simd::kLanes of them
//   Simd::Codes        a vector of unsigned code bytes as the dot product wants them
//   Simd::Row          how the processor wants a row's numbers: two 8-bit terms, or one of 16 bits
//   load8 / load4      codes of one lane vector; at 4 bits those of the low and of the high nibbles
//   add(sum, codes, row, quad)
//   flush(sum, row bookkeeping)
//
// Sums of 32 bits hold the products of so many quads that no sum of 255 * 127 * 4 overflows.
#pragma once

#include <algorithm>

#include "attention.h"

namespace slm {

// 32-bit sums are added to 64-bit ones after so many quads: 255 * 32384 * 4 * 64 < 2^31.
constexpr int64_t kQuadsPerSum = 64;

// Adds dot products of `quads` lanes of 4 codes that lie `stride` bytes apart, for kLanes neighbours from `lanes` on.
template <class Simd, int kBits, int kCount>
inline void accumulate(const uint8_t* lanes, int64_t stride, int64_t quads, const typename Simd::Row* rows, int64_t* const* sums,
                       int64_t at) {
  typename Simd::Sum total[kCount];
  for (int64_t start = 0; start < quads; start += kQuadsPerSum) {
    for (int row = 0; row < kCount; row++) total[row] = Simd::zero();
    const int64_t end = std::min(quads, start + kQuadsPerSum);
    if constexpr (kBits == 8) {
      for (int64_t quad = start; quad < end; quad++) {
        const auto codes = Simd::load(lanes + quad * stride);
        for (int row = 0; row < kCount; row++) Simd::add(total[row], codes, rows[row], quad);
      }
    } else {
      for (int64_t quad = start; quad < end; quad += 2) {
        const auto both = Simd::load_nibbles(lanes + quad / 2 * stride);
        for (int row = 0; row < kCount; row++) {
          Simd::add(total[row], both.low, rows[row], quad);
          Simd::add(total[row], both.high, rows[row], quad + 1);
        }
      }
    }
    for (int row = 0; row < kCount; row++) Simd::store(total[row], sums[row] + at, start != 0, rows[row], start, end);
  }
}

template <class Simd, int kBits, int kCount>
void accumulate_all(const uint8_t* lanes, int64_t neighbours, int64_t stride_lanes, int64_t quads, const Terms* terms,
                    int64_t* const* sums) {
  typename Simd::Row rows[kCount];
  for (int row = 0; row < kCount; row++) rows[row] = Simd::row(terms[row]);
  for (int64_t at = 0; at < neighbours; at += Simd::kLanes)
    accumulate<Simd, kBits, kCount>(lanes + 4 * at, 4 * stride_lanes, quads, rows, sums, at);
}

template <class Simd, int kBits>
void accumulate_counted(const uint8_t* lanes, int64_t neighbours, int64_t stride_lanes, int64_t quads, const Terms* terms, int count,
                        int64_t* const* sums) {
  using Function = void (*)(const uint8_t*, int64_t, int64_t, int64_t, const Terms*, int64_t* const*);
  static constexpr Function functions[] = {
      accumulate_all<Simd, kBits, 1>, accumulate_all<Simd, kBits, 2>, accumulate_all<Simd, kBits, 3>, accumulate_all<Simd, kBits, 4>,
      accumulate_all<Simd, kBits, 5>, accumulate_all<Simd, kBits, 6>, accumulate_all<Simd, kBits, 7>, accumulate_all<Simd, kBits, 8>,
  };
  functions[count - 1](lanes, neighbours, stride_lanes, quads, terms, sums);
}

// Neighbours are tokens, quads are channels.
template <class Simd>
void vector_scores(const uint8_t* keys, int bits, int64_t head_dim, int64_t slots, int64_t tokens, const Terms* rows, int count,
                   int64_t* const* sums) {
  const auto run = bits == 8 ? accumulate_counted<Simd, 8> : accumulate_counted<Simd, 4>;
  run(keys, tokens, slots, head_dim / 4, rows, count, sums);
}

// Neighbours are channels, quads are tokens.
template <class Simd>
void vector_means(const uint8_t* values, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count,
                  int64_t* const* sums) {
  const auto run = bits == 8 ? accumulate_counted<Simd, 8> : accumulate_counted<Simd, 4>;
  run(values, head_dim, head_dim, tokens / 4, rows, count, sums);
}

}  // namespace slm
