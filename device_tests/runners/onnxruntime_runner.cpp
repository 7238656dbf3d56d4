// Runs an ONNX export through ONNX Runtime's C interface, so that library and runner may come from different compilers.
// Every cache is one buffer, bound as input and as output; a step of one token allocates nothing but where a cache grows. A state of a
// recurrent layer is two buffers, which change places after every call.
#include <onnxruntime_c_api.h>

#include <memory>
#include <numeric>

#include "rings.h"
#include "runner.h"

namespace {

const OrtApi* api = nullptr;

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw std::runtime_error(message);
}

struct Input {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
  std::vector<std::string> symbols;  // of open sizes
};

size_t element_bytes(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return 1;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return 4;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return 8;
    default:
      throw std::runtime_error("an input has a type that the runner does not know");
  }
}

bool starts_with(const std::string& text, const std::string& start) { return text.compare(0, start.size(), start) == 0; }

// A tensor over memory of ours.
class Value {
 public:
  Value(void* data, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
    OrtMemoryInfo* memory = nullptr;
    check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    const size_t bytes = element_bytes(type) * std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    OrtStatus* status = api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape.data(), shape.size(), type, &value_);
    api->ReleaseMemoryInfo(memory);
    check(status);
  }
  ~Value() { api->ReleaseValue(value_); }
  Value(const Value&) = delete;
  const OrtValue* get() const { return value_; }

 private:
  OrtValue* value_ = nullptr;
};

