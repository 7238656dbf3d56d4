// onnxruntime_loop CALLS.json: repeats the recorded calls of a session, and times OrtApi::RunWithBinding alone, where it is for one token. It
// knows nothing of what inputs mean: between two calls their recorded bytes are copied in. The prompt's calls are repeated too: a session
// that has run one is a few hundredths slower with the tokens behind it.
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

// Memory that is bound as an input, an output, or both.
struct Tensor {
  std::vector<char> data;
  OrtValue* value = nullptr;

  explicit Tensor(const slm::Json& told) : data(static_cast<size_t>(told.at("bytes").integer())) {
    OrtMemoryInfo* memory = nullptr;
    check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    const std::vector<int64_t> shape = told.at("shape").integers();
    const auto type = static_cast<ONNXTensorElementDataType>(told.at("type").integer());
    check(api->CreateTensorWithDataAsOrtValue(memory, data.data(), data.size(), shape.data(), shape.size(), type, &value));
  }
};

using Tensors = std::vector<std::unique_ptr<Tensor>>;

OrtIoBinding* bound(OrtSession* session, const Tensors& tensors, const slm::Json& told) {
  OrtIoBinding* binding = nullptr;
  check(api->CreateIoBinding(session, &binding));
  for (const auto& [name, place] : told.at("inputs").members)
    check(api->BindInput(binding, name.c_str(), tensors.at(place.integer())->value));
  for (const auto& [name, place] : told.at("outputs").members)
    check(api->BindOutput(binding, name.c_str(), tensors.at(place.integer())->value));
  return binding;
}

struct Call {
  OrtIoBinding* binding;
  bool timed;
  std::vector<std::pair<Tensor*, const char*>> copies;
  const std::vector<char>* logits;
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
  Tensors tensors;
  for (const slm::Json& item : told.at("tensors").items) tensors.push_back(std::make_unique<Tensor>(item));
  std::vector<OrtIoBinding*> bindings;
  for (const slm::Json& item : told.at("bindings").items) bindings.push_back(bound(session, tensors, item));
  std::vector<Call> calls;
  for (const slm::Json& item : told.at("calls").items) {
    const int64_t binding = item.at("binding").integer();
    const int64_t logits = told.at("bindings").items.at(binding).at("outputs").at("logits").integer();
    Call& call = calls.emplace_back(Call{bindings.at(binding), item.at("timed").boolean, {}, &tensors.at(logits)->data});
    for (const slm::Json& copy : item.at("copies").items) {
      const std::vector<int64_t> from = copy.integers();
      call.copies.emplace_back(tensors.at(from[0]).get(), recording.data() + from[1]);
    }
  }
  Timed timed;
  for (int pass = 0; pass < 2; pass++) {  // the first one warms up
    timed = Timed();
    for (const Call& call : calls) {
      for (const auto& [tensor, from] : call.copies) memcpy(tensor->data.data(), from, tensor->data.size());
      const int64_t started = clock_ns();
      check(api->RunWithBinding(session, nullptr, call.binding));
      const int64_t taken = clock_ns() - started;
      if (!call.timed) continue;
      timed.ns.push_back(taken);
      timed.chosen.push_back(likeliest(reinterpret_cast<const float*>(call.logits->data()), static_cast<int64_t>(call.logits->size() / sizeof(float))));
    }
  }
  print(timed);
}
