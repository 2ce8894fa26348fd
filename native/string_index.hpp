// The distinct strings of a column in the order of their bytes. Sorted strings are a trie without nodes: what begins with a
// prefix is a range, and a byte more narrows it by two binary searches. So an index of a million strings is three arrays.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace vglm {

// String i lies at data[offsets[i]] to data[offsets[i + 1]].
struct StringsView {
  std::span<const uint8_t> data;
  std::span<const int64_t> offsets;

  size_t size() const { return offsets.size() - 1; }
  std::string_view operator[](size_t i) const {
    return {(const char*)data.data() + offsets[i], (size_t)(offsets[i + 1] - offsets[i])};
  }
};

// Items are the places of a column, groups its distinct strings, numbered in the order of their bytes. Empty strings and
// items that are left out are in no group.
class StringIndex {
 public:
  // `left_out` [N] may be empty. The view's arrays must outlive the index.
  StringIndex(StringsView strings, std::span<const uint8_t> left_out);
  // The same index, made from that of an earlier column: keys (ascending, distinct) say which items are the same.
  StringIndex(const StringIndex& before, StringsView before_keys, StringsView strings, StringsView keys,
              std::span<const uint8_t> left_out);

  int32_t num_items() const { return (int32_t)group_.size(); }
  int32_t num_groups() const { return (int32_t)start_.size() - 1; }
  int32_t group_of(int32_t item) const { return group_[(size_t)item]; }  // -1: none
  std::string_view text(int32_t group) const { return strings_[(size_t)order_[(size_t)start_[(size_t)group]]]; }
  std::span<const int32_t> items(int32_t group) const {  // ascending
    return std::span(order_).subspan((size_t)start_[(size_t)group], (size_t)(start_[(size_t)group + 1] - start_[(size_t)group]));
  }
  int32_t find(std::string_view text) const;  // the group, or -1
  // Items that had to be sorted: all of them, or those that an earlier index did not know.
  int64_t sorted_afresh() const { return sorted_afresh_; }
  size_t bytes() const { return 4 * (order_.size() + start_.size() + group_.size()); }

 private:
  bool is_left_out(int32_t item) const { return strings_[(size_t)item].empty() || (!left_out_.empty() && left_out_[(size_t)item]); }
  void make_groups(std::span<const int32_t> known_group);

  StringsView strings_;
  std::span<const uint8_t> left_out_;  // used while it is built
  std::vector<int32_t> order_;         // items by (string, item)
  std::vector<int32_t> start_{0};      // [groups + 1] in order_
  std::vector<int32_t> group_;         // [N]
  int64_t sorted_afresh_ = 0;
};

}  // namespace vglm