class OnnxEngine : public slm::Engine {
 public:
  explicit OnnxEngine(const std::string& folder) : host_(slm::read_json(folder + "/host.json")), rings_(host_) {
    api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (api == nullptr) throw std::runtime_error("ONNX Runtime is older than the headers that the runner was built with");
    vocab_size_ = host_.at("vocab_size").integer();
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "runner", &environment_));
    OrtSessionOptions* options = nullptr;
    check(api->CreateSessionOptions(&options));
    if (threads()) check(api->SetIntraOpNumThreads(options, threads()));
    check(api->CreateSession(environment_, (folder + "/model.onnx").c_str(), options, &session_));
    api->ReleaseSessionOptions(options);
    read_inputs();
    for (const Input& input : caches_) buffers_[input.name] = std::vector<uint8_t>(cache_bytes(input, false));
    for (auto& buffers : state_buffers_)
      for (const Input& input : states_) buffers[input.name] = std::vector<uint8_t>(cache_bytes(input, true));
  }

  std::string name() const override { return std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString(); }
  int threads() const override { return static_cast<int>(host_.at("threads").integer()); }
  void reset() override {
    rings_.clear();
    for (auto& [name, buffer] : state_buffers_[turn_]) std::fill(buffer.begin(), buffer.end(), uint8_t{0});
  }

  int64_t prompt(const std::vector<int64_t>& token_ids) override {
    int64_t next = 0;
    for (size_t done = 0; done < token_ids.size();) {
      const auto count = static_cast<size_t>(rings_.longest_chunk(static_cast<int64_t>(token_ids.size() - done)));
      next = step(token_ids.data() + done, count);
      done += count;
    }
    return next;
  }

  int64_t decode(int64_t token_id) override { return step(&token_id, 1); }

  int64_t kv_bytes() override {
    int64_t bytes = 0;
    for (const Input& input : caches_) bytes += static_cast<int64_t>(cache_bytes(input, true));
    return bytes;
  }

 private:
  // A call for a fixed number of tokens: all its buffers are bound once, for either way in which the states can lie.
  struct Step {
    std::vector<int64_t> tokens, positions, row;
    std::vector<float> logits;
    std::vector<std::unique_ptr<Value>> values;
    OrtIoBinding* bindings[2] = {nullptr, nullptr};
    ~Step() {
      for (OrtIoBinding* binding : bindings) api->ReleaseIoBinding(binding);
    }
  };

  slm::Json host_;
  slm::Rings rings_;
  int64_t vocab_size_ = 0;
  OrtEnv* environment_ = nullptr;
  OrtSession* session_ = nullptr;
  std::vector<Input> caches_, states_;
  std::vector<std::string> names_;
  std::map<std::string, std::vector<uint8_t>> state_buffers_[2];
  size_t turn_ = 0;
  std::map<std::string, std::vector<uint8_t>> buffers_;
  std::map<size_t, std::unique_ptr<Step>> steps_;

  void read_inputs() {
    OrtAllocator* allocator = nullptr;
    check(api->GetAllocatorWithDefaultOptions(&allocator));
    size_t count = 0;
    check(api->SessionGetInputCount(session_, &count));
    for (size_t index = 0; index < count; index++) {
      char* name = nullptr;
      check(api->SessionGetInputName(session_, index, allocator, &name));
      names_.push_back(name);
      check(api->AllocatorFree(allocator, name));
      if (starts_with(names_.back(), "past.")) caches_.push_back(describe(index, names_.back().substr(strlen("past."))));
      if (starts_with(names_.back(), "state.")) states_.push_back(describe(index, names_.back().substr(strlen("state."))));
    }
  }

  Input describe(size_t index, const std::string& name) {
    OrtTypeInfo* info = nullptr;
    check(api->SessionGetInputTypeInfo(session_, index, &info));
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    check(api->CastTypeInfoToTensorInfo(info, &tensor));
    size_t rank = 0;
    check(api->GetDimensionsCount(tensor, &rank));
    Input input{name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, std::vector<int64_t>(rank), {}};
    std::vector<const char*> symbols(rank);
    check(api->GetTensorElementType(tensor, &input.type));
    check(api->GetDimensions(tensor, input.shape.data(), rank));
    check(api->GetSymbolicDimensions(tensor, symbols.data(), rank));
    input.symbols.assign(symbols.begin(), symbols.end());
    api->ReleaseTypeInfo(info);
    return input;
  }

  // With its open size as it is now, or as it is with all slots.
  std::vector<int64_t> cache_shape(const Input& input, bool full) {
    std::vector<int64_t> shape = input.shape;
    for (size_t axis = 0; axis < shape.size(); axis++)
      if (shape[axis] < 0) {
        const slm::Ring& ring = rings_.at(input.symbols[axis].substr(strlen("slots.")));
        shape[axis] = full ? ring.slots : ring.capacity;
      }
    return shape;
  }

  size_t cache_bytes(const Input& input, bool full) {
    const std::vector<int64_t> shape = cache_shape(input, full);
    return element_bytes(input.type) * std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  }

  // Slots may stand behind other axes: what is in a buffer moves row by row.
  void grow(const Input& input, const std::vector<int64_t>& before) {
    const std::vector<int64_t> after = cache_shape(input, false);
    std::vector<uint8_t> grown(cache_bytes(input, false));
    size_t axis = 0;
    while (axis < before.size() && before[axis] == after[axis]) axis++;
    if (axis == before.size()) return;
    size_t outer = 1, inner = element_bytes(input.type);
    for (size_t at = 0; at < axis; at++) outer *= before[at];
    for (size_t at = axis + 1; at < before.size(); at++) inner *= before[at];
    const std::vector<uint8_t>& old = buffers_[input.name];
    for (size_t row = 0; row < outer; row++)
      memcpy(&grown[row * after[axis] * inner], &old[row * before[axis] * inner], before[axis] * inner);
    buffers_[input.name] = std::move(grown);
  }

  void reserve(int64_t length) {
    std::vector<std::vector<int64_t>> before;
    for (const Input& input : caches_) before.push_back(cache_shape(input, false));
    if (!rings_.reserve(length)) return;
    steps_.clear();
    for (size_t index = 0; index < caches_.size(); index++) grow(caches_[index], before[index]);
  }

  int64_t step(const int64_t* token_ids, size_t count) {
    if (needs_room(rings_.length() + static_cast<int64_t>(count))) reserve(rings_.length() + static_cast<int64_t>(count));
    std::unique_ptr<Step>& step = steps_[count];
    if (!step) step = bind(count);
    std::copy(token_ids, token_ids + count, step->tokens.begin());
    std::iota(step->positions.begin(), step->positions.end(), rings_.length());
    rings_.place(static_cast<int64_t>(count));
    check(api->RunWithBinding(session_, nullptr, step->bindings[turn_]));
    if (!states_.empty()) turn_ = 1 - turn_;
    return std::max_element(step->logits.begin(), step->logits.end()) - step->logits.begin();
  }

  bool needs_room(int64_t length) {
    for (const auto& [name, ring] : rings_.all())
      if (ring.capacity < std::min(length, ring.slots)) return true;
    return false;
  }

  std::unique_ptr<Step> bind(size_t count) {
    auto step = std::make_unique<Step>();
    const auto size = static_cast<int64_t>(count);
    step->tokens.resize(count);
    step->positions.resize(count);
    step->row = {size - 1};
    step->logits.resize(static_cast<size_t>(vocab_size_));
    for (size_t turn = 0; turn < 2; turn++) bind_for(*step, turn, size);
    return step;
  }

  void bind_for(Step& step, size_t turn, int64_t size) {
    OrtIoBinding*& binding = step.bindings[turn];
    check(api->CreateIoBinding(session_, &binding));
    const auto integers = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    auto input = [&](const std::string& name, void* data, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
      if (std::find(names_.begin(), names_.end(), name) == names_.end()) return;
      step.values.push_back(std::make_unique<Value>(data, shape, type));
      check(api->BindInput(binding, name.c_str(), step.values.back()->get()));
    };
    auto output = [&](const std::string& name, void* data, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
      step.values.push_back(std::make_unique<Value>(data, shape, type));
      check(api->BindOutput(binding, name.c_str(), step.values.back()->get()));
    };
    input("input_ids", step.tokens.data(), {1, size}, integers);
    input("positions", step.positions.data(), {1, size}, integers);
    input("logit_rows", step.row.data(), {1}, integers);
    for (auto& [name, ring] : rings_.all()) {
      input("held." + name, ring.held.data(), {ring.capacity}, integers);
      input("write_slot." + name, &ring.write_slot, {1}, integers);
    }
    for (const Input& cache : caches_) {
      input("past." + cache.name, buffers_[cache.name].data(), cache_shape(cache, false), cache.type);
      output("present." + cache.name, buffers_[cache.name].data(), cache_shape(cache, false), cache.type);
    }
    for (const Input& state : states_) {
      input("state." + state.name, state_buffers_[turn][state.name].data(), state.shape, state.type);
      output("next_state." + state.name, state_buffers_[1 - turn][state.name].data(), state.shape, state.type);
    }
    output("logits", step.logits.data(), {1, 1, vocab_size_}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
  }
};

}  // namespace

int main(int argc, char** argv) {
  return slm::run(argc, argv, [](const std::string& folder) { return std::make_unique<OnnxEngine>(folder); });
}
