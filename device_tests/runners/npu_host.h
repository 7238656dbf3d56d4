// The host's part of an NPU program, as in exporter/targets/executorch/qnn/host.py: rows of the token table, rotary angles, masks and
// cache rings, all as the integer codes that cross into the graph.
#pragma once
#include <cmath>

#include "rings.h"
#include "safetensors.h"

namespace slm {

constexpr uint16_t kHidden = 0, kVisible = 65535;  // codes of a mask
constexpr float kAngleSteps = 32767.0f;
constexpr int kAngleZero = 32768;

inline uint16_t to_code(float value, int zero) {
  return static_cast<uint16_t>(std::min(65535.0f, std::max(0.0f, std::nearbyint(value) + static_cast<float>(zero))));
}

// Codes uint8 [V, ceil(D / 2)], low nibble first, or int8 [V, D]; scales float16 [V, groups].
class TokenTable {
 public:
  TokenTable(const std::string& path, int64_t size, int64_t group) : file_(path), size_(size), group_(group) {
    codes_ = file_.at("codes");
    scales_ = file_.at("scales");
  }

  // Values [D] of one row.
  void read(int64_t token, float* values) const {
    const uint8_t* codes = codes_.data + token * codes_.shape.at(1);
    const auto* scales = reinterpret_cast<const uint16_t*>(scales_.data) + token * scales_.shape.at(1);
    for (int64_t at = 0; at < size_; at++) {
      const int code = codes_.type == "U8" ? nibble(codes, at) : static_cast<int8_t>(codes[at]);
      values[at] = static_cast<float>(code) * half_to_float(scales[at / group_]);
    }
  }

 private:
  Safetensors file_;
  StoredTensor codes_, scales_;
  int64_t size_, group_;

  static int nibble(const uint8_t* codes, int64_t at) {
    const int code = at % 2 ? codes[at / 2] >> 4 : codes[at / 2] & 15;
    return code > 7 ? code - 16 : code;
  }
};

// One layer: keys [K, Hd, slots], values [K, slots, Hd]; INT4 holds two codes per byte along the last axis.
struct NpuLayer {
  Ring ring;
  std::string mask;
  int64_t window = 0, kv_heads = 0, head_dim = 0, bits = 8;
  std::vector<uint8_t> keys, values;

  NpuLayer(const Json& entry, int64_t cache_bits) : bits(cache_bits) {
    ring.slots = entry.at("slots").integer();
    ring.sinks = entry.at("sinks").integer();
    ring.windowed = !entry.at("window").is_null();
    window = ring.windowed ? entry.at("window").integer() : 0;
    ring.held.assign(static_cast<size_t>(ring.slots), kEmpty);
    mask = entry.at("mask").text;
    kv_heads = entry.at("kv_heads").integer();
    head_dim = entry.at("head_dim").integer();
    keys = empty(entry.at("key_zero").integer(), kv_heads * head_dim, ring.slots);
    values = empty(entry.at("value_zero").integer(), kv_heads * ring.slots, head_dim);
  }

  std::vector<uint8_t> empty(int64_t zero, int64_t rows, int64_t columns) const {
    const int64_t code = bits == 8 ? zero : zero | (zero << 4);
    return std::vector<uint8_t>(static_cast<size_t>(rows * columns * bits / 8), static_cast<uint8_t>(code));
  }

  bool sees(int64_t query, int64_t key) const {
    return key <= query && (!ring.windowed || key > query - window || key < ring.sinks);
  }

  // Token `token` of new keys [K, Hd, count] and values [K, count, Hd], at a position of the conversation.
  void write(const uint8_t* new_keys, const uint8_t* new_values, int64_t token, int64_t count, int64_t position) {
    const int64_t slot = ring.slot_of(position);
    ring.held[static_cast<size_t>(slot)] = position;
    for (int64_t row = 0; row < kv_heads * head_dim; row++) put(keys, row * ring.slots + slot, new_keys[row * count + token]);
    for (int64_t head = 0; head < kv_heads; head++)
      for (int64_t channel = 0; channel < head_dim; channel++)
        put(values, (head * ring.slots + slot) * head_dim + channel, new_values[(head * count + token) * head_dim + channel]);
  }

