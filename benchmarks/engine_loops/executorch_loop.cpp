// executorch_loop CALLS.json: repeats recorded calls of a program for CPUs through ExecuTorch's Module, and times those of one token.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include "loop.h"

namespace executorch::extension::threadpool {  // a header that the Python package lacks
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t count);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

using executorch::aten::SizesType;
using executorch::aten::ScalarType;
using executorch::extension::Module;

int main(int, char** argv) {
  const slm::Json told = slm::read_json(argv[1]);
  if (const int64_t threads = told.at("threads").integer())
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(static_cast<uint32_t>(threads));
  Module module(told.at("model").text, Module::LoadMode::MmapUseMlockIgnoreErrors);
  std::vector<std::vector<int64_t>> tokens, positions;
  for (const slm::Json& call : told.at("calls").items) {
    tokens.push_back(call.at("tokens").integers());
    positions.push_back({call.at("position").integer()});
  }
  std::vector<executorch::extension::TensorPtr> tensors;
  std::vector<std::vector<executorch::runtime::EValue>> inputs;
  for (size_t call = 0; call < tokens.size(); call++) {
    auto& own = inputs.emplace_back();
    for (std::vector<int64_t>* values : {&tokens[call], &positions[call]}) {
      const std::vector<SizesType> sizes = {static_cast<SizesType>(values->size())};
      tensors.push_back(executorch::extension::from_blob(values->data(), sizes, ScalarType::Long));
      own.emplace_back(tensors.back());
    }
  }
  Timed timed;
  for (int pass = 0; pass < 2; pass++) {  // the first one warms up
    timed = Timed();
    for (size_t call = 0; call < inputs.size(); call++) {
      const int64_t started = clock_ns();
      auto outputs = module.execute("forward", inputs[call]);
      const int64_t taken = clock_ns() - started;
      if (!outputs.ok()) return 1;
      if (tokens[call].size() > 1) continue;
      const auto logits = outputs->at(0).toTensor();
      timed.ns.push_back(taken);
      timed.chosen.push_back(likeliest(logits.const_data_ptr<float>(), logits.numel()));
    }
  }
  print(timed);
}
