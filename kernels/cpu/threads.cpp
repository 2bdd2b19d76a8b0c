#include "threads.h"

#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>

#include "interrupt.h"
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

void in_parallel_until_stopped(int threads, const std::function<void(int)> &work) {
  if (threads == 1) return work(0);
  Call *const call = Call::current();
  std::mutex mutex;
  std::condition_variable one_is_done;
  std::exception_ptr failure;
  int done = 0;
  const auto guarded = [&](const auto &body) {
    try {
      body();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      if (call) call->stop();
    }
  };
  on_a_team(threads, [&](int thread, int count) {
    const auto work_share = [&] {
      for (int share = thread; share < threads; share += count) work(share);
    };
    if (thread > 0) {
      const Call::Helper helper(call);
      guarded(work_share);
      const std::lock_guard<std::mutex> lock(mutex);
      ++done;
      one_is_done.notify_one();
    } else {
      guarded(work_share);
      // Only this thread asks whether to go on: it does so until the last is done.
      for (bool all = false; !all;) {
        {
          std::unique_lock<std::mutex> lock(mutex);
          const auto finished = [&] { return done == count - 1; };
          all = one_is_done.wait_for(lock, std::chrono::milliseconds(20), finished);
        }
        if (!all) guarded(poll);
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

}  // namespace hag
