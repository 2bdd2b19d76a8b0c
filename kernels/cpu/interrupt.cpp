#include "interrupt.h"

#include <utility>

namespace hag {

namespace {

// Asking takes the lock of the interpreter: rarely enough not to hold up other Python threads.
constexpr std::chrono::milliseconds kBetweenQuestions{50};

thread_local Call *current_call = nullptr;

}  // namespace

Call::Call(std::function<bool(double)> go_on) : go_on_(std::move(go_on)), outer_(current_call) {
  current_call = this;
}

Call::~Call() { current_call = outer_; }

Call *Call::current() { return current_call; }

void Call::poll() {
  if (std::this_thread::get_id() == owner_) {
    const auto now = std::chrono::steady_clock::now();
    if (now - asked_ >= kBetweenQuestions) {
      if (!go_on_(share_.load(std::memory_order_relaxed))) stopped_ = true;
      asked_ = std::chrono::steady_clock::now();
    }
  }
  if (stopped_.load(std::memory_order_relaxed)) throw Stopped();
}

Call::Helper::Helper(Call *call) : outer_(current_call) { current_call = call; }

Call::Helper::~Helper() { current_call = outer_; }

}  // namespace hag
