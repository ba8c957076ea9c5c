// Digesting a CPU tensor.
#include "../digest.h"

#include <ATen/ops/tensor.h>

#include <atomic>

#include "../ops.h"
#include "cpu.h"

namespace xinit {

at::Tensor digest_cpu(const at::Tensor& self, const std::vector<Placed>& windows, const DigestKey& key) {
  constexpr int64_t kGrain = 32768;  // elements: below, one thread is faster
  std::atomic<uint64_t> low{0}, high{0};
  const DigestRange range = digest_of_isa();
  for (const Placed& placed : windows) {
    const char* const data = static_cast<const char*>(self.const_data_ptr()) + placed.offset * size_of(dtype_of(self));
    const DigestJob job{data, dtype_of(self), key, placed.window};
    parallel_for(0, placed.window.rows * placed.window.run, kGrain, [&](int64_t begin, int64_t end) {
      const Digest sum = range(job, begin, end);
      low += sum.low;
      high += sum.high;
    });
  }
  return at::tensor({static_cast<int64_t>(low), static_cast<int64_t>(high)}, at::kLong);
}

}  // namespace xinit
