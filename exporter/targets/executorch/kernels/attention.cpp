// Softmax attention around what a path brings.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "codec.h"

namespace slm {
namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

int64_t padded_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Memory of one row of rounded numbers.
class Row {
 public:
  Terms& sized(int64_t count) {
    const int64_t blocks = padded_to(count, kExact) / kExact;
    if (static_cast<int64_t>(whole_.size()) < count) {
      whole_.resize(count);
      bytes_.resize(2 * count);
      sums_.resize(blocks);
    }
    terms_.whole = whole_.data();
    terms_.bytes = bytes_.data();
    terms_.sums = sums_.data();
    return terms_;
  }

 private:
  std::vector<int16_t> whole_;
  std::vector<int8_t> bytes_;
  std::vector<int32_t> sums_;
  Terms terms_;
};

// What one call works with; kept per thread.
struct Scratch {
  std::vector<float> query, rest, key_scale, key_middle, value_scale, value_middle, sums[kRows], fine_sums[kRows];
  Row rows[kRows], fine_rows[kRows];
};

// The slots of one head in use: their scales, and what the middle code of each stands for.
struct Head {
  int64_t index, length, used, padded;
  const float *key_scale, *key_middle, *value_scale, *value_middle;
};

// One query row of a head: rows count the queries of a token that share the head, token by token.
struct Query {
  int64_t token, head;

  Query(const Layer& layer, int64_t kv_head, int64_t row) {
    const int64_t group = layer.query_heads / layer.kv_heads;
    token = row / group;
    head = kv_head * group + row % group;
  }
};

// Slots behind the last one in use count nothing, whatever lies there.
const float* read_scales(const Path& path, const uint16_t* stored, const Head& head, std::vector<float>& out) {
  out.resize(head.padded);
  path.read_halves(stored, head.padded, out.data());
  std::fill(out.begin() + head.used, out.end(), 0.0f);
  return out.data();
}

const float* read_middles(const Layer& layer, const Path& path, const uint16_t* stored, const Head& head, const float* scales,
                          std::vector<float>& out) {
  if (!layer.zero_point) return nullptr;
  read_scales(path, stored, head, out);
  const float middle = static_cast<float>(1 << (layer.bits - 1));
  for (int64_t i = 0; i < head.used; i++) out[i] += scales[i] * middle;
  return out.data();
}

Head read_head(const Layer& layer, const Path& path, int64_t index, int64_t length, Scratch& scratch) {
  Head head{};
  head.index = index;
  head.length = length;
  head.used = std::min(length, layer.slots);
  head.padded = padded_to(head.used, kLane);
  const int64_t side = layer.kv_heads * layer.slots;
  const uint16_t* stored = layer.scales + index * layer.slots;
  head.key_scale = read_scales(path, stored, head, scratch.key_scale);
  head.value_scale = read_scales(path, stored + side, head, scratch.value_scale);
  head.key_middle = read_middles(layer, path, stored + 2 * side, head, head.key_scale, scratch.key_middle);
  head.value_middle = read_middles(layer, path, stored + 3 * side, head, head.value_scale, scratch.value_middle);
  return head;
}

// The slots that a query at `position` may read, in order: sinks, this lap of the ring, the lap before. Returns how many runs.
int visible_runs(const Layer& layer, int64_t length, int64_t position, Run* runs) {
  const int64_t last = length - 1, ring = layer.slots - layer.sinks, oldest = layer.window == 0 ? 0 : position - layer.window + 1;
  int count = 0;
  const auto add = [&](int64_t first, int64_t end, int64_t shift, int64_t low) {
    first = std::max(first, low - shift);
    end = std::min(end, position - shift + 1);
    if (first < end) runs[count++] = {first, end, shift};
  };
  add(0, std::min(layer.sinks, length), 0, 0);
  if (last < layer.sinks) return count;
  const int64_t at = slot_of(layer, last);
  add(layer.sinks, at + 1, last - at, oldest);
  if (last - layer.sinks >= ring) add(at + 1, layer.slots, last - at - ring, oldest);
  return count;
}

// The rows of one call: their numbers, what rounding left of these in a second set where attention is fine, and the sums of both.
struct Rows {
  const Layer& layer;
  const Path& path;
  Scratch& scratch;
  int count;
  Terms terms[kRows], fine_terms[kRows];
  float *sums[kRows], *fine_sums[kRows];

  Rows(const Layer& layer, const Path& path, Scratch& scratch, int count, int64_t numbers)
      : layer(layer), path(path), scratch(scratch), count(count) {
    const int64_t padded = padded_to(numbers, kLane);
    for (int row = 0; row < count; row++) {
      terms[row] = scratch.rows[row].sized(padded);
      sums[row] = sized(scratch.sums[row], padded);
      if (!layer.fine) continue;
      fine_terms[row] = scratch.fine_rows[row].sized(padded);
      fine_sums[row] = sized(scratch.fine_sums[row], padded);
    }
  }

  // Rounds `numbers`, a multiple of kLane, of one row.
  void round(int row, const float* numbers, int64_t size, float peak) {
    Terms& rounded = terms[row];
    path.round(numbers, size, peak, rounded);
    if (!layer.fine) return;
    float* rest = sized(scratch.rest, size);
    for (int64_t i = 0; i < size; i++) rest[i] = numbers[i] - static_cast<float>(rounded.whole[i]) * rounded.step;
    path.round(rest, size, rounded.step, fine_terms[row]);
  }

