// Native code without the lock of the interpreter (the GIL), and how Python stops it.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <utility>

#include "interrupt.h"

namespace nb = nanobind;

// Releases the GIL while it lives, as nb::gil_scoped_release does. A thread that wants it back
// when the interpreter has ended (a daemon thread, at exit) sleeps instead: until Python 3.13 it
// would be unwound through C++ that cannot be, which aborts the process.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() { take(); }
  WithoutGil(const WithoutGil &) = delete;
  WithoutGil &operator=(const WithoutGil &) = delete;

  // Calls what needs the GIL, and throws nothing.
  template <class Function>
  auto with_gil(const Function &function) {
    take();
    const auto result = function();
    state_ = PyEval_SaveThread();
    return result;
  }

 private:
  void take() noexcept;
  PyThreadState *state_;
};

// Whether this is the thread that signals are handled in.
bool is_main_thread();

// Runs work without the GIL. It ends early if a signal's handler raises (Ctrl-C) or `progress`
// does, which is called with the share that is done; what was raised comes out of here.
template <class Work>
auto long_call(const Work &work, const nb::object &progress = nb::none()) -> decltype(work()) {
  std::optional<nb::python_error> error;
  try {
    WithoutGil released;
    bool asks = true;
    const hag::Call call([&](double share) {
      if (!asks) return true;
      return released.with_gil([&] {
        try {
          if (PyErr_CheckSignals() < 0) nb::raise_python_error();
          if (!progress.is_none()) progress(share);
          else asks = is_main_thread();
          return true;
        } catch (nb::python_error &raised) {
          error.emplace(std::move(raised));
          return false;
        }
      });
    });
    return work();
  } catch (const hag::Stopped &) {
  }
  throw nb::python_error(std::move(*error));
}
