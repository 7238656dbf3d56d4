// Mixtures of experts: routing, and the products of the chosen experts with INT4 weights in groups.
#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "rounded.h"

namespace slm {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

void score(const Routing& routing, const float* products, float* scores) {
  if (routing.sigmoid) {
    for (int64_t i = 0; i < routing.experts; i++) scores[i] = 1.0f / (1.0f + std::exp(-products[i]));
    return;
  }
  const float peak = *std::max_element(products, products + routing.experts);
  float sum = 0.0f;
  for (int64_t i = 0; i < routing.experts; i++) sum += scores[i] = std::exp(products[i] - peak);
  for (int64_t i = 0; i < routing.experts; i++) scores[i] /= sum;
}

float worth(const float* ranks, int64_t size, bool best_two) {
  float first = kNever, second = kNever;
  for (int64_t i = 0; i < size; i++) {
    if (ranks[i] > first) {
      second = first;
      first = ranks[i];
    } else {
      second = std::max(second, ranks[i]);
    }
  }
  return best_two ? first + second : first;
}

// Takes the experts of all but the best groups out of the ranking.
void limit_groups(const Routing& routing, std::vector<float>& ranks) {
  const int64_t size = routing.experts / routing.groups;
  std::vector<float> worths(routing.groups);
  for (int64_t group = 0; group < routing.groups; group++) worths[group] = worth(&ranks[group * size], size, routing.best_two);
  std::vector<bool> kept(routing.groups, false);
  for (int64_t turn = 0; turn < routing.chosen_groups; turn++) {
    const int64_t best = std::max_element(worths.begin(), worths.end()) - worths.begin();
    kept[best] = true;
    worths[best] = kNever;
  }
  for (int64_t i = 0; i < routing.experts; i++)
    if (!kept[i / size]) ranks[i] = kNever;
}

float dot(const float* left, const float* right, int64_t size) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; i++) sum += left[i] * right[i];
  return sum;
}

Weights of_expert(const Weights& first, int64_t expert) {
  Weights moved = first;
  moved.codes += expert * first.rows * first.row_bytes;
  if (moved.scales != nullptr) moved.scales += expert * first.rows * first.groups;
  if (moved.halves != nullptr) moved.halves += expert * first.rows * first.groups;
  return moved;
}

// Gates [F] and the other side [F] behind them -> [F], in place.
void gate(const Experts& experts, float* both) {
  for (int64_t i = 0; i < experts.inner; i++) {
    float left = both[i], right = both[experts.inner + i];
    if (experts.limit > 0.0f) {
      left = std::min(left, experts.limit);
      right = std::max(-experts.limit, std::min(right, experts.limit));
    }
    both[i] = left / (1.0f + std::exp(-experts.slope * left)) * (right + experts.up_offset);
  }
}

struct Served {
  int64_t token;
  float weight;
};

// in [count][columns] -> out [count][rows].
void product(const Weights& weights, const std::vector<float>& in, int64_t count, bool rounded, float* out, const Parallel& parallel) {
  if (!rounded || !takes_rounded(weights)) {
    parallel(weights.rows, [&](int64_t from, int64_t to) { multiply(weights, in.data(), count, from, to, out); });
    return;
  }
  Rounded codes;
  round_rows(in.data(), count, weights.columns, codes);
  parallel(weights.rows, [&](int64_t from, int64_t to) { multiply_rounded(weights, codes, from, to, out); });
}

// One expert for the tokens that chose it.
void serve(const Experts& experts, int64_t expert, const std::vector<Served>& served, const float* in, float* out,
           const Parallel& parallel) {
  const int64_t hidden = experts.hidden, inner = experts.inner, count = static_cast<int64_t>(served.size());
  std::vector<float> rows(count * hidden), both(count * 2 * inner), mixed(count * hidden);
  for (int64_t i = 0; i < count; i++) std::memcpy(&rows[i * hidden], in + served[i].token * hidden, sizeof(float) * hidden);
  const Weights first = of_expert(experts.gate_up, expert), second = of_expert(experts.down, expert);
  product(first, rows, count, experts.rounded, both.data(), parallel);
  for (int64_t i = 0; i < count; i++) {
    float* pair = &both[i * 2 * inner];
    if (experts.gate_up_bias != nullptr)
      for (int64_t j = 0; j < 2 * inner; j++) pair[j] += experts.gate_up_bias[expert * 2 * inner + j];
    gate(experts, pair);
    std::memmove(&both[i * inner], pair, sizeof(float) * inner);
  }
  product(second, both, count, experts.rounded, mixed.data(), parallel);
  for (int64_t i = 0; i < count; i++) {
    float* to = out + served[i].token * hidden;
    const float* bias = experts.down_bias != nullptr ? experts.down_bias + expert * hidden : nullptr;
    for (int64_t j = 0; j < hidden; j++) to[j] += served[i].weight * (mixed[i * hidden + j] + (bias != nullptr ? bias[j] : 0.0f));
  }
}

}  // namespace

void route(const Routing& routing, const float* products, const float* selection_bias, std::vector<float>& ranks, Choice* out) {
  std::vector<float> scores(routing.experts);
  score(routing, products, scores.data());
  ranks = scores;
  if (selection_bias != nullptr)
    for (int64_t i = 0; i < routing.experts; i++) ranks[i] += selection_bias[i];
  if (routing.groups > 0) limit_groups(routing, ranks);
  float sum = 0.0f;
  for (int64_t turn = 0; turn < routing.chosen; turn++) {
    const int64_t best = std::max_element(ranks.begin(), ranks.end()) - ranks.begin();
    out[turn] = {best, scores[best]};
    sum += scores[best];
    ranks[best] = kNever;
  }
  if (routing.renormalized)
    for (int64_t turn = 0; turn < routing.chosen; turn++) out[turn].weight /= sum;
}

void mix(const Experts& experts, const float* in, int64_t tokens, float* out, const Parallel& parallel) {
  const Routing& routing = experts.routing;
  std::vector<std::vector<Served>> served(routing.experts);
  std::vector<float> products(routing.experts), ranks;
  std::vector<Choice> choices(routing.chosen);
  for (int64_t token = 0; token < tokens; token++) {
    for (int64_t i = 0; i < routing.experts; i++) {
      products[i] = dot(in + token * experts.hidden, experts.router + i * experts.hidden, experts.hidden);
      if (experts.router_bias != nullptr) products[i] += experts.router_bias[i];
    }
    route(routing, products.data(), experts.selection_bias, ranks, choices.data());
    for (const Choice& choice : choices) served[choice.expert].push_back({token, choice.weight});
  }
  std::fill(out, out + tokens * experts.hidden, 0.0f);
  for (int64_t expert = 0; expert < routing.experts; expert++)
    if (!served[expert].empty()) serve(experts, expert, served[expert], in, out, parallel);
}

}  // namespace slm
