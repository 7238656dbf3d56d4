// Prints what a C++ host does with chunks: for each, its length, and per ring the first slot and the positions held.
#include <cstdio>

#include "rings.h"

int main(int, char** argv) {
  const slm::Json cases = slm::read_json(argv[1]);
  for (const slm::Json& one : cases.items) {
    slm::Rings rings(one.at("host"));
    for (int64_t wanted : one.at("chunks").integers()) {
      const int64_t count = rings.longest_chunk(wanted);
      rings.reserve(rings.length() + count);
      rings.place(count);
      printf("%lld", static_cast<long long>(count));
      for (auto& [name, ring] : rings.all()) {
        printf(" %lld:", static_cast<long long>(ring.write_slot));
        for (int64_t held : ring.held) printf("%lld,", held == slm::kEmpty ? -1LL : static_cast<long long>(held));
      }
      printf("\n");
    }
  }
}
