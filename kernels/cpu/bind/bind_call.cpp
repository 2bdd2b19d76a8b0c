#include "bind/bind_call.h"

#include <unistd.h>

void WithoutGil::take() noexcept {
  try {
    PyEval_RestoreThread(state_);
  } catch (...) {  // pthread_exit's unwinding: it may be caught as long as nobody goes on
    for (;;) pause();
  }
}

bool is_main_thread() {
  const nb::object main = nb::module_::import_("threading").attr("main_thread")();
  return nb::cast<unsigned long>(main.attr("ident")) == PyThread_get_thread_ident();
}
