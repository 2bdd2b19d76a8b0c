// How many threads a piece of work gets, and how they share it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#ifdef HAG_STD_THREADS
#include <system_error>
#include <thread>
#else
#include <omp.h>
#endif

namespace hag {

int usable_threads(int requested);  // 1 in a forked child, whose thread pool did not survive

// Those of `requested` that reading so many elements keeps busy, among the usable ones. Throws
// std::invalid_argument if `requested` is below 1.
int useful_threads(int requested, int64_t elements);

// Runs work(thread, count) on up to `threads` threads, numbered 0 to count - 1; this one is 0. They
// are fewer where OMP_THREAD_LIMIT or OMP_DYNAMIC says so. `work` may not throw.
template <class Work>
void on_a_team(int threads, const Work &work) {
#ifdef HAG_STD_THREADS  // no OpenMP, or a sanitizer that does not know what its library does
  std::vector<std::thread> others;
  others.reserve(threads);
  int made = 1;
  try {
    for (; made < threads; ++made) {
      others.emplace_back([&work, made, threads] { work(made, threads); });
    }
  } catch (const std::system_error &) {  // no more threads are to be had
  }
  work(0, threads);
  for (int t = made; t < threads; ++t) work(t, threads);
  for (std::thread &other : others) other.join();
#else
#pragma omp parallel num_threads(threads)
  work(omp_get_thread_num(), omp_get_num_threads());
#endif
}

// Runs work(0) to work(threads - 1), one on each thread where there are so many; this one has the
// first. `work` may not throw.
template <class Work>
void in_parallel(int threads, const Work &work) {
  if (threads == 1) return work(0);
  on_a_team(threads, [&work, threads](int thread, int count) {
    for (int share = thread; share < threads; share += count) work(share);
  });
}

// The same for long work (interrupt.h), which may throw: the first exception comes out of here, and
// the other threads leave at their next poll.
void in_parallel_until_stopped(int threads, const std::function<void(int)> &work);

// Hands out 0..count-1 in pieces of `grain`. Each thread has a stretch of its own, the same at
// every call: rows that were in its cache are there again. Who is done helps the next.
class Counter {
 public:
  Counter(int64_t count, int64_t grain, int threads)
      : grain_(std::max<int64_t>(grain, 1)), stretches_(threads) {
    for (int t = 0; t < threads; ++t) {
      stretches_[t].next = count * t / threads;
      stretches_[t].end = count * (t + 1) / threads;
    }
  }

  // body(first, last) for one piece after another, while there are any.
  template <class Body>
  void share(int thread, const Body &body) {
    const size_t threads = stretches_.size();
    for (size_t i = 0; i < threads; ++i) {
      Stretch &stretch = stretches_[(thread + i) % threads];
      for (;;) {
        const int64_t first = stretch.next.fetch_add(grain_, std::memory_order_relaxed);
        if (first >= stretch.end) break;
        body(first, std::min(first + grain_, stretch.end));
      }
    }
  }

 private:
  struct alignas(64) Stretch {  // a cache line each
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  const int64_t grain_;
  std::vector<Stretch> stretches_;
};

}  // namespace hag
