// Greedy pair merging (Algorithm 3 of the HAG paper; Paar's common-subexpression elimination) on
// items given as bit sets of rows.
#pragma once

#include <cstdint>
#include <vector>

namespace hag {

// A pair, and the number of rows that aggregate both. Merging takes the largest redundancy first,
// the smallest pair among equals.
struct Merge {
  int32_t redundancy;
  int32_t first;  // first < second; the intermediate gets the next free number
  int32_t second;

  bool operator<(const Merge &other) const {  // std::priority_queue puts the largest on top
    if (redundancy != other.redundancy) return redundancy < other.redundancy;
    if (first != other.first) return first > other.first;
    return second > other.second;
  }
};

// An item of lower number that some rows aggregate together with a given one.
struct Partner {
  int32_t count;  // of these rows
  int32_t item;

  bool better_than(const Partner &other) const {
    return count != other.count ? count > other.count : item < other.item;
  }
};

constexpr int kPartners = 7;

// The best partners of an item as they were when all were counted. Counts only fall, so the next
// best still bounds every partner that is not listed, and most entries need no new scan.
struct Partners {
  Partner listed[kPartners];
  Partner next;
};

// Items 0..n-1 and the rows that aggregate each. Merging takes, again and again, the pair with the
// largest redundancy (rows that aggregate both), the smallest pair among equals.
class PairMerger {
 public:
  // `bits` holds `words` words an item, `num_items` items; it grows by one item a merge.
  PairMerger(std::vector<uint64_t> &bits, int64_t words, int64_t num_items)
      : bits_(bits), words_(words), num_items_(num_items) {}

  // Merges while the redundancy exceeds 1, there are fewer than `capacity` intermediates and fewer
  // than `work` words have been compared. Pairs are formed among the first `candidates` items and
  // what comes of them.
  std::vector<Merge> run(int64_t candidates, int64_t capacity, int64_t work);

 private:
  void add_item(int32_t rows);
  void copy_to_planes(int32_t item);
  template <class Body>
  void each_row(int64_t item, const Body &body) const;
  void fill_rows();
  void replace_in_rows(const Merge &merge, int32_t merged);
  Merge scan_partners(int32_t second);
  void scan_rows(int32_t second, Partners &best);
  Merge best_partner(int32_t second);

  std::vector<uint64_t> &bits_;
  int64_t words_;
  int64_t num_items_;
  std::vector<int32_t> count_;      // rows of each item
  std::vector<Partners> partners_;  // of each item
  std::vector<uint64_t> planes_;    // the bits once more, as scans read them (pairs.cpp)
  // And once more, by row, from the first scan on that reads them so: items in increasing order. A
  // merge makes rows shorter, never longer.
  std::vector<int64_t> row_length_, row_begin_;
  std::vector<int32_t> row_items_;
  std::vector<uint16_t> shared_;  // by item: rows in common with the one that is scanned; 0 between
  int64_t work_done_ = 0;
};

}  // namespace hag
