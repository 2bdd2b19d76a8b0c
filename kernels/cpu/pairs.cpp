#include "pairs.h"

#include <algorithm>
#include <queue>

namespace hag {

namespace {

constexpr int64_t kChunk = 64;

int32_t count_bits(const uint64_t *bits, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(bits[w]);
  return static_cast<int32_t>(count);
}

int32_t count_common(const uint64_t *a, const uint64_t *b, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
  return static_cast<int32_t>(count);
}

struct Best {
  int32_t count;
  int32_t position;
  int64_t compared;
};

// The first of items 0..n-1 (contiguous bit sets) with the most rows in common with `own`.
// `most` is a bound that cannot be exceeded: the scan stops where it is reached.
inline __attribute__((always_inline)) Best scan(const uint64_t *bits, const uint64_t *own,
                                                int64_t words, int64_t n, int32_t most) {
  Best best{0, -1, n};
  int64_t count[kChunk];
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t size = n - begin < kChunk ? n - begin : kChunk;
    int64_t largest = 0;
    if (words == 1) {
      const uint64_t mine = own[0];
      for (int64_t i = 0; i < size; ++i) count[i] = __builtin_popcountll(bits[begin + i] & mine);
    } else {
      for (int64_t i = 0; i < size; ++i) {
        const uint64_t *other = bits + (begin + i) * words;
        int64_t common = 0;
        for (int64_t w = 0; w < words; ++w) common += __builtin_popcountll(other[w] & own[w]);
        count[i] = common;
      }
    }
    for (int64_t i = 0; i < size; ++i) largest = count[i] > largest ? count[i] : largest;
    if (largest <= best.count) continue;
    best.count = static_cast<int32_t>(largest);
    for (int64_t i = 0; i < size; ++i)
      if (count[i] == largest) {
        best.position = static_cast<int32_t>(begin + i);
        break;
      }
    if (best.count >= most) {
      best.compared = begin + size;
      break;
    }
  }
  return best;
}

using Scan = Best (*)(const uint64_t *, const uint64_t *, int64_t, int64_t, int32_t);

Best scan_baseline(const uint64_t *bits, const uint64_t *own, int64_t words, int64_t n,
                   int32_t most) {
  return scan(bits, own, words, n, most);
}

#if defined(__x86_64__)
__attribute__((target("popcnt"))) Best scan_popcnt(const uint64_t *bits, const uint64_t *own,
                                                   int64_t words, int64_t n, int32_t most) {
  return scan(bits, own, words, n, most);
}

__attribute__((target("popcnt,avx512f,avx512vl,avx512vpopcntdq"))) Best
scan_avx512(const uint64_t *bits, const uint64_t *own, int64_t words, int64_t n, int32_t most) {
  return scan(bits, own, words, n, most);
}

Scan choose_scan() {
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq"))
    return scan_avx512;
  return __builtin_cpu_supports("popcnt") ? scan_popcnt : scan_baseline;
}
#else
Scan choose_scan() { return scan_baseline; }
#endif

}  // namespace

Merge PairMerger::best_partner(int32_t second) {
  const uint64_t *own = bits_.data() + second * words_;
  const int32_t most = count_[second];
  if (most < 2) return {0, 0, second};
  static const Scan scan_items = choose_scan();
  const Best best = scan_items(bits_.data(), own, words_, second, most);
  work_done_ += best.compared * words_;
  return {best.count, best.position, second};
}

std::vector<Merge> PairMerger::run(int64_t candidates, int64_t capacity, int64_t work) {
  std::vector<Merge> merges;
  // Items beyond the candidates take no part: their bits are set aside and come back at the end.
  std::vector<uint64_t> aside(bits_.begin() + candidates * words_, bits_.end());
  const int64_t skipped = num_items_ - candidates;
  bits_.resize(candidates * words_);
  count_.resize(candidates);
  for (int64_t i = 0; i < candidates; ++i)
    count_[i] = count_bits(bits_.data() + i * words_, words_);

  std::priority_queue<Merge> queue;
  for (int64_t i = 1; i < candidates && work_done_ < work; ++i) {
    const Merge entry = best_partner(static_cast<int32_t>(i));
    if (entry.redundancy > 1) queue.push(entry);
  }
  while (!queue.empty() && static_cast<int64_t>(merges.size()) < capacity && work_done_ < work) {
    Merge top = queue.top();
    queue.pop();
    uint64_t *first = bits_.data() + top.first * words_;
    uint64_t *second = bits_.data() + top.second * words_;
    work_done_ += words_;
    // Counts of a pair only fall, so an entry that still holds is the largest of all.
    if (count_common(first, second, words_) != top.redundancy) {
      top = best_partner(top.second);
      if (top.redundancy > 1) queue.push(top);
      continue;
    }
    const int32_t merged = static_cast<int32_t>(count_.size());
    bits_.resize(bits_.size() + words_);
    first = bits_.data() + top.first * words_;
    second = bits_.data() + top.second * words_;
    uint64_t *both = bits_.data() + merged * words_;
    for (int64_t w = 0; w < words_; ++w) {
      both[w] = first[w] & second[w];
      first[w] &= ~both[w];
      second[w] &= ~both[w];
    }
    count_[top.first] -= top.redundancy;
    count_[top.second] -= top.redundancy;
    count_.push_back(top.redundancy);
    merges.push_back(top);
    for (const int32_t item : {top.second, merged}) {
      const Merge entry = best_partner(item);
      if (entry.redundancy > 1) queue.push(entry);
    }
  }
  if (skipped) {  // intermediates are numbered from `num_items` on
    bits_.insert(bits_.begin() + candidates * words_, aside.begin(), aside.end());
    for (Merge &merge : merges) {
      if (merge.first >= candidates) merge.first += static_cast<int32_t>(skipped);
      if (merge.second >= candidates) merge.second += static_cast<int32_t>(skipped);
    }
  }
  return merges;
}

}  // namespace hag
