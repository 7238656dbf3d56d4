// Writes what a C++ host gives to an NPU program and keeps of it: after each call, the codes of its inputs and of all caches.
// Arguments: folder with layout.json, table.safetensors, calls.json and codes.bin (new keys and values, in order); file to write.
#include <cstdio>
#include <fstream>

#include "npu_host.h"

namespace {

template <class Code>
void put(std::ofstream& out, const std::vector<Code>& codes) {
  out.write(reinterpret_cast<const char*>(codes.data()), static_cast<std::streamsize>(codes.size() * sizeof(Code)));
}

}  // namespace

int main(int, char** argv) {
  const std::string folder = argv[1];
  slm::NpuHost host(slm::read_json(folder + "/layout.json"), folder + "/table.safetensors");
  std::ifstream codes(folder + "/codes.bin", std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  for (const slm::Json& item : slm::read_json(folder + "/calls.json").items) {
    const std::vector<int64_t> tokens = item.at("tokens").integers();
    slm::NpuCall call = host.call_of(item.at("chunk").integer());
    host.fill(call, tokens.data(), static_cast<int64_t>(tokens.size()));
    put(out, call.hidden);
    put(out, call.cosine);
    put(out, call.sine);
    for (const auto& [name, mask] : call.masks) put(out, mask);
    std::vector<std::vector<uint8_t>> held;
    std::vector<const uint8_t*> keys, values;
    for (const slm::NpuLayer& layer : host.layers)
      for (auto* side : {&keys, &values}) {
        held.emplace_back(static_cast<size_t>(layer.kv_heads * layer.head_dim * call.chunk));
        codes.read(reinterpret_cast<char*>(held.back().data()), static_cast<std::streamsize>(held.back().size()));
        side->push_back(held.back().data());
      }
    host.commit(keys, values, call.chunk, static_cast<int64_t>(tokens.size()));
    for (const slm::NpuLayer& layer : host.layers) {
      put(out, layer.keys);
      put(out, layer.values);
    }
  }
}
