// Checks of our own invariants: a failure is a defect of this program, never a bad input.
#ifndef HYSERVE_ENGINE_KV_CACHE_CHECK_H_
#define HYSERVE_ENGINE_KV_CACHE_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define HYSERVE_CHECK(condition)                                                           \
  do {                                                                                     \
    if (!(condition)) [[unlikely]] {                                                       \
      std::fprintf(stderr, "%s:%d: broken invariant: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                        \
    }                                                                                      \
  } while (false)

#endif  // HYSERVE_ENGINE_KV_CACHE_CHECK_H_
