// Filling a CPU tensor: the instruction set is chosen, the units are shared out among the threads.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Version.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "../float_environment.h"
#include "../ops.h"
#include "cpu.h"
#include "fill_loop.h"

namespace xinit {
namespace {

struct Isa {
  const char* name;
  FillUnits fill;
  DigestRange digest;
};

// As ATen reports it, so that ATEN_CPU_CAPABILITY steers xinit too.
const Isa& isa() {
  static const Isa chosen = [] {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (__builtin_cpu_supports("f16c")) {
      if (capability == "AVX512") return Isa{"avx512", fill_avx512, digest_avx512};
      if (capability == "AVX2") return Isa{"avx2", fill_avx2, digest_avx2};
    }
#endif
    return Isa{"baseline", fill_baseline, digest_baseline};
  }();
  return chosen;
}

std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

Key take_key(const Source& source) {
  if (source.key) return *source.key;
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(source.generator, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return {generator->random64(), 0};
}

// The units of all fills, one after the other, shared out among the threads: no fill waits for another's tail.
void fill_many_cpu(const at::Tensor&, const std::vector<Fill>& fills) {
  constexpr int64_t kGrain = 8192;  // units, of up to four elements: below, one thread is faster
  std::vector<int64_t> first{0};    // unit of each fill, and their number
  for (const Fill& fill : fills) first.push_back(first.back() + static_cast<int64_t>(fill.window.units()));
  const auto run = [&](int64_t begin, int64_t end) {
    const FloatEnvironment environment;
    auto at = std::upper_bound(first.begin(), first.end(), begin) - first.begin() - 1;
    for (; begin < end; ++at) {
      const int64_t stop = std::min(end, first[at + 1]);
      if (begin < stop)
        isa().fill(fills[at], static_cast<uint64_t>(begin - first[at]), static_cast<uint64_t>(stop - first[at]));
      begin = stop;
    }
  };
  parallel_for(0, first.back(), kGrain, run);
}

void fill_cpu(const at::Tensor& self, std::vector<Fill> fills, const Source& source) {
  const Key key = take_key(source);
  for (Fill& fill : fills) fill.key = key;
  fill_many_cpu(self, fills);
}

}  // namespace

const char* cpu_isa() { return isa().name; }
DigestRange digest_of_isa() { return isa().digest; }
bool in_forked_child() { return forked; }

TORCH_LIBRARY_IMPL(xinit, CPU, m) { register_ops(m, {fill_cpu, fill_many_cpu, digest_cpu}); }

}  // namespace xinit
