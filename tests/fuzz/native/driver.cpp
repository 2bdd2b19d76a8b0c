// A stand-in for libFuzzer, where clang is missing: changed seeds, chosen without looking at what
// they reach. Arguments are libFuzzer's: -runs=N -max_total_time=S -seed=N FOLDER...
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
Bytes current;  // what is run: written where a sanitizer ends the process

void write_current() {
  if (std::FILE *file = std::fopen("crash-input", "wb")) {
    std::fwrite(current.data(), 1, current.size(), file);
    std::fclose(file);
  }
}

extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));
extern "C" void on_abort(int) { write_current(); }

Bytes mutant(const std::vector<Bytes> &seeds, std::mt19937_64 &random) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  Bytes out = seeds[below(seeds.size())];
  for (size_t changes = 1 + below(4); changes > 0; --changes) {
    const size_t at = below(out.size() + 1), length = 1 + below(8);
    switch (below(6)) {
      case 0:
        if (at < out.size()) out[at] = static_cast<uint8_t>(random());
        break;
      case 1:
        if (at < out.size()) out[at] += random() % 2 ? 1 : -1;
        break;
      case 2:
        out.insert(out.begin() + at, length, static_cast<uint8_t>(random()));
        break;
      case 3:
        out.erase(out.begin() + at, out.begin() + std::min(at + length, out.size()));
        break;
      case 4:
        out.resize(at);
        break;
      default: {
        const Bytes &other = seeds[below(seeds.size())];
        out.resize(at);
        out.insert(out.end(), other.begin() + std::min(at, other.size()), other.end());
      }
    }
  }
  return out;
}

}  // namespace

int main(int count, char **words) {
  uint64_t runs = UINT64_MAX, seed = 1;
  double seconds = 1e9;
  std::vector<Bytes> seeds{{}};
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word.rfind("-runs=", 0) == 0) runs = std::stoull(word.substr(6));
    else if (word.rfind("-max_total_time=", 0) == 0) seconds = std::stod(word.substr(16));
    else if (word.rfind("-seed=", 0) == 0) seed = std::stoull(word.substr(6));
    else if (word[0] != '-')
      for (const auto &entry : std::filesystem::directory_iterator(word)) {
        std::ifstream file(entry.path(), std::ios::binary);
        seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
      }
  }
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(write_current);
  std::signal(SIGABRT, on_abort);
  std::mt19937_64 random(seed);
  const auto begin = std::chrono::steady_clock::now();
  uint64_t done = 0;
  for (; done < runs; ++done) {
    current = done < seeds.size() ? seeds[done] : mutant(seeds, random);
    LLVMFuzzerTestOneInput(current.data(), current.size());
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    if (done % 256 == 0 && spent.count() > seconds) break;
  }
  std::fprintf(stderr, "Done %llu runs\n", static_cast<unsigned long long>(done));
  return 0;
}
