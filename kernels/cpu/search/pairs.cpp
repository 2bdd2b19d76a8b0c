#include "search/pairs.h"

#include <algorithm>
#include <queue>

#include "interrupt.h"

namespace hag {

namespace {

// Scans read blocks of 64 items: first word 0 of each, then word 1 of each, and so on.
constexpr int64_t kBlock = 64;
constexpr Partner kNobody{1, INT32_MAX};  // a pair is worth nothing below two rows

int32_t count_bits(const uint64_t *bits, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(bits[w]);
  return static_cast<int32_t>(count);
}

void insert(Partner partner, Partners &best) {
  best.next = best.listed[kPartners - 1];
  int at = kPartners - 1;
  for (; at > 0 && partner.count > best.listed[at - 1].count; --at)
    best.listed[at] = best.listed[at - 1];
  best.listed[at] = partner;
}

// The best partners among items 0..n-1 of one with the bits `own`; returns the items looked at.
// `most` is a count that cannot be exceeded: the scan stops where it is reached.
inline __attribute__((always_inline)) int64_t scan(const uint64_t *planes, const uint64_t *own,
                                                   int64_t words, int64_t n, int32_t most,
                                                   Partners &best) {
  for (Partner &partner : best.listed) partner = kNobody;
  best.next = kNobody;
  uint64_t count[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t size = n - begin < kBlock ? n - begin : kBlock;
    const uint64_t *block = planes + begin * words;
    for (int64_t i = 0; i < kBlock; ++i) count[i] = __builtin_popcountll(block[i] & own[0]);
    for (int64_t w = 1; w < words; ++w) {
      const uint64_t mine = own[w], *plane = block + w * kBlock;
      if (!mine) continue;
      for (int64_t i = 0; i < kBlock; ++i) count[i] += __builtin_popcountll(plane[i] & mine);
    }
    const uint64_t least = best.next.count;
    uint64_t above = 0;
    for (int64_t i = 0; i < kBlock; ++i) above |= static_cast<uint64_t>(count[i] > least) << i;
    if (size < kBlock) above &= (1ull << size) - 1;
    if (!above) continue;
    for (; above; above &= above - 1) {
      const int i = __builtin_ctzll(above);
      const Partner partner{static_cast<int32_t>(count[i]), static_cast<int32_t>(begin + i)};
      if (partner.count > best.listed[kPartners - 1].count) insert(partner, best);
      else if (partner.count > best.next.count) best.next = partner;
    }
    if (best.listed[0].count >= most) {
      const Partner unseen{most, static_cast<int32_t>(begin + size)};
      if (begin + size < n && unseen.better_than(best.next)) best.next = unseen;
      return begin + size;
    }
  }
  return n;
}

// The rows that two items have in common.
inline __attribute__((always_inline)) int32_t common(const uint64_t *a, const uint64_t *b,
                                                     int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
  return static_cast<int32_t>(count);
}

struct Count {
  int64_t (*scan)(const uint64_t *, const uint64_t *, int64_t, int64_t, int32_t, Partners &);
  int32_t (*common)(const uint64_t *, const uint64_t *, int64_t);
};

#define HAG_COUNT(NAME, TARGET)                                                          \
  TARGET int64_t scan_##NAME(const uint64_t *planes, const uint64_t *own, int64_t words, \
                             int64_t n, int32_t most, Partners &best) {                  \
    return scan(planes, own, words, n, most, best);                                      \
  }                                                                                      \
  TARGET int32_t common_##NAME(const uint64_t *a, const uint64_t *b, int64_t words) {    \
    return common(a, b, words);                                                          \
  }

HAG_COUNT(baseline, )
#if defined(__x86_64__)
HAG_COUNT(popcnt, __attribute__((target("popcnt"))))
HAG_COUNT(avx512, __attribute__((target("popcnt,avx512f,avx512vl,avx512vpopcntdq"))))
#endif
#undef HAG_COUNT

Count choose_count() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq"))
    return {scan_avx512, common_avx512};
  if (__builtin_cpu_supports("popcnt")) return {scan_popcnt, common_popcnt};
#endif
  return {scan_baseline, common_baseline};
}

const Count kCount = choose_count();

}  // namespace

void PairMerger::add_item(int32_t rows) {
  const int64_t item = static_cast<int64_t>(count_.size());
  count_.push_back(rows);
  partners_.emplace_back();
  if (item % kBlock == 0) planes_.resize(planes_.size() + kBlock * words_);
  copy_to_planes(static_cast<int32_t>(item));
}

void PairMerger::copy_to_planes(int32_t item) {
  uint64_t *block = planes_.data() + item / kBlock * kBlock * words_ + item % kBlock;
  for (int64_t w = 0; w < words_; ++w) block[w * kBlock] = bits_[item * words_ + w];
}

// The best partner of lower number, found by counting all.
Merge PairMerger::scan_partners(int32_t second) {
  Partners &partners = partners_[second];
  work_done_ += words_ * kCount.scan(planes_.data(), bits_.data() + second * words_, words_, second,
                                     count_[second], partners);
  return {partners.listed[0].count, partners.listed[0].item, second};
}

// The same, found by counting those listed where that is enough.
Merge PairMerger::best_partner(int32_t second) {
  if (count_[second] < 2) return {0, 0, second};
  Partners &partners = partners_[second];
  const uint64_t *own = bits_.data() + second * words_;
  if (partners.next.count > count_[second]) partners.next = {count_[second], 0};
  Partner best = kNobody;
  for (Partner &partner : partners.listed) {
    if (partner.count < 2) continue;
    partner.count = kCount.common(bits_.data() + partner.item * words_, own, words_);
    work_done_ += words_;
    if (partner.better_than(best)) best = partner;
  }
  if (partners.next.better_than(best)) return scan_partners(second);
  return {best.count, best.item, second};
}

std::vector<Merge> PairMerger::run(int64_t candidates, int64_t capacity, int64_t work) {
  std::vector<Merge> merges;
  // Items beyond the candidates take no part: their bits are set aside and come back at the end.
  std::vector<uint64_t> aside(bits_.begin() + candidates * words_, bits_.end());
  const int64_t skipped = num_items_ - candidates;
  bits_.resize(candidates * words_);
  for (int64_t i = 0; i < candidates; ++i) add_item(count_bits(bits_.data() + i * words_, words_));

  std::priority_queue<Merge> queue;
  auto push = [&](const Merge &entry) {
    if (entry.redundancy > 1) queue.push(entry);
  };
  Pace pace;
  int64_t paced = 0;
  auto keep_pace = [&] {
    pace(1 + work_done_ - paced);
    paced = work_done_;
  };
  for (int64_t i = 1; i < candidates && work_done_ < work; ++i) {
    keep_pace();
    push(scan_partners(static_cast<int32_t>(i)));
  }
  while (!queue.empty() && static_cast<int64_t>(merges.size()) < capacity && work_done_ < work) {
    keep_pace();
    const Merge top = queue.top();
    queue.pop();
    uint64_t *first = bits_.data() + top.first * words_;
    uint64_t *second = bits_.data() + top.second * words_;
    work_done_ += words_;
    // Counts of a pair only fall, so an entry that still holds is the largest of all.
    if (kCount.common(first, second, words_) != top.redundancy) {
      push(best_partner(top.second));
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
    for (const int32_t item : {top.first, top.second}) {
      count_[item] -= top.redundancy;
      copy_to_planes(item);
    }
    add_item(top.redundancy);
    merges.push_back(top);
    push(best_partner(top.second));
    push(scan_partners(merged));
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
