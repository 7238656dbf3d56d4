// A loaded .pte: methods whose inputs lie in memory of ours, called without a copy.
#pragma once
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// ExecuTorch's Python package has the thread pool's library, not its header: the two members that are used.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace slm {

using executorch::runtime::EValue;
using ScalarType = executorch::aten::ScalarType;

inline void check(executorch::runtime::Error error, const std::string& doing) {
  if (error == executorch::runtime::Error::Ok) return;
  throw std::runtime_error("ExecuTorch could not " + doing + ": error " + std::to_string(static_cast<int>(error)));
}

// Before a program is loaded: its delegates hold on to the pool. Returns how many threads there are.
inline int use_threads(int wanted) {
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool == nullptr) return 1;
  if (wanted > 0 && !pool->_unsafe_reset_threadpool(static_cast<uint32_t>(wanted)))
    throw std::runtime_error("ExecuTorch could not start " + std::to_string(wanted) + " threads");
  return static_cast<int>(pool->get_thread_count());
}

// The inputs of one method in one shape, made once.
class Inputs {
 public:
  void add(void* data, const std::vector<int64_t>& shape, ScalarType type) {
    const std::vector<executorch::aten::SizesType> sizes(shape.begin(), shape.end());
    tensors_.push_back(executorch::extension::from_blob(data, sizes, type));
    values_.emplace_back(tensors_.back());
  }
  const std::vector<EValue>& values() const { return values_; }

 private:
  std::vector<executorch::extension::TensorPtr> tensors_;
  std::vector<EValue> values_;
};

class Program {
 public:
  explicit Program(const std::string& path)
      : module_(path, executorch::extension::Module::LoadMode::MmapUseMlockIgnoreErrors) {}

  void load(const std::string& method) { check(module_.load_method(method), "load the method " + method); }

  std::vector<EValue> run(const std::string& method, const Inputs& inputs) {
    auto outputs = module_.execute(method, inputs.values());
    check(outputs.error(), "run the method " + method);
    return std::move(outputs.get());
  }

  // Bytes of the buffers whose names begin so: a program keeps its caches under their names.
  int64_t buffer_bytes(const std::string& method, const std::string& start) {
    const auto meta = module_.method_meta(method);
    check(meta.error(), "describe the method " + method);
    int64_t bytes = 0;
    for (size_t index = 0; index < meta->num_attributes(); index++) {
      const auto tensor = meta->attribute_tensor_meta(index);
      check(tensor.error(), "describe a buffer");
      if (tensor->name().substr(0, start.size()) == start) bytes += static_cast<int64_t>(tensor->nbytes());
    }
    return bytes;
  }

 private:
  executorch::extension::Module module_;
};

}  // namespace slm
