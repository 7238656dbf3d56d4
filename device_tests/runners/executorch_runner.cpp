// Runs a .pte export through ExecuTorch's own runtime. The operators of exporter/targets/executorch/kernels and the backends that the
// build names register themselves when the program starts.
#include <memory>
#include <numeric>

#include "executorch_program.h"
#include "runner.h"

namespace {

const char* kMethod = "forward";
const char* kCaches = "cache.";

// A program for CPUs: it keeps its caches and masks itself, so that the host has nothing but a position.
class CpuEngine : public slm::Engine {
 public:
  CpuEngine(const std::string& folder, const slm::Json& host)
      : chunk_(host.at("chunk").integer()),
        vocab_size_(host.at("vocab_size").integer()),
        threads_(slm::use_threads(static_cast<int>(host.at("threads").integer()))),
        program_(folder + "/model.pte") {
    program_.load(kMethod);
  }

  std::string name() const override { return "executorch " EXECUTORCH_VERSION; }
  int threads() const override { return threads_; }
  void reset() override { length_ = 0; }
  int64_t prompt(const std::vector<int64_t>& token_ids) override {
    return slm::in_chunks(token_ids, chunk_, [this](const int64_t* first, int64_t count) { return step(first, count); });
  }
  int64_t decode(int64_t token_id) override { return step(&token_id, 1); }
  int64_t kv_bytes() override { return program_.buffer_bytes(kMethod, kCaches); }

 private:
  struct Step {
    std::vector<int64_t> tokens, position = {0};
    slm::Inputs inputs;
  };

  int64_t chunk_, vocab_size_, length_ = 0;
  int threads_;
  slm::Program program_;
  std::map<int64_t, std::unique_ptr<Step>> steps_;

  int64_t step(const int64_t* token_ids, int64_t count) {
    std::unique_ptr<Step>& step = steps_[count];
    if (!step) step = prepare(count);
    std::copy(token_ids, token_ids + count, step->tokens.begin());
    step->position[0] = length_;
    length_ += count;
    const auto outputs = program_.run(kMethod, step->inputs);
    const float* logits = outputs.at(0).toTensor().const_data_ptr<float>();
    return std::max_element(logits, logits + vocab_size_) - logits;
  }

  static std::unique_ptr<Step> prepare(int64_t count) {
    auto step = std::make_unique<Step>();
    step->tokens.resize(static_cast<size_t>(count));
    step->inputs.add(step->tokens.data(), {count}, slm::ScalarType::Long);
    step->inputs.add(step->position.data(), {1}, slm::ScalarType::Long);
    return step;
  }
};

std::unique_ptr<slm::Engine> open(const std::string& folder) {
  return std::make_unique<CpuEngine>(folder, slm::read_json(folder + "/host.json"));
}

}  // namespace

int main(int argc, char** argv) { return slm::run(argc, argv, open); }
