#include "threads.h"

#include <pthread.h>

#include "refuse.h"

namespace hag {

namespace {

// Below this many elements read, waking another thread costs more than it brings.
constexpr int64_t kElementsPerThread = 16384;

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

int useful_threads(int requested, int64_t elements) {
  if (requested < 1) refuse("threads is ", requested, ", expected at least 1");
  const int64_t most = std::clamp<int64_t>(elements / kElementsPerThread, 1, requested);
  return usable_threads(static_cast<int>(most));
}

}  // namespace hag
