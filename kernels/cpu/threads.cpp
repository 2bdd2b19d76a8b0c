#include <pthread.h>

#include <atomic>

#include "search.h"

namespace hag {

namespace {

std::atomic<bool> forked{false};

struct ForkHandler {
  ForkHandler() {
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
  }
} fork_handler;

}  // namespace

// A child of fork inherits the OpenMP pool's bookkeeping but none of its threads: a parallel region
// there would wait for ever.
int usable_threads(int requested) { return forked || requested < 1 ? 1 : requested; }

}  // namespace hag
