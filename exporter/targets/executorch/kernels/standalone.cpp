// C functions for tests and for hosts without ExecuTorch: what a path of a given name computes.
#include <cstring>
#include <initializer_list>

#include "attention.h"
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
                                                         const float* constants, const float* slopes, uint8_t* keys, uint8_t* values,
                                                         uint16_t* scales, const float* query, const float* key, const float* value,
                                                         float* out) {
  using namespace slm;
  const Layer layer{sizes[0], sizes[1], sizes[2], sizes[3],  sizes[4],  sizes[5], static_cast<int>(sizes[6]), sizes[7] != 0,
                    sizes[8] != 0, sizes[9] != 0, score_scale, score_cap, constants, slopes, keys,   values,   scales};
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

// The name of the path that this processor takes by itself.
__attribute__((visibility("default"))) const char* slm_fastest_path() {
  return slm::fastest_path().name;
}
}
