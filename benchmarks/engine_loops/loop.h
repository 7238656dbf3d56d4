// What the loops of both engines share: the clock around a call, and the line that is printed when all is over.
#pragma once
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "json.h"

inline int64_t clock_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1000000000 + now.tv_nsec;
}

struct Timed {
  std::vector<int64_t> ns, chosen;
};

inline std::string listed(const std::vector<int64_t>& values) {
  std::string text;
  for (int64_t value : values) text += (text.empty() ? "" : ",") + std::to_string(value);
  return "[" + text + "]";
}

inline void print(const Timed& timed) {
  printf("{\"token_ids\":%s,\"ns\":%s}\n", listed(timed.chosen).c_str(), listed(timed.ns).c_str());
  fflush(stdout);
  _exit(0);  // without destructors, as the runners end
}

inline int64_t likeliest(const float* logits, int64_t count) { return std::max_element(logits, logits + count) - logits; }
