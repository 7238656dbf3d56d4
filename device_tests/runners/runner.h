// What runners of all engines share: the request, the timed loop, memory, the bandwidth probe, and the lines that they print.
// The protocol is device_tests/protocol.py.
#pragma once
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "json.h"

namespace slm {

constexpr int kProtocol = 1;
constexpr int kProbeRounds = 20;
constexpr int64_t kShortestProbeNs = 20000000;

// An engine with one artifact and the cache of one conversation. Both calls return the likeliest next token, the first of equals.
class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string name() const = 0;
  virtual int threads() const = 0;  // 0: the engine chooses
  virtual void reset() = 0;
  virtual int64_t prompt(const std::vector<int64_t>& token_ids) = 0;
  virtual int64_t decode(int64_t token_id) = 0;
  virtual int64_t kv_bytes() = 0;  // of a full context
};

// A prompt in chunks of at most so many tokens; `step(first, count)` returns the token after them, and the last one counts.
template <class Step>
int64_t in_chunks(const std::vector<int64_t>& token_ids, int64_t longest, Step step) {
  int64_t next = 0;
  const auto all = static_cast<int64_t>(token_ids.size());
  for (int64_t done = 0; done < all; done += longest) next = step(token_ids.data() + done, std::min(longest, all - done));
  return next;
}

inline int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

inline int64_t peak_rss_bytes() {
  int64_t kilobytes = -1;
  if (FILE* status = fopen("/proc/self/status", "r")) {
    char line[256];
    while (fgets(line, sizeof line, status))
      if (!strncmp(line, "VmHWM:", 6)) kilobytes = atoll(line + 6);
    fclose(status);
  }
  return kilobytes * 1024;
}

inline std::vector<int> allowed_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof set, &set) == 0)
    for (int core = 0; core < CPU_SETSIZE; core++)
      if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

template <class Number>
std::string joined(const std::vector<Number>& values) {
  std::string text;
  for (const Number& value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
  return text;
}

inline void say(const std::string& line) {
  printf("%s\n", line.c_str());
  fflush(stdout);
}

// One prompt from an empty cache. Between the first and the last reading of the clock nothing is allocated, printed or read here.
inline void repeat(Engine& engine, const std::vector<int64_t>& prompt, size_t count, size_t number, int64_t index, bool warm_up) {
  std::vector<int64_t> tokens(count), stamps(count + 1), gaps(count - 1);
  engine.reset();
  stamps[0] = now_ns();
  tokens[0] = engine.prompt(prompt);
  stamps[1] = now_ns();
  for (size_t step = 1; step < count; step++) {
    tokens[step] = engine.decode(tokens[step - 1]);
    stamps[step + 1] = now_ns();
  }
  for (size_t step = 1; step < count; step++) gaps[step - 1] = stamps[step + 1] - stamps[step];
  say("{\"event\":\"repetition\",\"prompt\":" + std::to_string(number) + ",\"index\":" + std::to_string(index) +
      ",\"warm_up\":" + (warm_up ? "true" : "false") + ",\"ttft_ns\":" + std::to_string(stamps[1] - stamps[0]) +
      ",\"token_ids\":[" + joined(tokens) + "],\"decode_ns\":[" + joined(gaps) + "]}");
}

// Reads a buffer from front to back, shared among threads, often enough that a sample outlasts the start of a thread.
inline void probe(int64_t size, int threads) {
  std::vector<int64_t> buffer(std::max<int64_t>(size / 8, threads), 1);
  std::vector<int64_t> sums(threads);
  auto read = [&](int64_t rounds) {
    std::vector<std::thread> readers;
    const int64_t started = now_ns();
    for (int part = 0; part < threads; part++)
      readers.emplace_back([&, part] {
        const size_t first = buffer.size() * part / threads, last = buffer.size() * (part + 1) / threads;
        for (int64_t round = 0; round < rounds; round++) {
          int64_t sum = 0;
          for (size_t at = first; at < last; at++) sum += buffer[at];
          sums[part] += sum;
          asm volatile("" : : "r"(&sums[part]) : "memory");  // a round must not be computed once for all
        }
      });
    for (std::thread& reader : readers) reader.join();
    return now_ns() - started;
  };
  const int64_t rounds = std::max<int64_t>(1, kShortestProbeNs / std::max<int64_t>(1, read(1)));
  std::vector<int64_t> times;
  for (int round = 0; round < kProbeRounds; round++) times.push_back(read(rounds) / rounds);
  say("{\"event\":\"probe\",\"bytes\":" + std::to_string(buffer.size() * 8) + ",\"threads\":" + std::to_string(threads) +
      ",\"ns\":[" + joined(times) + "]}");
}

// The host holds our standard input open: when it, the cable or the connection goes, so do we.
inline void end_with_input() {
  std::thread([] {
    char ignored[4096];
    while (read(0, ignored, sizeof ignored) > 0) {
    }
    _exit(9);
  }).detach();
}

template <class Open>
void measure(const Json& request, Open open) {
  const int64_t started = now_ns();
  auto engine = open(request.at("artifact").text);
  const int64_t load_ns = now_ns() - started;
  const std::vector<int> cores = allowed_cores();
  say("{\"event\":\"loaded\",\"engine\":\"" + engine->name() + "\",\"load_ns\":" + std::to_string(load_ns) +
      ",\"threads\":" + std::to_string(engine->threads()) + ",\"affinity\":\"" + joined(cores) +
      "\",\"protocol\":" + std::to_string(kProtocol) + "}");
  const int64_t warm_up = request.at("warm_up").integer(), all = warm_up + request.at("repetitions").integer();
  const auto count = static_cast<size_t>(request.at("generated_tokens").integer());
  const std::vector<Json>& prompts = request.at("prompts").items;
  for (size_t number = 0; number < prompts.size(); number++) {
    const std::vector<int64_t> prompt = prompts[number].integers();
    for (int64_t index = 0; index < all; index++) repeat(*engine, prompt, count, number, index, index < warm_up);
  }
  const int64_t peak = peak_rss_bytes();
  say("{\"event\":\"memory\",\"peak_rss_bytes\":" + std::to_string(peak) +
      ",\"kv_bytes\":" + std::to_string(engine->kv_bytes()) + "}");
  const int readers = engine->threads() ? engine->threads() : std::max<int>(1, static_cast<int>(cores.size()));
  for (int64_t size : request.at("probe_bytes").integers()) probe(size, readers);
  say("{\"event\":\"ended\"}");
}

// The main function of a runner: `open(folder)` returns a pointer to an Engine.
template <class Open>
int run(int argc, char** argv, Open open) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s REQUEST.json\n", argv[0]);
    return 64;
  }
  end_with_input();
  try {
    const Json request = read_json(argv[1]);
    if (request.at("protocol").integer() != kProtocol) throw std::runtime_error("the request is of another protocol");
    measure(request, open);
  } catch (const std::exception& fault) {
    std::string message = fault.what();
    std::replace_if(message.begin(), message.end(), [](char c) { return c == '"' || c == '\\' || c == '\n'; }, ' ');
    say("{\"event\": \"error\", \"message\": \"" + message + "\"}");
    fflush(stdout);
    _exit(1);
  }
  _exit(0);  // without destructors: libraries may crash in theirs, after the result is safe
}

}  // namespace slm