  // Calls product(terms, sums), in steps of the first rounding, of `size` sums.
  template <class Product>
  void multiply(int64_t size, const Product& product) {
    product(terms, sums);
    if (!layer.fine) return;
    product(fine_terms, fine_sums);
    for (int row = 0; row < count; row++) {
      const float ratio = fine_terms[row].step / terms[row].step;
      for (int64_t i = 0; i < size; i++) sums[row][i] += fine_sums[row][i] * ratio;
    }
  }

 private:
  static float* sized(std::vector<float>& memory, int64_t count) {
    if (static_cast<int64_t>(memory.size()) < count) memory.resize(count);
    return memory.data();
  }
};

// Scales, rotates and rounds one query.
void prepare(const Layer& layer, const Chunk& chunk, const Query& query, const float* balance, Rows& rows, int row_index) {
  Scratch& scratch = rows.scratch;
  const int64_t size = layer.head_dim;
  const float* given = chunk.query + (query.token * layer.query_heads + query.head) * size;
  float* row = scratch.query.data();
  for (int64_t i = 0; i < size; i++) row[i] = given[i] * balance[i] * layer.score_scale;
  if (layer.rotation) rotate(row, size);
  float peak = 0.0f;
  for (int64_t i = 0; i < size; i++) peak = std::max(peak, std::fabs(row[i]));
  rows.round(row_index, row, scratch.query.size(), peak);
}

// Undoes the codec on what was mixed, in place of the last step of softmax.
void finish(const Layer& layer, const Chunk& chunk, const Query& query, int64_t kv_head, const Terms& weights, const Weighted& weighted,
            const float* sums) {
  const int64_t size = layer.head_dim;
  const float* center = layer.constants + (2 * layer.kv_heads + kv_head) * size;
  const float* balance = layer.constants + (3 * layer.kv_heads + kv_head) * size;
  float* out = chunk.out + (query.token * layer.query_heads + query.head) * size;
  const float step = weights.step / weighted.total, shift = weighted.shift / weighted.total;
  for (int64_t i = 0; i < size; i++) out[i] = sums[i] * step + shift;
  if (layer.rotation) rotate(out, size);
  for (int64_t i = 0; i < size; i++) out[i] = out[i] * balance[i] + center[i];
}

void attend_rows(const Layer& layer, const Chunk& chunk, const Path& path, const Head& head, int64_t first, int count,
                 Scratch& scratch) {
  const int64_t size = layer.head_dim, bytes = size * layer.slots * layer.bits / 8;
  const float* balance = layer.constants + (layer.kv_heads + head.index) * size;
  Rows rows(layer, path, scratch, count, std::max(head.padded, size));
  Weighted weighted[kRows];
  scratch.query.assign(padded_to(size, kLane), 0.0f);
  for (int row = 0; row < count; row++) prepare(layer, chunk, Query(layer, head.index, first + row), balance, rows, row);
  rows.multiply(head.padded, [&](const Terms* terms, float* const* sums) {
    path.scores(layer.keys + head.index * bytes, layer.bits, size, head.padded, terms, count, sums);
  });
  for (int row = 0; row < count; row++) {
    const Query query(layer, head.index, first + row);
    Run runs[3];
    const int run_count = visible_runs(layer, head.length, chunk.start + query.token, runs);
    const float slope = layer.slopes == nullptr ? 0.0f : layer.slopes[query.head];
    const Softmax softmax{head.key_scale, head.key_middle, head.value_scale, head.value_middle, head.padded, chunk.start + query.token,
                          runs, run_count, slope, layer.score_cap, layer.learned == nullptr ? kNone : layer.learned[query.head]};
    weighted[row] = path.weigh(softmax, rows.terms[row], rows.sums[row]);
    rows.round(row, rows.sums[row], head.padded, weighted[row].peak);
  }
  rows.multiply(size, [&](const Terms* terms, float* const* sums) {
    path.means(layer.values + head.index * bytes, layer.bits, size, head.padded, terms, count, sums);
  });
  for (int row = 0; row < count; row++)
    finish(layer, chunk, Query(layer, head.index, first + row), head.index, rows.terms[row], weighted[row], rows.sums[row]);
}

}  // namespace

const Path& fastest_path() {
  for (const Path* path : {avx512_path(), avx2_path(), neon_path()})
    if (path != nullptr) return *path;
  return portable_path();
}

const Path& chosen_path(const Layer& layer) { return layer.head_dim % kLane == 0 ? fastest_path() : portable_path(); }

void attend(const Layer& layer, const Chunk& chunk, const Path& path, int64_t head, int64_t first, int64_t last) {
  static thread_local Scratch scratch;
  const int64_t group = layer.query_heads / layer.kv_heads;
  const Head read = read_head(layer, path, head, chunk.start + chunk.tokens, scratch);
  for (int64_t row = first * group; row < last * group; row += kRows)
    attend_rows(layer, chunk, path, read, row, static_cast<int>(std::min<int64_t>(kRows, last * group - row)), scratch);
}

}  // namespace slm
