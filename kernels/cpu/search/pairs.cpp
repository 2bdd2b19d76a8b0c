#include "search/pairs.h"

#include <algorithm>
#include <numeric>
#include <queue>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "interrupt.h"
#include "run/instruction_set.h"

namespace hag {

namespace {

// Scans read blocks of 64 items: first word 0 of each, then word 1 of each, and so on.
constexpr int64_t kBlock = 64;
// Words whose bits are added byte by byte: of up to eight bits each, a byte holds no more.
[[maybe_unused]] constexpr int64_t kMostAdded = 31;
constexpr int64_t kWordsPerStep = 4;  // words that are compared in the time of a step along a row
constexpr Partner kNobody{1, INT32_MAX};  // a pair is worth nothing below two rows

int32_t count_bits(const uint64_t *bits, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(bits[w]);
  return static_cast<int32_t>(count);
}

// Lists a partner that is better than `best.next`.
void insert(Partner partner, Partners &best) {
  if (!partner.better_than(best.listed[kPartners - 1])) {
    best.next = partner;
    return;
  }
  best.next = best.listed[kPartners - 1];
  int at = kPartners - 1;
  for (; at > 0 && partner.better_than(best.listed[at - 1]); --at)
    best.listed[at] = best.listed[at - 1];
  best.listed[at] = partner;
}

void forget(Partners &partners) {
  for (Partner &partner : partners.listed) partner = kNobody;
  partners.next = kNobody;
}

// Counts the rows that each item of a block shares with one of the bits `own`. Returns the items
// with more than `least` of them, a bit each.
#if defined(__aarch64__)
// NEON counts the bits of bytes. Two items lie in a vector, `vectors` of them are counted at once.
uint64_t count_block(const uint64_t *block, const uint64_t *own, int64_t words, uint64_t least,
                     uint64_t *count) {
  constexpr int64_t vectors = 4;
  const uint64x2_t bar = vdupq_n_u64(least);
  uint64_t above = 0;
  for (int64_t i = 0; i < kBlock; i += 2 * vectors) {
    uint64x2_t sum[vectors] = {};
    for (int64_t begin = 0; begin < words; begin += kMostAdded) {
      uint8x16_t bytes[vectors] = {};
      for (int64_t w = begin; w < std::min(words, begin + kMostAdded); ++w) {
        const uint64x2_t mine = vdupq_n_u64(own[w]);
        for (int64_t v = 0; v < vectors; ++v) {
          const uint64x2_t both = vandq_u64(vld1q_u64(block + w * kBlock + i + 2 * v), mine);
          bytes[v] = vaddq_u8(bytes[v], vcntq_u8(vreinterpretq_u8_u64(both)));
        }
      }
      for (int64_t v = 0; v < vectors; ++v)
        sum[v] = vpadalq_u32(sum[v], vpaddlq_u16(vpaddlq_u8(bytes[v])));
    }
    for (int64_t v = 0; v < vectors; ++v) {
      const uint64x2_t more = vcgtq_u64(sum[v], bar);
      vst1q_u64(count + i + 2 * v, sum[v]);
      above |= ((vgetq_lane_u64(more, 0) & 1) | (vgetq_lane_u64(more, 1) & 2)) << (i + 2 * v);
    }
  }
  return above;
}
#else
inline __attribute__((always_inline)) uint64_t count_block(const uint64_t *block,
                                                           const uint64_t *own, int64_t words,
                                                           uint64_t least, uint64_t *count) {
  for (int64_t i = 0; i < kBlock; ++i) count[i] = __builtin_popcountll(block[i] & own[0]);
  for (int64_t w = 1; w < words; ++w) {
    const uint64_t mine = own[w], *plane = block + w * kBlock;
    if (!mine) continue;
    for (int64_t i = 0; i < kBlock; ++i) count[i] += __builtin_popcountll(plane[i] & mine);
  }
  uint64_t above = 0;
  for (int64_t i = 0; i < kBlock; ++i) above |= static_cast<uint64_t>(count[i] > least) << i;
  return above;
}
#endif

// The two, for an instruction set.
struct Count {
  uint64_t (*block)(const uint64_t *, const uint64_t *, int64_t, uint64_t, uint64_t *);
  int64_t (*common)(const uint64_t *, const uint64_t *, int64_t);
};

#define HAG_COUNT(NAME, TARGET)                                                           \
  TARGET uint64_t block_##NAME(const uint64_t *block, const uint64_t *own, int64_t words, \
                               uint64_t least, uint64_t *count) {                         \
    return count_block(block, own, words, least, count);                                  \
  }                                                                                       \
  TARGET int64_t common_##NAME(const uint64_t *a, const uint64_t *b, int64_t words) {     \
    int64_t count = 0;                                                                    \
    for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);       \
    return count;                                                                         \
  }

