#include "string_index.hpp"

#include <algorithm>
#include <cstring>

namespace vglm {
namespace {

// Eight bytes of a string from some depth on, as a number that sorts like them; `rest` counts them, 8 for 8 or more.
struct Entry {
  uint64_t chunk;
  int32_t item;
  uint8_t rest;

  bool same_chunk(const Entry& other) const { return chunk == other.chunk && rest == other.rest; }
};

void load(Entry& entry, std::string_view text, size_t depth) {
  const size_t rest = std::min<size_t>(8, text.size() - std::min(depth, text.size()));
  uint64_t chunk = 0;
  for (size_t i = 0; i < rest; i++) chunk |= (uint64_t)(uint8_t)text[depth + i] << (56 - 8 * i);
  entry.chunk = chunk;
  entry.rest = (uint8_t)rest;
}

// Sorts items by (string, item), eight bytes at a time: strings are read once per level, not once per comparison.
void sort_items(StringsView strings, std::vector<int32_t>& items) {
  std::vector<Entry> entries(items.size());
  for (size_t i = 0; i < items.size(); i++) entries[i].item = items[i];
  struct Range {
    size_t begin, end, depth;
  };
  std::vector<Range> waiting{{0, entries.size(), 0}};
  while (!waiting.empty()) {
    const Range range = waiting.back();
    waiting.pop_back();
    for (size_t i = range.begin; i < range.end; i++) load(entries[i], strings[(size_t)entries[i].item], range.depth);
    std::sort(entries.begin() + (int64_t)range.begin, entries.begin() + (int64_t)range.end, [](const Entry& a, const Entry& b) {
      if (a.chunk != b.chunk) return a.chunk < b.chunk;
      return a.rest != b.rest ? a.rest < b.rest : a.item < b.item;
    });
    for (size_t i = range.begin; i < range.end;) {
      size_t end = i + 1;
      while (end < range.end && entries[end].same_chunk(entries[i])) end++;
      if (end - i > 1 && entries[i].rest == 8) waiting.push_back({i, end, range.depth + 8});
      i = end;
    }
  }
  for (size_t i = 0; i < items.size(); i++) items[i] = entries[i].item;
}

// For each item of the earlier column its number in the new one, or -1 where its key or its string is no longer there.
std::vector<int32_t> match(StringsView old_keys, StringsView old_strings, StringsView keys, StringsView strings) {
  std::vector<int32_t> now(old_keys.size(), -1);
  for (size_t i = 0, k = 0; i < old_keys.size() && k < keys.size();) {
    const int order = old_keys[i].compare(keys[k]);
    if (order == 0 && old_strings[i] == strings[k]) now[i] = (int32_t)k;
    i += order <= 0;
    k += order >= 0;
  }
  return now;
}

}  // namespace

StringIndex::StringIndex(StringsView strings, std::span<const uint8_t> left_out) : strings_(strings), left_out_(left_out) {
  group_.resize(strings.size());
  order_.reserve(strings.size());
  for (int32_t item = 0; item < num_items(); item++)
    if (!is_left_out(item)) order_.push_back(item);
  sort_items(strings, order_);
  sorted_afresh_ = (int64_t)order_.size();
  make_groups({});
}

StringIndex::StringIndex(const StringIndex& before, StringsView before_keys, StringsView strings, StringsView keys,
                         std::span<const uint8_t> left_out)
    : strings_(strings), left_out_(left_out) {
  group_.assign(strings.size(), 0);
  const std::vector<int32_t> now = match(before_keys, before.strings_, keys, strings);
  std::vector<uint8_t> known(strings.size());
  std::vector<int32_t> kept, fresh, group_before(strings.size(), -1);
  kept.reserve(before.order_.size());
  for (int32_t old : before.order_) {
    const int32_t item = now[(size_t)old];
    if (item < 0 || is_left_out(item)) continue;
    known[(size_t)item] = 1;
    group_before[(size_t)item] = before.group_of(old);
    kept.push_back(item);  // keys ascend in both, so equal strings stay in the order of their items
  }
  for (int32_t item = 0; item < num_items(); item++)
    if (!known[(size_t)item] && !is_left_out(item)) fresh.push_back(item);
  if (fresh.size() > kept.size() / 8) {  // another column: sorting all of it is quicker than placing each
    *this = StringIndex(strings, left_out);
    return;
  }
  sort_items(strings, fresh);
  sorted_afresh_ = (int64_t)fresh.size();
  order_.reserve(kept.size() + fresh.size());
  auto from = kept.begin();
  for (int32_t item : fresh) {  // a search per new string: comparing all kept ones would read every string
    const auto place = std::lower_bound(from, kept.end(), item, [&](int32_t a, int32_t b) {
      const int order = strings_[(size_t)a].compare(strings_[(size_t)b]);
      return order != 0 ? order < 0 : a < b;
    });
    order_.insert(order_.end(), from, place);
    order_.push_back(item);
    from = place;
  }
  order_.insert(order_.end(), from, kept.end());
  make_groups(group_before);
}

// `known_group` [N] or empty: items with the same number from 0 on have the same string, with others another one.
void StringIndex::make_groups(std::span<const int32_t> known_group) {
  const auto same = [&](size_t a, size_t b) {
    if (!known_group.empty() && known_group[a] >= 0 && known_group[b] >= 0) return known_group[a] == known_group[b];
    return strings_[a] == strings_[b];
  };
  std::fill(group_.begin(), group_.end(), -1);
  start_.assign(1, 0);
  for (size_t i = 0; i < order_.size(); i++) {
    if (i && !same((size_t)order_[i], (size_t)order_[i - 1])) start_.push_back((int32_t)i);
    group_[(size_t)order_[i]] = (int32_t)start_.size() - 1;
  }
  if (!order_.empty()) start_.push_back((int32_t)order_.size());
  left_out_ = {};
}

int32_t StringIndex::find(std::string_view text) const {
  int32_t low = 0, high = num_groups();
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (this->text(middle) < text) low = middle + 1;
    else high = middle;
  }
  return low < num_groups() && this->text(low) == text ? low : -1;
}

}  // namespace vglm
