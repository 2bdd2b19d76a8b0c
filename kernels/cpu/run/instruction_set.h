// The choice among the instruction sets that the kernels are compiled for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hag {

// ENTRY(name) for each of them, the best last: what tables of kernels are made with.
#if defined(__x86_64__)
#define HAG_EVERY_ISA(ENTRY) ENTRY(baseline), ENTRY(avx2), ENTRY(avx512)
#else
#define HAG_EVERY_ISA(ENTRY) ENTRY(baseline)
#endif

// The place in HAG_EVERY_ISA of the one in use: the best that this machine can run, or the one that
// HAG_PLUGIN_ISA names. Throws std::invalid_argument if that cannot run here.
int64_t isa_in_use();

const char *instruction_set();                // its name
std::vector<std::string> instruction_sets();  // those that this machine can run

}  // namespace hag
