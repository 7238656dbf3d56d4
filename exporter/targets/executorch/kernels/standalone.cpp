// C functions for tests and for hosts without ExecuTorch: what a path of a given name computes.
#include <cstring>
#include <initializer_list>

#include "attention.h"
#include "recurrence.h"
#include "rounded.h"

namespace {

const slm::Path* named(const char* name) {
  for (const slm::Path* path : {&slm::portable_path(), slm::avx2_path(), slm::avx512_path(), slm::neon_path()})
    if (path != nullptr && std::strcmp(path->name, name) == 0) return path;
  return nullptr;
}

}  // namespace

extern "C" {

// One chunk of attention. Sizes: slots, K, H, Hd, window, sinks, bits, zero_point, rotation, fine, start, tokens. Returns 0 where the path is not to be had.
__attribute__((visibility("default"))) int slm_attention(const char* name, const int64_t* sizes, float score_scale, float score_cap,
                                                         const float* constants, const float* slopes, const float* learned, uint8_t* keys,
                                                         uint8_t* values, uint16_t* scales, const float* query, const float* key, const float* value,
                                                         float* out) {
  using namespace slm;
  const Layer layer{sizes[0], sizes[1], sizes[2], sizes[3],  sizes[4],  sizes[5], static_cast<int>(sizes[6]), sizes[7] != 0,
                    sizes[8] != 0, sizes[9] != 0, score_scale, score_cap, constants, slopes, learned,  keys,     values,   scales};
  const Chunk chunk{sizes[10], sizes[11], query, key, value, out};
  const Path* found = named(name);
  if (found == nullptr) return 0;
  for (int64_t head = 0; head < layer.kv_heads; head++) {
    store(layer, chunk, head);
    attend(layer, chunk, *found, head, 0, chunk.tokens);
  }
  return 1;
}

// x / (1 + exp(-x)) by a path of a given name.
__attribute__((visibility("default"))) int slm_silu(const char* name, const float* in, int64_t count, float* out) {
  const slm::Path* found = named(name);
  if (found != nullptr) found->silu(in, count, out);
  return found != nullptr;
}

// Rounded rows times INT4 weights. Sizes: rows, columns, group size, tokens. Scales in fp16. Returns 0 where groups do not allow it.
__attribute__((visibility("default"))) int slm_rounded_product(const int64_t* sizes, const uint8_t* codes, const uint16_t* scales,
                                                               const float* in, float* out) {
  using namespace slm;
  const Weights weights{sizes[0], sizes[1], (sizes[1] + sizes[2] - 1) / sizes[2], sizes[2], (sizes[1] + 1) / 2, 4, codes, nullptr, scales};
  if (!takes_rounded(weights)) return 0;
  Rounded rows;
  round_rows(in, sizes[3], sizes[1], rows);
  multiply_rounded(weights, rows, 0, weights.rows, out);
  return 1;
}

// Recurrences over a state [2][numbers], which return 0 where no copy stands at the position. Sizes: tokens, channels, taps, position.
__attribute__((visibility("default"))) int slm_causal_convolution(const int64_t* sizes, const float* in, const float* weights,
                                                                  const float* bias, float* state, int64_t* held, float* out) {
  const slm::Turn turn = slm::begin({state, held, (sizes[2] - 1) * sizes[1]}, sizes[3], sizes[0]);
  if (turn.to != nullptr) slm::convolve({sizes[0], sizes[1], sizes[2], in, weights, bias, out}, turn, 0, sizes[1]);
  return turn.to != nullptr;
}

// Sizes: tokens, channels, states of a channel, position.
__attribute__((visibility("default"))) int slm_selective_scan(const int64_t* sizes, const float* in, const float* step,
                                                              const float* entering, const float* leaving, const float* decay,
                                                              const float* skip, float* state, int64_t* held, float* out) {
  const slm::Turn turn = slm::begin({state, held, sizes[1] * sizes[2]}, sizes[3], sizes[0]);
  if (turn.to != nullptr)
    slm::scan({sizes[0], sizes[1], sizes[2], in, step, entering, leaving, decay, skip, out}, turn, 0, sizes[1]);
  return turn.to != nullptr;
}

// Sizes: tokens, groups, heads of a group, states, channels of a head, position.
__attribute__((visibility("default"))) int slm_state_space_dual(const int64_t* sizes, float shortest_step, const float* in,
                                                                const float* step, const float* entering, const float* leaving,
                                                                const float* step_bias, const float* decay, const float* skip,
                                                                float* state, int64_t* held, float* out) {
  const int64_t heads = sizes[1] * sizes[2];
  const slm::Turn turn = slm::begin({state, held, heads * sizes[3] * sizes[4]}, sizes[5], sizes[0]);
  if (turn.to != nullptr)
    slm::scan_heads({sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], shortest_step, in, step, entering, leaving, step_bias, decay,
                     skip, out},
                    turn, 0, heads);
  return turn.to != nullptr;
}

// The name of the path that this processor takes by itself.
__attribute__((visibility("default"))) const char* slm_fastest_path() {
  return slm::fastest_path().name;
}
}
