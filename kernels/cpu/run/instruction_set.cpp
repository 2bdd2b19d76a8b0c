#include "run/instruction_set.h"

#include <cstdlib>
#include <iterator>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "refuse.h"

namespace hag {
namespace {

bool has_baseline() { return true; }

#if defined(__x86_64__)
[[maybe_unused]] bool has_avx2() {
  unsigned a, b, c = 0, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

struct InstructionSet {
  const char *name;
  bool (*usable)();
};

#define HAG_ISA(NAME) {#NAME, has_##NAME}
const InstructionSet kInstructionSets[] = {HAG_EVERY_ISA(HAG_ISA)};

int64_t choose() {
  const char *given = std::getenv("HAG_PLUGIN_ISA");
  const std::string forced = given ? given : "";
  int64_t best = 0;
  std::string names;
  for (int64_t i = 0; i < static_cast<int64_t>(std::size(kInstructionSets)); ++i) {
    const InstructionSet &isa = kInstructionSets[i];
    if (!isa.usable()) continue;
    if (forced == isa.name) return i;
    names += std::string(names.empty() ? "" : ", ") + isa.name;
    best = i;
  }
  if (!forced.empty())
    refuse("HAG_PLUGIN_ISA is \"", forced, "\", but this machine can run: ", names);
  return best;
}

}  // namespace

int64_t isa_in_use() {
  static const int64_t chosen = choose();
  return chosen;
}

const char *instruction_set() { return kInstructionSets[isa_in_use()].name; }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet &isa : kInstructionSets)
    if (isa.usable()) names.push_back(isa.name);
  return names;
}

}  // namespace hag
