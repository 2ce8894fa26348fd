// numpy arrays as the bindings receive them: contiguous, in memory, of one type.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>

namespace vglm {

template <class T, int Dimensions = 1>
using Array = nanobind::ndarray<const T, nanobind::ndim<Dimensions>, nanobind::c_contig, nanobind::device::cpu>;
template <class T, int Dimensions>
using WritableArray = nanobind::ndarray<T, nanobind::ndim<Dimensions>, nanobind::c_contig, nanobind::device::cpu>;
using Bytes = Array<uint8_t>;
using Ints = Array<int32_t>;
using Longs = Array<int64_t>;
using Doubles = Array<double>;

template <class T>
std::span<const T> view(const Array<T>& array) {
  return {array.data(), array.shape(0)};
}

}  // namespace vglm
