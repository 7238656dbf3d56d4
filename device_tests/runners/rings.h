// The host's part of a cache: which slot a token goes to, which position each slot holds, when a chunk must be cut, when a cache grows.
// The same rule as exporter/decoder/cache.py; engines keep the buffers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "json.h"

namespace slm {

constexpr int64_t kFirstSlots = 256;  // of a cache that grows, and the multiple that it keeps
constexpr int64_t kEmpty = std::numeric_limits<int64_t>::max();  // held by a slot that no token can see

struct Ring {
  int64_t slots = 0, sinks = 0;
  bool windowed = false;
  int64_t capacity = 0;
  std::vector<int64_t> held;
  int64_t write_slot = 0;

  int64_t slot_of(int64_t position) const {
    return position < sinks ? position : sinks + (position - sinks) % (slots - sinks);
  }
};

class Rings {
 public:
  explicit Rings(const Json& host) : chunk_(host.at("chunk").integer()) {
    for (const auto& [name, values] : host.at("rings").members) {
      Ring ring;
      ring.slots = values.at("slots").integer();
      ring.sinks = values.at("sinks").integer();
      ring.windowed = !values.at("window").is_null();
      ring.capacity = ring.windowed ? ring.slots : std::min(kFirstSlots, ring.slots);
      ring.held.assign(ring.capacity, kEmpty);
      rings_[name] = ring;
    }
  }

  int64_t length() const { return length_; }
  std::map<std::string, Ring>& all() { return rings_; }
  Ring& at(const std::string& name) { return rings_.at(name); }

  // Makes room for so many tokens; says whether a buffer must be replaced.
  bool reserve(int64_t length) {
    bool grown = false;
    for (auto& [name, ring] : rings_) {
      if (ring.capacity >= std::min(length, ring.slots)) continue;
      const int64_t wanted = std::max(length, 2 * ring.capacity);
      ring.capacity = std::min((wanted + kFirstSlots - 1) / kFirstSlots * kFirstSlots, ring.slots);
      ring.held.resize(ring.capacity, kEmpty);
      grown = true;
    }
    return grown;
  }

  // A write runs on from its first slot. Behind sinks it would wrap onto them, so there a chunk ends where the ring does.
  int64_t longest_chunk(int64_t wanted) const {
    wanted = std::min(wanted, chunk_);
    for (const auto& [name, ring] : rings_)
      if (ring.sinks) wanted = std::min(wanted, ring.slots - ring.slot_of(length_));
    return wanted;
  }

  // Reserves the slots of the next tokens.
  void place(int64_t count) {
    for (auto& [name, ring] : rings_) {
      ring.write_slot = ring.slot_of(length_);
      for (int64_t position = length_; position < length_ + count; position++) ring.held[ring.slot_of(position)] = position;
    }
    length_ += count;
  }

  void clear() {
    length_ = 0;
    for (auto& [name, ring] : rings_) std::fill(ring.held.begin(), ring.held.end(), kEmpty);
  }

 private:
  int64_t chunk_, length_ = 0;
  std::map<std::string, Ring> rings_;
};

}  // namespace slm
