// How many threads a piece of work gets, and how they share it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace hag {

int usable_threads(int requested);  // 1 in a forked child, whose thread pool did not survive

// Those of `requested` that reading so many elements keeps busy, among the usable ones. Throws
// std::invalid_argument if `requested` is below 1.
int useful_threads(int requested, int64_t elements);

// Runs work() on so many threads, this one included.
template <class Work>
void in_parallel(int threads, const Work &work) {
  if (threads == 1) return work();
#pragma omp parallel num_threads(threads)
  work();
}

// Hands out 0..count-1 in pieces of `grain`.
class Counter {
 public:
  Counter(int64_t count, int64_t grain) : count_(count), grain_(std::max<int64_t>(grain, 1)) {}

  // body(first, last) for one piece after another, while there are any.
  template <class Body>
  void share(const Body &body) {
    for (;;) {
      const int64_t first = next_.fetch_add(grain_, std::memory_order_relaxed);
      if (first >= count_) return;
      body(first, std::min(first + grain_, count_));
    }
  }

 private:
  std::atomic<int64_t> next_{0};
  const int64_t count_, grain_;
};

}  // namespace hag