HAG_COUNT(baseline, )
#if defined(__x86_64__)
#define HAG_AVX2 __attribute__((target("avx2,popcnt")))
HAG_COUNT(avx512, __attribute__((target("avx2,popcnt,avx512f,avx512vl,avx512vpopcntdq"))))

HAG_AVX2 int64_t common_avx2(const uint64_t *a, const uint64_t *b, int64_t words) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
  return count;
}

// AVX2 counts no bits: those of four of them are looked up (Mula), bytes are added over the words.
HAG_AVX2 uint64_t block_avx2(const uint64_t *block, const uint64_t *own, int64_t words,
                             uint64_t least, uint64_t *count) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i bits = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i bar = _mm256_set1_epi64x(static_cast<int64_t>(least));
  uint64_t above = 0;
  for (int64_t i = 0; i < kBlock; i += 4) {
    __m256i sum = _mm256_setzero_si256();
    for (int64_t begin = 0; begin < words; begin += kMostAdded) {
      __m256i bytes = _mm256_setzero_si256();
      for (int64_t w = begin; w < std::min(words, begin + kMostAdded); ++w) {
        const auto *four = reinterpret_cast<const __m256i *>(block + w * kBlock + i);
        const __m256i both = _mm256_and_si256(_mm256_loadu_si256(four),
                                              _mm256_set1_epi64x(static_cast<int64_t>(own[w])));
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        bytes = _mm256_add_epi8(bytes, _mm256_shuffle_epi8(bits, _mm256_and_si256(both, low)));
        bytes = _mm256_add_epi8(bytes, _mm256_shuffle_epi8(bits, high));
      }
      sum = _mm256_add_epi64(sum, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(count + i), sum);
    const __m256d more = _mm256_castsi256_pd(_mm256_cmpgt_epi64(sum, bar));
    above |= static_cast<uint64_t>(_mm256_movemask_pd(more)) << i;
  }
  return above;
}
#endif
#undef HAG_COUNT

// As HAG_EVERY_ISA numbers them.
const Count kCounts[] = {
    {block_baseline, common_baseline},
#if defined(__x86_64__)
    {block_avx2, common_avx2},
    {block_avx512, common_avx512},
#endif
};

const Count &count_in_use() {
  int64_t isa = isa_in_use();
#if defined(__x86_64__)
  if (isa == 2 && !__builtin_cpu_supports("avx512vpopcntdq")) isa = 1;
#endif
  return kCounts[isa];
}

// The best partners among items 0..n-1 of one with the bits `own`; returns the items looked at.
// `most` is a count that cannot be exceeded: the scan stops where it is reached.
int64_t scan(const Count &counts, const uint64_t *planes, const uint64_t *own, int64_t words,
             int64_t n, int32_t most, Partners &best) {
  forget(best);
  uint64_t count[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t size = std::min(n - begin, kBlock);
    uint64_t above = counts.block(planes + begin * words, own, words, best.next.count, count);
    if (size < kBlock) above &= (1ull << size) - 1;
    if (!above) continue;
    for (; above; above &= above - 1) {
      const int i = __builtin_ctzll(above);
      const Partner partner{static_cast<int32_t>(count[i]), static_cast<int32_t>(begin + i)};
      if (partner.better_than(best.next)) insert(partner, best);
    }
    if (best.listed[0].count >= most) {
      const Partner unseen{most, static_cast<int32_t>(begin + size)};
      if (begin + size < n && unseen.better_than(best.next)) best.next = unseen;
      return begin + size;
    }
  }
  return n;
}

}  // namespace

void PairMerger::add_item(int32_t rows) {
  const int64_t item = static_cast<int64_t>(count_.size());
  count_.push_back(rows);
  partners_.emplace_back();
  forget(partners_.back());
  partners_.back().next = {rows, 0};  // until it is scanned
  shared_.push_back(0);
  if (item % kBlock == 0) planes_.resize(planes_.size() + kBlock * words_);
  copy_to_planes(static_cast<int32_t>(item));
}

void PairMerger::copy_to_planes(int32_t item) {
  uint64_t *block = planes_.data() + item / kBlock * kBlock * words_ + item % kBlock;
  for (int64_t w = 0; w < words_; ++w) block[w * kBlock] = bits_[item * words_ + w];
}

template <class Body>
void PairMerger::each_row(int64_t item, const Body &body) const {
  for (int64_t w = 0; w < words_; ++w)
    for (uint64_t left = bits_[item * words_ + w]; left; left &= left - 1)
      body(64 * w + __builtin_ctzll(left));
}

void PairMerger::fill_rows() {
  const int64_t items = static_cast<int64_t>(count_.size());
  row_begin_.assign(64 * words_ + 1, 0);
  for (int64_t row = 0; row < 64 * words_; ++row)
    row_begin_[row + 1] = row_begin_[row] + row_length_[row];
  row_items_.resize(row_begin_.back());
  std::vector<int64_t> end(row_begin_);
  for (int64_t i = 0; i < items; ++i)
    each_row(i, [&](int64_t row) { row_items_[end[row]++] = static_cast<int32_t>(i); });
}

