// The memory of the block pool: one mapping, reserved at its full size and committed by the system as blocks are touched.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels.hpp"

namespace vglm {

class KVCache {
 public:
  // Throws std::invalid_argument for shapes that cannot be, std::bad_alloc when the address space is not to be had.
  KVCache(const KVLayout& layout, int64_t num_blocks);
  ~KVCache();
  KVCache(const KVCache&) = delete;
  KVCache& operator=(const KVCache&) = delete;

  const KVLayout& layout() const { return layout_; }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t block_bytes() const { return block_bytes_; }
  uint8_t* block(int64_t id) const { return base_ + id * block_bytes_; }
  uint8_t* head(int64_t id, int layer, int kv_head) const {
    return block(id) + ((int64_t)layer * layout_.kv_heads + kv_head) * layout_.head_bytes();
  }

  void copy(const int32_t* from, const int32_t* to, int64_t n);
  // Whole blocks, block_bytes() each, one after the other, out of the pool and into it.
  void read(const int32_t* blocks, int64_t n, uint8_t* out) const;
  void write(const int32_t* blocks, int64_t n, const uint8_t* data);
  // Gives the pages that lie wholly inside the blocks back to the system; runs of neighbours are given back together.
  void release(const int32_t* blocks, int64_t n);
  int64_t resident_bytes() const;

 private:
  void check(int64_t id) const;

  KVLayout layout_;
  int64_t num_blocks_, block_bytes_;
  size_t mapped_;
  uint8_t* base_;
};

}  // namespace vglm
