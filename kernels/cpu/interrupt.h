// Long work that can be stopped. A call from Python is a `Call`: the thread that it came in by asks
// now and then whether to go on, and all threads that work for it leave their loops if not.
//
// Whatever may take more than a moment polls: `each` and `Pace` do so once in many steps, so that
// nobody pays for it.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>

namespace hag {

struct Stopped {};  // what `poll` throws in a call that is to stop

class Call {
 public:
  // `go_on` gets the share that is done and answers false to stop. It is asked in this thread only.
  explicit Call(std::function<bool(double)> go_on);
  ~Call();
  Call(const Call &) = delete;
  Call &operator=(const Call &) = delete;

  static Call *current();  // of this thread; null where nobody can stop the work

  void poll();
  void stop() { stopped_ = true; }
  void report(double share) { share_.store(share, std::memory_order_relaxed); }

  // Makes a call the current one of a thread that helps.
  class Helper {
   public:
    explicit Helper(Call *call);
    ~Helper();

   private:
    Call *const outer_;
  };

 private:
  const std::function<bool(double)> go_on_;
  const std::thread::id owner_ = std::this_thread::get_id();
  std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
  std::atomic<bool> stopped_{false};
  std::atomic<double> share_{0.0};
  Call *const outer_;
};

// Throws `Stopped` if this thread's call is to stop.
inline void poll() {
  if (Call *call = Call::current()) call->poll();
}

// The share of this thread's call that is done, for whoever watches.
inline void report(double share) {
  if (Call *call = Call::current()) call->report(share);
}

// Steps, of a few nanoseconds each, between two polls: under a millisecond.
constexpr int64_t kStepsPerPoll = 1 << 16;

// Counts steps of a loop whose rounds differ, and polls.
class Pace {
 public:
  void operator()(int64_t steps = 1) {
    if ((left_ -= steps) > 0) return;
    left_ = kStepsPerPoll;
    poll();
  }

 private:
  int64_t left_ = kStepsPerPoll;
};

// body(i) for i in 0..count-1, polling in between.
template <class Body>
void each(int64_t count, const Body &body) {
  for (int64_t begin = 0; begin < count;) {
    const int64_t end = std::min(begin + kStepsPerPoll, count);
    for (int64_t i = begin; i < end; ++i) body(i);
    if (end < count) poll();
    begin = end;
  }
}

// std::sort, polling where there is much to sort.
template <class T>
void sort(T *first, T *last) {
  if (last - first < kStepsPerPoll) return std::sort(first, last);
  Pace pace;
  std::sort(first, last, [&pace](const T &a, const T &b) {
    pace();
    return a < b;
  });
}

}  // namespace hag
