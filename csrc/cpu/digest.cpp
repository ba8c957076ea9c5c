// Digesting a CPU tensor.
#include "../digest.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <atomic>

#include "../ops.h"
#include "cpu.h"

namespace xinit {
namespace {

// Of the elements [begin, end) of a window, counted row by row.
template <class T>
Digest digest_range(const Window& window, const T* data, DigestKey key, int64_t begin, int64_t end) {
  Digest sum;
  while (begin < end) {
    const int64_t row = begin / window.run, column = begin % window.run;
    const int64_t count = std::min(window.run - column, end - begin);
    const Row at = row_at(window, static_cast<uint64_t>(row));
    const T* element = data + at.offset + column * window.run_stride;
    const uint64_t index = at.start + static_cast<uint64_t>(column);
    for (int64_t i = 0; i < count; ++i, element += window.run_stride)
      sum += digest_element(key, index + static_cast<uint64_t>(i), *element);
    begin += count;
  }
  return sum;
}

}  // namespace

at::Tensor digest_cpu(const at::Tensor& self, const std::vector<Placed>& windows, const Key& key) {
  constexpr int64_t kGrain = 32768;  // elements: below, one thread is faster
  std::atomic<uint64_t> low{0}, high{0};
  with_bits_of(dtype_of(self), [&](auto bits) {
    using Bits = decltype(bits);
    const Bits* const data = static_cast<const Bits*>(self.const_data_ptr());
    const DigestKey digest = digest_key(key, dtype_of(self));
    for (const Placed& placed : windows)
      parallel_for(0, placed.window.rows * placed.window.run, kGrain, [&](int64_t begin, int64_t end) {
        const Digest sum = digest_range(placed.window, data + placed.offset, digest, begin, end);
        low += sum.low;
        high += sum.high;
      });
  });
  return at::tensor({static_cast<int64_t>(low), static_cast<int64_t>(high)}, at::kLong);
}

}  // namespace xinit
