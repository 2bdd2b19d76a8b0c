// The choice among the instruction sets that the kernels are compiled for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace hag {

#ifndef HAG_ISAS  // how many of them are compiled, the first ones
#define HAG_ISAS 3
#endif

// ENTRY(name) for each of them, the best last: what tables of kernels are made with.
#if !defined(__x86_64__) || HAG_ISAS == 1
#define HAG_EVERY_ISA(ENTRY) ENTRY(baseline)
#elif HAG_ISAS == 2
#define HAG_EVERY_ISA(ENTRY) ENTRY(baseline), ENTRY(avx2)
#else
#define HAG_EVERY_ISA(ENTRY) ENTRY(baseline), ENTRY(avx2), ENTRY(avx512)
#endif

// The place in HAG_EVERY_ISA of the one in use: the best that this machine can run, or the one that
// HAG_PLUGIN_ISA names. Throws std::invalid_argument if that cannot run here.
int64_t isa_in_use();

const char *instruction_set();                // its name
std::vector<std::string> instruction_sets();  // those that this machine can run

}  // namespace hag
