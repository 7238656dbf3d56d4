// Functions that a compiler makes for several instruction sets, of which the processor takes its best when the library is loaded.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SLM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SLM_CLONES
#endif
