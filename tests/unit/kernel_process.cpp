// Runs the attention kernels on numbers from a file, for machines that a test can only emulate.
//
//   kernel_process PATH INPUT OUTPUT
//
// INPUT: int64 sizes[10] (slots, K, H, Hd, window, sinks, bits, zero_point, rotation, fine), int64 chunks, float score_scale, float score_cap,
// constants [4][K][Hd], then per chunk int64 tokens, queries, keys, values. OUTPUT: what every chunk attended, then the codes and scales.
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" int slm_attention(const char*, const int64_t*, float, float, const float*, const float*, const float*, uint8_t*, uint8_t*, uint16_t*,
                             const float*, const float*, const float*, float*);

template <class T>
static std::vector<T> read(FILE* file, size_t count) {
  std::vector<T> values(count);
  if (fread(values.data(), sizeof(T), count, file) != count) throw 1;
  return values;
}

int main(int, char** arguments) {
  FILE *in = fopen(arguments[2], "rb"), *out = fopen(arguments[3], "wb");
  auto sizes = read<int64_t>(in, 10);
  const int64_t chunks = read<int64_t>(in, 1)[0], slots = sizes[0], heads = sizes[1], queries = sizes[2], width = sizes[3];
  const auto scores = read<float>(in, 2), constants = read<float>(in, 4 * heads * width);
  std::vector<uint8_t> keys(slots * heads * width * sizes[6] / 8), values(keys.size());
  std::vector<uint16_t> scales((sizes[7] ? 4 : 2) * heads * slots);
  sizes.resize(12, 0);
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    sizes[10] += sizes[11];
    sizes[11] = read<int64_t>(in, 1)[0];
    const auto query = read<float>(in, sizes[11] * queries * width), key = read<float>(in, sizes[11] * heads * width),
               value = read<float>(in, sizes[11] * heads * width);
    std::vector<float> mixed(query.size());
    if (!slm_attention(arguments[1], sizes.data(), scores[0], scores[1], constants.data(), nullptr, nullptr, keys.data(), values.data(),
                       scales.data(), query.data(), key.data(), value.data(), mixed.data()))
      return 2;
    fwrite(mixed.data(), 4, mixed.size(), out);
  }
  fwrite(keys.data(), 1, keys.size(), out);
  fwrite(values.data(), 1, values.size(), out);
  fwrite(scales.data(), 2, scales.size(), out);
  return fclose(out);
}
