#include "kv_cache.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace vglm {

KVCache::KVCache(const KVLayout& layout, int64_t num_blocks)
    : layout_(layout), num_blocks_(num_blocks), block_bytes_(layout.block_bytes()) {
  if (layout.layers < 1 || layout.layers > 1024 || layout.kv_heads < 1 || layout.kv_heads > 65536 ||
      layout.head_dim < 16 || layout.head_dim > 512 || layout.head_dim % 16)
    throw std::invalid_argument("KV cache: layers must be 1 to 1024, heads 1 to 65536, head_dim a multiple of 16 up to 512");
  if (layout.block_size < kTokenTile || layout.block_size > kChunk || kChunk % layout.block_size)
    throw std::invalid_argument("KV cache: block_size must be 16, 32, 64, 128 or 256");
  if (num_blocks < 1 || num_blocks > INT32_MAX || block_bytes_ > (int64_t(1) << 46) / num_blocks)
    throw std::invalid_argument("KV cache: num_blocks is out of range");
  mapped_ = (size_t)(num_blocks * block_bytes_);
  void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  base_ = (uint8_t*)p;
  madvise(p, mapped_, MADV_HUGEPAGE);  // attention reads a few KB here and there: small pages would miss the TLB each time
}

KVCache::~KVCache() { munmap(base_, mapped_); }

void KVCache::check(int64_t id) const {
  if (id < 0 || id >= num_blocks_)
    throw std::out_of_range("KV cache: block " + std::to_string(id) + " of " + std::to_string(num_blocks_));
}

void KVCache::copy(const int32_t* from, const int32_t* to, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    check(from[i]);
    check(to[i]);
  }
  for (int64_t i = 0; i < n; i++)
    if (from[i] != to[i]) memcpy(block(to[i]), block(from[i]), (size_t)block_bytes_);
}

void KVCache::read(const int32_t* blocks, int64_t n, uint8_t* out) const {
  for (int64_t i = 0; i < n; i++) check(blocks[i]);
  for (int64_t i = 0; i < n; i++) memcpy(out + i * block_bytes_, block(blocks[i]), (size_t)block_bytes_);
}

void KVCache::write(const int32_t* blocks, int64_t n, const uint8_t* data) {
  for (int64_t i = 0; i < n; i++) check(blocks[i]);
  for (int64_t i = 0; i < n; i++) memcpy(block(blocks[i]), data + i * block_bytes_, (size_t)block_bytes_);
}

void KVCache::release(const int32_t* blocks, int64_t n) {
  std::vector<int32_t> sorted(blocks, blocks + n);
  std::sort(sorted.begin(), sorted.end());
  for (int32_t id : sorted) check(id);
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  for (size_t i = 0; i < sorted.size();) {
    size_t j = i + 1;
    while (j < sorted.size() && sorted[j] <= sorted[j - 1] + 1) j++;
    uintptr_t begin = ((uintptr_t)block(sorted[i]) + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)block(sorted[j - 1]) + (uintptr_t)block_bytes_) / page * page;
    if (begin < end) madvise((void*)begin, end - begin, MADV_DONTNEED);
    i = j;
  }
}

int64_t KVCache::resident_bytes() const {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const size_t pages = (mapped_ + page - 1) / page, step = 1 << 16;
  std::vector<unsigned char> present(step);
  int64_t resident = 0;
  for (size_t at = 0; at < pages; at += step) {
    const size_t count = std::min(step, pages - at);
    if (mincore(base_ + at * page, count * page, present.data())) return -1;
    for (size_t i = 0; i < count; i++) resident += present[i] & 1;
  }
  return resident * (int64_t)page;
}

}  // namespace vglm
