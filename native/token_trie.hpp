// The tokens of a vocabulary as a trie over their bytes. Children of a node are consecutive and ascend by byte.
#pragma once
#include <array>
#include <bitset>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "string_index.hpp"

namespace vglm {

using ByteSet = std::bitset<256>;

class TokenTrie {
 public:
  // tokens[i] are the bytes of token ids[i]; empty ones are left out. `ends` are the tokens that end a text.
  TokenTrie(StringsView tokens, std::span<const int32_t> ids, std::span<const int32_t> ends, int32_t vocab_size);

  static constexpr int32_t kRoot = 0;
  int32_t vocab_size() const { return vocab_size_; }
  size_t words() const { return ((size_t)vocab_size_ + 31) / 32; }  // of a mask
  int32_t num_nodes() const { return (int32_t)nodes_.size() - 1; }
  int32_t first_child(int32_t node) const { return nodes_[(size_t)node].first_child; }
  int32_t end_child(int32_t node) const { return nodes_[(size_t)node + 1].first_child; }
  uint8_t byte(int32_t node) const { return byte_[(size_t)node]; }
  int32_t parent(int32_t node) const { return parent_[(size_t)node]; }
  // The child with this byte, or -1.
  int32_t child(int32_t node, uint8_t byte) const;
  // The first child from `from` on whose byte is not less.
  int32_t child_from(int32_t from, int32_t end, uint8_t byte) const;
  std::span<const int32_t> tokens(int32_t node) const {
    const size_t begin = (size_t)nodes_[(size_t)node].first_token;
    return std::span(tokens_).subspan(begin, (size_t)nodes_[(size_t)node + 1].first_token - begin);
  }
  // All nodes below the root that are reached by this byte.
  const std::vector<int32_t>& reached_by(uint8_t byte) const { return reached_by_[byte]; }
  std::string_view bytes_of(int32_t token) const;  // empty: not in the trie
  std::span<const int32_t> ends() const { return ends_; }
  bool is_end(int32_t token) const;
  size_t longest() const { return longest_; }

 private:
  struct Node {
    int32_t first_child, first_token;
  };
  void grow(StringsView tokens, std::span<const int32_t> ids, const std::vector<int32_t>& order);

  int32_t vocab_size_;
  std::vector<Node> nodes_;  // and one more that ends the last
  std::vector<uint8_t> byte_;
  std::vector<int32_t> parent_, tokens_, ends_;
  std::array<std::vector<int32_t>, 256> reached_by_;
  std::vector<uint8_t> data_;
  std::vector<int64_t> place_;   // [vocab] in data_, -1: none
  std::vector<int32_t> length_;  // [vocab]
  size_t longest_ = 0;
};

}  // namespace vglm