 private:
  // Rows are even at 4 bits, so that an index over all of them is one within a row.
  void put(std::vector<uint8_t>& codes, int64_t at, uint8_t code) const {
    if (bits == 8) {
      codes[static_cast<size_t>(at)] = code;
      return;
    }
    uint8_t& byte = codes[static_cast<size_t>(at / 2)];
    byte = at % 2 ? static_cast<uint8_t>((byte & 0x0F) | (code << 4)) : static_cast<uint8_t>((byte & 0xF0) | code);
  }
};

// Codes that a call of one method reads, besides the caches.
struct NpuCall {
  int64_t chunk = 0;
  std::vector<uint16_t> hidden, cosine, sine;
  std::map<std::string, std::vector<uint16_t>> masks;
};

class NpuHost {
 public:
  NpuHost(const Json& layout, const std::string& table)
      : chunk(layout.at("chunk").integer()),
        vocab_size(layout.at("vocab_size").integer()),
        hidden_size_(layout.at("hidden_size").integer()),
        hidden_scale_(static_cast<float>(layout.at("hidden_scale").number)),
        hidden_zero_(static_cast<int>(layout.at("hidden_zero").integer())),
        table_(table, hidden_size_, layout.at("embedding_group_size").integer()) {
    for (const Json& item : layout.at("rotary_frequencies").items) frequencies_.push_back(static_cast<float>(item.number));
    for (const Json& item : layout.at("layers").items) layers.emplace_back(item, layout.at("kv_bits").integer());
  }

  const int64_t chunk, vocab_size;
  std::vector<NpuLayer> layers;

  void clear() {
    length_ = 0;
    for (NpuLayer& layer : layers) std::fill(layer.ring.held.begin(), layer.ring.held.end(), kEmpty);
  }

  NpuCall call_of(int64_t size) const {
    NpuCall call{size, {}, {}, {}, {}};
    call.hidden.resize(static_cast<size_t>(size * hidden_size_));
    call.cosine.resize(static_cast<size_t>(size) * frequencies_.size());
    call.sine.resize(call.cosine.size());
    for (const NpuLayer& layer : layers) call.masks[layer.mask].resize(static_cast<size_t>(size * (layer.ring.slots + size)));
    return call;
  }

  // Up to `call.chunk` tokens; short chunks are padded with tokens that nobody attends to.
  void fill(NpuCall& call, const int64_t* tokens, int64_t count) const {
    std::vector<float> row(static_cast<size_t>(hidden_size_), 0.0f);
    for (int64_t token = 0; token < call.chunk; token++) {
      if (token < count) table_.read(tokens[token], row.data());
      else std::fill(row.begin(), row.end(), 0.0f);
      for (int64_t at = 0; at < hidden_size_; at++)
        call.hidden[static_cast<size_t>(token * hidden_size_ + at)] = to_code(row[static_cast<size_t>(at)] / hidden_scale_, hidden_zero_);
      for (size_t at = 0; at < frequencies_.size(); at++) {
        const float angle = static_cast<float>(length_ + token) * frequencies_[at];
        call.cosine[static_cast<size_t>(token) * frequencies_.size() + at] = to_code(std::cos(angle) * kAngleSteps, kAngleZero);
        call.sine[static_cast<size_t>(token) * frequencies_.size() + at] = to_code(std::sin(angle) * kAngleSteps, kAngleZero);
      }
    }
    for (auto& [name, mask] : call.masks)
      for (const NpuLayer& layer : layers)
        if (layer.mask == name) {
          fill_mask(mask, layer, call.chunk, count);
          break;
        }
  }

  // Takes the first `count` tokens of a call's new keys and values, two per layer.
  void commit(const std::vector<const uint8_t*>& new_keys, const std::vector<const uint8_t*>& new_values, int64_t size, int64_t count) {
    for (size_t index = 0; index < layers.size(); index++)
      for (int64_t token = 0; token < count; token++)
        layers[index].write(new_keys[index], new_values[index], token, size, length_ + token);
    length_ += count;
  }

  int64_t kv_bytes() const {
    size_t bytes = 0;
    for (const NpuLayer& layer : layers) bytes += layer.keys.size() + layer.values.size();
    return static_cast<int64_t>(bytes);
  }

 private:
  int64_t hidden_size_, length_ = 0;
  float hidden_scale_;
  int hidden_zero_;
  TokenTable table_;
  std::vector<float> frequencies_;

  // [chunk, slots + chunk]: which cached slots and which tokens of this chunk each token sees.
  void fill_mask(std::vector<uint16_t>& mask, const NpuLayer& layer, int64_t size, int64_t count) const {
    uint16_t* at = mask.data();
    for (int64_t row = 0; row < size; row++) {
      const int64_t query = length_ + row;
      for (const int64_t key : layer.ring.held) *at++ = layer.sees(query, key) ? kVisible : kHidden;
      for (int64_t other = 0; other < size; other++)
        *at++ = other < count && layer.sees(query, length_ + other) ? kVisible : kHidden;
    }
  }
};

}  // namespace slm
