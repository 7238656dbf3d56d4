// What every path does with a row of floats, in vectors as wide as the file that includes this is compiled for. Nothing here may be
// shared between such files, or a linker could pick a version that the processor lacks: all of it is in a namespace without a name.
#pragma once

#include "attention.h"

namespace slm {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLane / kWidth;  // vectors that together are 16 numbers; sums are kept for each of the 16

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef int16_t Shorts __attribute__((vector_size(2 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));
typedef int8_t Bytes __attribute__((vector_size(kWidth)));
typedef uint32_t Quads __attribute__((vector_size(kWidth)));  // four bytes each
typedef uint64_t Pairs __attribute__((vector_size(2 * kWidth)));

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding and subtracting it rounds to the nearest integer

template <class Vector, class Number>
inline Vector load(const Number* from) {
  Vector values;
  __builtin_memcpy(&values, from, sizeof values);
  return values;
}

template <class Vector, class Number>
inline void save(Number* to, Vector values) {
  __builtin_memcpy(to, &values, sizeof values);
}

inline Floats all(float value) { return Floats{} + value; }
inline Floats larger(Floats left, Floats right) { return left > right ? left : right; }
inline Floats smaller(Floats left, Floats right) { return left < right ? left : right; }
inline Floats magnitude(Floats values) { return reinterpret_cast<Floats>(reinterpret_cast<Ints>(values) & 0x7fffffff); }

inline float sum_of(const Floats* parts) {
  float numbers[kLane];
  __builtin_memcpy(numbers, parts, sizeof numbers);
  for (int span = kLane / 2; span > 0; span /= 2)
    for (int i = 0; i < span; i++) numbers[i] += numbers[i + span];
  return numbers[0];
}

inline float largest_of(const Floats* parts) {
  float numbers[kLane], peak;
  __builtin_memcpy(numbers, parts, sizeof numbers);
  peak = numbers[0];
  for (int i = 1; i < kLane; i++) peak = numbers[i] > peak ? numbers[i] : peak;
  return peak;
}

// exp(x) for x <= 0, to 2 units in the last place; zero below -87.
inline Floats exp_of(Floats x) {
  const Floats within = larger(x, all(-87.0f));
  const Floats count = (within * 1.44269504f + kRound) - kRound;
  const Floats rest = (within - count * 0.693145751953125f) - count * 1.428606765330187e-6f;
  Floats power = all(1.0f / 720);
  power = power * rest + 1.0f / 120;
  power = power * rest + 1.0f / 24;
  power = power * rest + 1.0f / 6;
  power = power * rest + 0.5f;
  power = power * rest + 1.0f;
  power = power * rest + 1.0f;
  const Ints scale = (__builtin_convertvector(count, Ints) + 127) << 23;
  return x < all(-87.0f) ? Floats{} : power * reinterpret_cast<Floats>(scale);
}

// cap * tanh(x / cap).
inline Floats capped(Floats x, float cap) {
  const Floats power = exp_of(magnitude(x) * (-2.0f / cap));
  const Floats positive = (1.0f - power) / (1.0f + power) * cap;
  return x < Floats{} ? -positive : positive;
}

inline Floats silu_of(Floats x) {
  const Floats power = exp_of(-magnitude(x));
  return x * (x < Floats{} ? power : all(1.0f)) / (1.0f + power);
}

void silu_row(const float* row, int64_t count, float* out) {
  int64_t at = 0;
  for (; at + kWidth <= count; at += kWidth) save(out + at, silu_of(load<Floats>(row + at)));
  for (; at < count; at++) out[at] = silu_of(all(row[at]))[0];
}

// Exact for every finite half, subnormal ones included.
void read_halves(const uint16_t* stored, int64_t count, float* out) {
  for (int64_t at = 0; at < count; at += kWidth) {
    const Ints bits = __builtin_convertvector(load<Halves>(stored + at), Ints);
    const Floats positive = reinterpret_cast<Floats>((bits & 0x7fff) << 13) * 5.192296858534828e+33f;  // 2^112: from half's bias
    save(out + at, reinterpret_cast<Floats>(reinterpret_cast<Ints>(positive) | ((bits & 0x8000) << 16)));
  }
}

// Four bytes of one, four of the other, and so on, on machines whose lowest byte comes first.
inline Pairs pairs_of(Ints first, Ints second) {
  const Pairs low = __builtin_convertvector(reinterpret_cast<Quads>(__builtin_convertvector(first, Bytes)), Pairs);
  const Pairs high = __builtin_convertvector(reinterpret_cast<Quads>(__builtin_convertvector(second, Bytes)), Pairs);
  return low | (high << 32);
}

void round_row(const float* row, int64_t count, float peak, Terms& terms) {
  terms.step = (peak > 1e-30f ? peak : 1e-30f) / kSteps;
  const float steps = 1.0f / terms.step;
  const Floats most = all(1.0f * kSteps);
  Floats total[kParts] = {};
  for (int64_t start = 0; start < count; start += kExact) {
    const int64_t end = count < start + kExact ? count : start + kExact;
    Ints sum = {};
    for (int64_t at = start; at < end; at += kLane)
      for (int part = 0; part < kParts; part++) {
        const int64_t i = at + part * kWidth;
        const Floats given = load<Floats>(row + i);
        const Floats rounded = (smaller(larger(given * steps, -most), most) + kRound) - kRound;
        const Ints whole = __builtin_convertvector(rounded, Ints), high = (whole + 128) >> 8;
        save(terms.whole + i, __builtin_convertvector(whole, Shorts));
        save(terms.bytes + 2 * i, pairs_of(high, whole - (high << 8)));
        total[part] += given;
        sum += whole;
      }
    int32_t whole = 0;
    for (int i = 0; i < kWidth; i++) whole += sum[i];
    terms.sums[start / kExact] = whole;
  }
  terms.total = sum_of(total);
}

// Sums -> scores; minus infinity where the query may not read.
void score_row(const Softmax& softmax, const Terms& query, float* row) {
  const bool middles = softmax.key_middle != nullptr;
  for (int64_t at = 0; at < softmax.padded; at += kWidth) {
    const Floats score = load<Floats>(row + at) * (load<Floats>(softmax.key_scale + at) * query.step);
    save(row + at, middles ? score + load<Floats>(softmax.key_middle + at) * query.total : score);
  }
  if (softmax.score_cap > 0)
    for (int64_t at = 0; at < softmax.padded; at += kWidth) save(row + at, capped(load<Floats>(row + at), softmax.score_cap));
  int64_t hidden = 0;
  for (int i = 0; i < softmax.run_count; i++) {
    const Run& run = softmax.runs[i];
    for (; hidden < run.first; hidden++) row[hidden] = -__builtin_inff();
    if (softmax.slope != 0)
      for (int64_t slot = run.first; slot < run.end; slot++)
        row[slot] += softmax.slope * static_cast<float>(slot + run.shift - softmax.query);
    hidden = run.end;
  }
  for (; hidden < softmax.padded; hidden++) row[hidden] = -__builtin_inff();
}

Weighted weigh_row(const Softmax& softmax, const Terms& query, float* row) {
  score_row(softmax, query, row);
  Floats highest[kParts], total[kParts] = {}, peak[kParts] = {}, shift[kParts] = {};
  for (int part = 0; part < kParts; part++) highest[part] = load<Floats>(row + part * kWidth);
  for (int64_t at = kLane; at < softmax.padded; at += kLane)
    for (int part = 0; part < kParts; part++) highest[part] = larger(highest[part], load<Floats>(row + at + part * kWidth));
  const float largest = largest_of(highest), top = softmax.learned > largest ? softmax.learned : largest;
  for (int64_t at = 0; at < softmax.padded; at += kLane)
    for (int part = 0; part < kParts; part++) {
      const int64_t i = at + part * kWidth;
      const Floats probability = exp_of(load<Floats>(row + i) - top), weight = probability * load<Floats>(softmax.value_scale + i);
      total[part] += probability;
      if (softmax.value_middle != nullptr) shift[part] += probability * load<Floats>(softmax.value_middle + i);
      peak[part] = larger(peak[part], magnitude(weight));
      save(row + i, weight);
    }
  return {largest_of(peak), sum_of(total) + exp_of(all(softmax.learned - top))[0], sum_of(shift)};
}

}  // namespace
}  // namespace slm
