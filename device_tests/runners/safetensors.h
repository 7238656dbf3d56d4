// A safetensors file (https://github.com/huggingface/safetensors, "Format"), mapped into memory: only what is read is loaded.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <string>

#include "json.h"

namespace slm {

struct StoredTensor {
  std::string type;
  std::vector<int64_t> shape;
  const uint8_t* data = nullptr;
};

class Safetensors {
 public:
  explicit Safetensors(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY);
    struct stat info {};
    if (file < 0 || fstat(file, &info) != 0) throw std::runtime_error(path + ": not readable");
    bytes_ = static_cast<size_t>(info.st_size);
    void* mapped = mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (mapped == MAP_FAILED) throw std::runtime_error(path + ": cannot be mapped");
    data_ = static_cast<const uint8_t*>(mapped);
    uint64_t size = 0;
    memcpy(&size, data_, sizeof size);
    header_ = JsonReader(std::string(reinterpret_cast<const char*>(data_) + 8, size)).read();
    start_ = 8 + size;
  }
  ~Safetensors() { munmap(const_cast<uint8_t*>(data_), bytes_); }
  Safetensors(const Safetensors&) = delete;

  StoredTensor at(const std::string& name) const {
    const Json& entry = header_.at(name);
    const std::vector<int64_t> offsets = entry.at("data_offsets").integers();
    return {entry.at("dtype").text, entry.at("shape").integers(), data_ + start_ + offsets.at(0)};
  }

 private:
  const uint8_t* data_ = nullptr;
  size_t bytes_ = 0, start_ = 0;
  Json header_;
};

inline float half_to_float(uint16_t half) {
  const int exponent = (half >> 10) & 31, fraction = half & 1023;
  const float sign = half & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(static_cast<float>(fraction), -24));
}

}  // namespace slm
