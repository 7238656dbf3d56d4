// See experts.cpp. Notation: E experts, k chosen per token, D hidden size, F inner channels of an expert.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "linear.h"

namespace slm {

struct Routing {
  int64_t experts, chosen;
  bool sigmoid;       // scores are sigmoids, else a softmax over all experts
  bool renormalized;  // weights of the chosen ones sum to one
  int64_t groups, chosen_groups;  // 0: any expert may be chosen
  bool best_two;                  // a group is worth its best two experts, else its best one
};

// Weights of all experts, one after another; null where there is no such vector.
struct Experts {
  Routing routing;
  int64_t hidden, inner;
  const float *router, *router_bias, *selection_bias;  // [E][D], [E], [E]
  Weights gate_up, down;                               // of the first expert: [2 * F][D] gates above the other side, [D][F]
  const float *gate_up_bias, *down_bias;               // [E][2 * F], [E][D]
  float slope, limit, up_offset;                       // limit 0: none
  bool rounded;                                        // activations are rounded to INT8 before each product, where groups allow
};

struct Choice {
  int64_t expert;
  float weight;
};

// The experts of one token from the router's products [E]; `ranks` is room for E numbers.
void route(const Routing& routing, const float* products, const float* selection_bias, std::vector<float>& ranks, Choice* out);

using Piece = std::function<void(int64_t, int64_t)>;
using Parallel = std::function<void(int64_t, const Piece&)>;  // calls a piece for ranges that make up [0, count)

// in [tokens][D] -> out [tokens][D]. Reads the codes of chosen experts alone, each once however many tokens chose it.
void mix(const Experts& experts, const float* in, int64_t tokens, float* out, const Parallel& parallel);

}  // namespace slm
