// The two products for any processor with dot products of 4 bytes, written once over a small type `Simd`:
//
//   Simd::Sum          a vector of 32-bit sums, one per lane of 4 bytes; Simd::kLanes of them
//   Simd::Row          how the processor wants a row's numbers: two bytes, or one number of 16 bits
//   Simd::kSums        how many registers may hold sums; a Sum takes two
//   kMiddle8/kMiddle4  what load and load_nibbles leave to be taken from every code
//   load/load_nibbles  codes of one lane vector; at 4 bits those of the low and of the high nibbles
//   add(sum, codes, row, quad)
//   store(sum, offset, out, more)   sum minus offset is exact where it fits 32 bits, whatever overflowed before
#pragma once

#include "path_rows.h"

namespace slm {
namespace {

constexpr int64_t kQuads = kExact / 4;

// Where codes lie: those of neighbours 16 * n to 16 * n + 15 from n * block bytes on, and 4 times `quads` of each, `stride` bytes apart.
struct Lanes {
  const uint8_t* codes;
  int64_t neighbours, block, stride, quads;
};

// Adds dot products over quads [first, end) for kSide vectors of neighbours from `at` on.
template <class Simd, int kBits, int kCount, int kSide>
inline void accumulate(const Lanes& lanes, const Terms* terms, const typename Simd::Row* rows, float* const* sums, int64_t first,
                       int64_t end, int64_t at) {
  constexpr int32_t kMiddle = kBits == 8 ? Simd::kMiddle8 : Simd::kMiddle4;
  typename Simd::Sum total[kSide][kCount];
  const uint8_t* from[kSide];
  for (int side = 0; side < kSide; side++) {
    const int64_t neighbour = at + side * Simd::kLanes;
    from[side] = lanes.codes + neighbour / kLane * lanes.block + neighbour % kLane * 4 + first * kBits / 8 * lanes.stride;
    for (int row = 0; row < kCount; row++) total[side][row] = Simd::zero();
  }
  for (int64_t quad = first; quad < end; quad += 8 / kBits)
    for (int side = 0; side < kSide; side++) {
      if constexpr (kBits == 8) {
        const auto codes = Simd::load(from[side]);
        for (int row = 0; row < kCount; row++) Simd::add(total[side][row], codes, rows[row], quad);
      } else {
        const auto both = Simd::load_nibbles(from[side]);
        for (int row = 0; row < kCount; row++) {
          Simd::add(total[side][row], both.low, rows[row], quad);
          Simd::add(total[side][row], both.high, rows[row], quad + 1);
        }
      }
      from[side] += lanes.stride;
    }
  for (int side = 0; side < kSide; side++)
    for (int row = 0; row < kCount; row++)
      Simd::store(total[side][row], terms[row].sums[first / kQuads] * kMiddle, sums[row] + at + side * Simd::kLanes, first != 0);
}

// Vectors of neighbours that are read together, so that registers for sums are full: each number of a row is then loaded less often,
// and additions wait less for each other.
constexpr int sides(int registers, int count) { return registers >= 8 * count ? 4 : registers >= 4 * count ? 2 : 1; }

template <class Simd, int kBits, int kCount>
void accumulate_all(const Lanes& lanes, const Terms* terms, float* const* sums) {
  constexpr int kSide = sides(Simd::kSums, kCount);
  typename Simd::Row rows[kCount];
  for (int row = 0; row < kCount; row++) rows[row] = Simd::row(terms[row]);
  for (int64_t first = 0; first < lanes.quads; first += kQuads) {
    const int64_t end = lanes.quads < first + kQuads ? lanes.quads : first + kQuads;
    int64_t at = 0;
    for (; at + kSide * Simd::kLanes <= lanes.neighbours; at += kSide * Simd::kLanes)
      accumulate<Simd, kBits, kCount, kSide>(lanes, terms, rows, sums, first, end, at);
    for (; at < lanes.neighbours; at += Simd::kLanes)
      accumulate<Simd, kBits, kCount, 1>(lanes, terms, rows, sums, first, end, at);
  }
}

template <class Simd, int kBits>
void accumulate_counted(const Lanes& lanes, const Terms* terms, int count, float* const* sums) {
  using Function = void (*)(const Lanes&, const Terms*, float* const*);
  static constexpr Function functions[kRows] = {
      accumulate_all<Simd, kBits, 1>, accumulate_all<Simd, kBits, 2>, accumulate_all<Simd, kBits, 3>, accumulate_all<Simd, kBits, 4>,
      accumulate_all<Simd, kBits, 5>, accumulate_all<Simd, kBits, 6>, accumulate_all<Simd, kBits, 7>, accumulate_all<Simd, kBits, 8>,
  };
  functions[count - 1](lanes, terms, sums);
}

// Neighbours are tokens, quads are channels.
template <class Simd>
void vector_scores(const uint8_t* keys, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count, float* const* sums) {
  const Lanes lanes{keys, tokens, head_dim * kLane * bits / 8, 4 * kLane, head_dim / 4};
  (bits == 8 ? accumulate_counted<Simd, 8> : accumulate_counted<Simd, 4>)(lanes, rows, count, sums);
}

// Neighbours are channels, quads are tokens.
template <class Simd>
void vector_means(const uint8_t* values, int bits, int64_t head_dim, int64_t tokens, const Terms* rows, int count, float* const* sums) {
  const Lanes lanes{values, head_dim, 4 * kLane, 4 * head_dim, tokens / 4};
  (bits == 8 ? accumulate_counted<Simd, 8> : accumulate_counted<Simd, 4>)(lanes, rows, count, sums);
}

template <class Simd>
constexpr Path vector_path(const char* name) {
  return {name, read_halves, round_row, vector_scores<Simd>, weigh_row, vector_means<Simd>, silu_row};
}

}  // namespace
}  // namespace slm
