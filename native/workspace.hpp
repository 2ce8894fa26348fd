// Memory that a forward pass works in; grown when a larger batch comes, kept between steps.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

#include "kernels.hpp"

namespace vglm {

constexpr int kRowSlack = 32;  // readable rows past the last one: tiles are read in sixteens

template <class T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Buffer(Buffer&& o) noexcept : data_(o.data_), size_(o.size_) { o.data_ = nullptr; o.size_ = 0; }

  T* reserve(int64_t n) {
    if (n > size_) {
      free(data_);
      data_ = nullptr;
      size_ = 0;
      void* p = nullptr;
      if (posix_memalign(&p, 64, (size_t)n * sizeof(T))) throw std::bad_alloc();
      __builtin_memset(p, 0, (size_t)n * sizeof(T));
      data_ = (T*)p;
      size_ = n;
    }
    return data_;
  }
  T* get() const { return data_; }
  int64_t bytes() const { return size_ * (int64_t)sizeof(T); }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

// Rows of activations for matrices of one K.
struct ActivationBuffer {
  Buffer<uint16_t> bf16;
  Buffer<int8_t> int8;
  Buffer<float> scale, group_sum;
  Buffer<int32_t> sum;

  Activations reserve(WeightType type, int64_t rows, int32_t k) {
    Activations a;
    a.k = a.stride = k;
    rows += kRowSlack;
    if (type == WeightType::bf16) {
      a.bf16 = bf16.reserve(rows * k);
      return a;
    }
    a.int8 = int8.reserve(rows * k);
    a.scale = scale.reserve(type == WeightType::int8 ? rows : rows * (k / 32));
    if (type == WeightType::int8)
      a.sum = sum.reserve(rows);
    else
      a.group_sum = group_sum.reserve(rows * (k / 32));
    return a;
  }
  // What goes into a matrix, with room for its low-rank part.
  Activations reserve(const Linear& w, int64_t rows) {
    Activations a = reserve(w.type, rows, w.k);
    a.k = w.inputs();
    return a;
  }
  int64_t bytes() const { return bf16.bytes() + int8.bytes() + scale.bytes() + group_sum.bytes() + sum.bytes(); }
};

// What one block of rows needs on its way through a layer.
struct RowBuffers {
  ActivationBuffer hidden_buffer, attention_buffer, mlp_buffer;
  Buffer<float> qkv, attention, residual, low_rank;
  Buffer<uint16_t> mlp;
  int64_t bytes() const {
    return hidden_buffer.bytes() + attention_buffer.bytes() + mlp_buffer.bytes() + qkv.bytes() + attention.bytes() +
           residual.bytes() + low_rank.bytes() + mlp.bytes();
  }
};

}  // namespace vglm