// Where both are, the pair goes and what it became, which has the largest number, comes.
void PairMerger::replace_in_rows(const Merge &merge, int32_t merged) {
  each_row(merged, [&](int64_t row) {
    const int64_t length = row_length_[row]--;
    if (row_items_.empty()) return;
    int32_t *const begin = row_items_.data() + row_begin_[row], *const end = begin + length;
    int32_t *const first = std::lower_bound(begin, end, merge.first);
    int32_t *const second = std::lower_bound(first, end, merge.second);
    std::move(first + 1, second, first);
    std::move(second + 1, end, second - 1);
    end[-2] = merged;
  });
}

// The best partners of lower number, found by walking the rows of an item twice.
void PairMerger::scan_rows(int32_t second, Partners &best) {
  forget(best);
  if (row_items_.empty()) fill_rows();
  auto each_lower = [&](auto body) {
    each_row(second, [&](int64_t row) {
      for (const int32_t *item = row_items_.data() + row_begin_[row]; *item != second; ++item)
        body(*item);
    });
  };
  uint16_t *const shared = shared_.data();
  each_lower([&](int32_t item) { ++shared[item]; });
  each_lower([&](int32_t item) {
    const Partner partner{shared[item], item};
    shared[item] = 0;
    if (partner.count > 1 && partner.better_than(best.next)) insert(partner, best);
  });
}

// The best partner of lower number, found by counting all: by rows where these are short.
Merge PairMerger::scan_partners(int32_t second) {
  Partners &partners = partners_[second];
  const Count &counts = count_in_use();
  const uint64_t *own = bits_.data() + second * words_;
  int64_t steps = 0, used = 0;
  for (int64_t w = 0; w < words_; ++w) used += own[w] != 0;
  each_row(second, [&](int64_t row) { steps += row_length_[row]; });
  const int64_t by_rows = kWordsPerStep * steps, by_words = used * second;
  if (by_rows < by_words) {
    scan_rows(second, partners);
    work_done_ += by_rows;
  } else {
    work_done_ +=
        used * scan(counts, planes_.data(), own, words_, second, count_[second], partners);
  }
  return {partners.listed[0].count, partners.listed[0].item, second};
}

// The same, found by counting those listed where that is enough.
Merge PairMerger::best_partner(int32_t second) {
  if (count_[second] < 2) return {0, 0, second};
  Partners &partners = partners_[second];
  const Count &counts = count_in_use();
  const uint64_t *own = bits_.data() + second * words_;
  if (partners.next.count > count_[second]) partners.next = {count_[second], 0};
  Partner best = kNobody;
  for (Partner &partner : partners.listed) {
    if (partner.count < 2) continue;
    partner.count =
        static_cast<int32_t>(counts.common(bits_.data() + partner.item * words_, own, words_));
    work_done_ += words_;
    if (partner.better_than(best)) best = partner;
  }
  if (partners.next.better_than(best)) return scan_partners(second);
  return {best.count, best.item, second};
}

std::vector<Merge> PairMerger::run(int64_t candidates, int64_t capacity, int64_t work) {
  const Count &counts = count_in_use();
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
  row_length_.assign(64 * words_, 0);
  for (int64_t i = 0; i < candidates; ++i) each_row(i, [&](int64_t row) { ++row_length_[row]; });
  // An item is scanned when its rows, which bound what it shares, are as many as the largest
  // redundancy there is: many items have lost theirs by then.
  std::vector<int32_t> waiting(std::max<int64_t>(candidates - 1, 0));
  std::iota(waiting.begin(), waiting.end(), 1);  // nothing is lower than item 0
  std::stable_sort(waiting.begin(), waiting.end(),
                   [this](int32_t a, int32_t b) { return count_[a] > count_[b]; });
  std::vector<int32_t> bound(count_);
  size_t next = 0;
  while (static_cast<int64_t>(merges.size()) < capacity && work_done_ < work) {
    keep_pace();
    if (next < waiting.size() &&
        (queue.empty() || bound[waiting[next]] >= queue.top().redundancy)) {
      const int32_t item = waiting[next++];
      if (count_[item] == bound[item]) push(scan_partners(item));
      else push({count_[item], 0, item});
      continue;
    }
    if (queue.empty()) break;
    const Merge top = queue.top();
    queue.pop();
    uint64_t *first = bits_.data() + top.first * words_;
    uint64_t *second = bits_.data() + top.second * words_;
    work_done_ += words_;
    // Counts of a pair only fall, so an entry that still holds is the largest of all.
    if (counts.common(first, second, words_) != top.redundancy) {
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
    replace_in_rows(top, merged);
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
