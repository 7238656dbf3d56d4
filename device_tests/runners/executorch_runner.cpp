// Runs a .pte export through ExecuTorch's own runtime. The operators of exporter/targets/executorch/kernels and the backends that the
// build names register themselves when the program starts.
#include <memory>
#include <numeric>

#include "executorch_program.h"
#include "npu_host.h"
#include "runner.h"

namespace {

const char* kMethod = "forward";
const char* kCaches = "cache.";
const char* kPrefill = "prefill";
const char* kDecode = "decode";

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

// A program for Qualcomm's NPU: the host keeps caches, masks and the token table, and both methods take codes.
class NpuEngine : public slm::Engine {
 public:
  NpuEngine(const std::string& folder, const slm::Json& description)
      : host_(description.at("layout"), folder + "/embedding.safetensors"), program_(folder + "/model.pte") {
    for (const char* name : {kPrefill, kDecode}) {
      program_.load(name);
      methods_[name] = prepare(description.at("methods").at(name), name == kDecode ? 1 : host_.chunk);
    }
  }

  std::string name() const override { return "executorch " EXECUTORCH_VERSION " with QNN"; }
  int threads() const override { return 0; }
  void reset() override { host_.clear(); }
  int64_t prompt(const std::vector<int64_t>& token_ids) override {
    return slm::in_chunks(token_ids, host_.chunk,
                          [this](const int64_t* first, int64_t count) { return step(kPrefill, first, count); });
  }
  int64_t decode(int64_t token_id) override { return step(kDecode, &token_id, 1); }
  int64_t kv_bytes() override { return host_.kv_bytes(); }

 private:
  // A method's inputs lie in `call` and in the caches; outputs are known by their places.
  struct Method {
    slm::NpuCall call;
    slm::Inputs inputs;
    std::vector<size_t> keys, values;
    size_t logits = 0;
    std::vector<const uint8_t*> new_keys, new_values;
  };

  slm::NpuHost host_;
  slm::Program program_;
  std::map<std::string, std::unique_ptr<Method>> methods_;

  std::unique_ptr<Method> prepare(const slm::Json& signature, int64_t size) {
    auto method = std::make_unique<Method>();
    method->call = host_.call_of(size);
    for (const slm::Json& item : signature.at("inputs").items) {
      const auto type = item.at("storage").text == "uint16" ? slm::ScalarType::UInt16 : slm::ScalarType::Byte;
      method->inputs.add(input_data(*method, item.at("name").text), item.at("shape").integers(), type);
    }
    std::map<std::string, size_t> places;
    for (const slm::Json& item : signature.at("outputs").items) places.emplace(item.at("name").text, places.size());
    for (size_t index = 0; index < host_.layers.size(); index++) {
      method->keys.push_back(places.at("layers." + std::to_string(index) + ".new_keys"));
      method->values.push_back(places.at("layers." + std::to_string(index) + ".new_values"));
    }
    method->new_keys.resize(host_.layers.size());
    method->new_values.resize(host_.layers.size());
    method->logits = places.at("logits");
    return method;
  }

  void* input_data(Method& method, const std::string& name) {
    if (name == "hidden") return method.call.hidden.data();
    if (name == "cosine") return method.call.cosine.data();
    if (name == "sine") return method.call.sine.data();
    for (size_t index = 0; index < host_.layers.size(); index++) {
      const std::string layer = "layers." + std::to_string(index);
      if (name == layer + ".keys") return host_.layers[index].keys.data();
      if (name == layer + ".values") return host_.layers[index].values.data();
    }
    return method.call.masks.at(name).data();
  }

  int64_t step(const char* name, const int64_t* token_ids, int64_t count) {
    Method& method = *methods_.at(name);
    host_.fill(method.call, token_ids, count);
    const auto outputs = program_.run(name, method.inputs);
    auto data = [&](size_t place) { return static_cast<const uint8_t*>(outputs.at(place).toTensor().const_data_ptr()); };
    for (size_t index = 0; index < host_.layers.size(); index++) {
      method.new_keys[index] = data(method.keys[index]);
      method.new_values[index] = data(method.values[index]);
    }
    host_.commit(method.new_keys, method.new_values, method.call.chunk, count);
    const auto* codes = reinterpret_cast<const uint16_t*>(data(method.logits)) + (count - 1) * host_.vocab_size;
    return std::max_element(codes, codes + host_.vocab_size) - codes;
  }
};

// Qualcomm's libraries look for the NPU's own files where this names; they lie beside the runner.
void name_own_folder() {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof path);
  const std::string program(path, size > 0 ? static_cast<size_t>(size) : 0);
  setenv("ADSP_LIBRARY_PATH", program.substr(0, program.rfind('/')).c_str(), 0);
}

std::unique_ptr<slm::Engine> open_engine(const std::string& folder) {
  const slm::Json host = slm::read_json(folder + "/host.json");
  if (!host.members.count("layout")) return std::make_unique<CpuEngine>(folder, host);
  name_own_folder();
  return std::make_unique<NpuEngine>(folder, host);
}

}  // namespace

int main(int argc, char** argv) { return slm::run(argc, argv, open_engine); }
