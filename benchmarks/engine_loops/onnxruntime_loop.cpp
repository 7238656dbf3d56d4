// onnxruntime_loop CALLS.json: repeats recorded calls of a session, whose inputs were bound once, and times OrtApi::RunWithBinding alone. It
// knows nothing of what the inputs mean: between two calls their recorded bytes are copied in.
#include <onnxruntime_c_api.h>

#include <cstring>
#include <memory>

#include "loop.h"

namespace {

const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);

void check(OrtStatus* status) {
  if (status == nullptr) return;
  fprintf(stderr, "%s\n", api->GetErrorMessage(status));
  _exit(1);
}

// A tensor of the graph. `first` is where its bytes begin in the recording, which has them once, or for every call, or not at all.
struct Tensor {
  std::string name;
  std::vector<char> data;
  size_t first;
  bool every_call;
  OrtValue* value = nullptr;

  explicit Tensor(const slm::Json& told)
      : name(told.at("name").text),
        data(static_cast<size_t>(told.at("bytes").integer())),
        first(static_cast<size_t>(told.at("first").integer())),
        every_call(told.at("every_call").boolean) {
    OrtMemoryInfo* memory = nullptr;
    check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    const std::vector<int64_t> shape = told.at("shape").integers();
    const auto type = static_cast<ONNXTensorElementDataType>(told.at("type").integer());
    check(api->CreateTensorWithDataAsOrtValue(memory, data.data(), data.size(), shape.data(), shape.size(), type, &value));
  }
};

OrtSession* open(const slm::Json& told) {
  OrtEnv* environment = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "loop", &environment));
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, static_cast<int>(told.at("threads").integer())));
  check(api->CreateSession(environment, told.at("model").text.c_str(), options, &session));
  return session;
}

}  // namespace

int main(int, char** argv) {
  const slm::Json told = slm::read_json(argv[1]);
  std::ifstream file(told.at("recording").text, std::ios::binary);
  const std::vector<char> recording((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  OrtSession* session = open(told);
  OrtIoBinding* binding = nullptr;
  check(api->CreateIoBinding(session, &binding));
  std::map<std::string, std::unique_ptr<Tensor>> tensors;
  for (const slm::Json& item : told.at("tensors").items) {
    auto& tensor = tensors[item.at("name").text] = std::make_unique<Tensor>(item);
    if (item.at("input").boolean) check(api->BindInput(binding, tensor->name.c_str(), tensor->value));
    for (const slm::Json& output : item.at("outputs").items) check(api->BindOutput(binding, output.text.c_str(), tensor->value));
  }
  const auto& logits = tensors.at("logits")->data;
  Timed timed;
  for (int pass = 0; pass < 2; pass++) {  // the first one warms up
    timed = Timed();
    for (int64_t call = 0; call < told.at("calls").integer(); call++) {
      for (auto& [name, tensor] : tensors)
        if (tensor->every_call || (call == 0 && name != "logits"))
          memcpy(tensor->data.data(), &recording[tensor->first + (tensor->every_call ? call : 0) * tensor->data.size()], tensor->data.size());
      const int64_t started = clock_ns();
      check(api->RunWithBinding(session, nullptr, binding));
      timed.ns.push_back(clock_ns() - started);
      const auto* values = reinterpret_cast<const float*>(logits.data());
      timed.chosen.push_back(likeliest(values, static_cast<int64_t>(logits.size() / sizeof(float))));
    }
  }
  print(timed);
}
