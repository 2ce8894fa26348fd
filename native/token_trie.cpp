#include "token_trie.hpp"

#include <algorithm>
#include <numeric>

namespace vglm {

TokenTrie::TokenTrie(StringsView tokens, std::span<const int32_t> ids, std::span<const int32_t> ends, int32_t vocab_size)
    : vocab_size_(vocab_size), ends_(ends.begin(), ends.end()), place_((size_t)vocab_size, -1), length_((size_t)vocab_size) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < ids.size(); i++) {
    const std::string_view text = tokens[i];
    if (text.empty() || is_end(ids[i])) continue;
    order.push_back((int32_t)i);
    place_[(size_t)ids[i]] = (int64_t)data_.size();
    length_[(size_t)ids[i]] = (int32_t)text.size();
    data_.insert(data_.end(), text.begin(), text.end());
    longest_ = std::max(longest_, text.size());
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    const int compared = tokens[(size_t)a].compare(tokens[(size_t)b]);
    return compared != 0 ? compared < 0 : ids[(size_t)a] < ids[(size_t)b];
  });
  grow(tokens, ids, order);
}

// Breadth first, so that children are consecutive: node i stands for the tokens begin[i] to end[i] of the sorted ones.
void TokenTrie::grow(StringsView tokens, std::span<const int32_t> ids, const std::vector<int32_t>& order) {
  struct Range {
    size_t begin, end, depth;
  };
  std::vector<Range> ranges{{0, order.size(), 0}};
  byte_.push_back(0);
  parent_.push_back(-1);
  for (size_t node = 0; node < ranges.size(); node++) {
    auto [begin, end, depth] = ranges[node];
    nodes_.push_back({(int32_t)ranges.size(), (int32_t)tokens_.size()});
    while (begin < end && tokens[(size_t)order[begin]].size() == depth) tokens_.push_back(ids[(size_t)order[begin++]]);
    while (begin < end) {
      const uint8_t byte = (uint8_t)tokens[(size_t)order[begin]][depth];
      size_t stop = begin + 1;
      while (stop < end && (uint8_t)tokens[(size_t)order[stop]][depth] == byte) stop++;
      reached_by_[byte].push_back((int32_t)ranges.size());
      ranges.push_back({begin, stop, depth + 1});
      byte_.push_back(byte);
      parent_.push_back((int32_t)node);
      begin = stop;
    }
  }
  nodes_.push_back({(int32_t)ranges.size(), (int32_t)tokens_.size()});
}

int32_t TokenTrie::child_from(int32_t from, int32_t end, uint8_t byte) const {
  return (int32_t)(std::lower_bound(byte_.begin() + from, byte_.begin() + end, byte) - byte_.begin());
}

int32_t TokenTrie::child(int32_t node, uint8_t byte) const {
  const int32_t end = end_child(node), found = child_from(first_child(node), end, byte);
  return found < end && byte_[(size_t)found] == byte ? found : -1;
}

std::string_view TokenTrie::bytes_of(int32_t token) const {
  if (token < 0 || token >= vocab_size_ || place_[(size_t)token] < 0) return {};
  return {(const char*)data_.data() + place_[(size_t)token], (size_t)length_[(size_t)token]};
}

bool TokenTrie::is_end(int32_t token) const { return std::find(ends_.begin(), ends_.end(), token) != ends_.end(); }

}  // namespace vglm
