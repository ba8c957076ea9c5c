// Filling a CPU tensor: the instruction set is chosen, the units are shared out among the threads.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <pthread.h>

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
};

// As ATen reports it, so that ATEN_CPU_CAPABILITY steers xinit too.
const Isa& isa() {
  static const Isa chosen = [] {
#if defined(__x86_64__)
    const std::string capability = at::get_cpu_capability();
    if (__builtin_cpu_supports("f16c")) {
      if (capability == "AVX512") return Isa{"avx512", fill_avx512};
      if (capability == "AVX2") return Isa{"avx2", fill_avx2};
    }
#endif
    return Isa{"baseline", fill_baseline};
  }();
  return chosen;
}

// OpenMP's threads do not survive a fork, and a child that waits for them hangs: it fills on one thread.
std::atomic<bool> in_forked_child{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { in_forked_child = true; });

Key take_key(const Source& source) {
  if (source.key) return *source.key;
  auto* generator =
      at::get_generator_or_default<at::CPUGeneratorImpl>(source.generator, at::detail::getDefaultCPUGenerator());
  const std::lock_guard<std::mutex> lock(generator->mutex_);
  return {generator->random64(), 0};
}

void fill_cpu(const at::Tensor& self, const Distribution& distribution, const std::vector<Placed>& windows,
              const Source& source) {
  constexpr int64_t kGrain = 8192;  // units, of up to four elements: below, one thread is faster
  const Key key = take_key(source);
  char* const data = static_cast<char*>(self.mutable_data_ptr());
  for (const Placed& placed : windows) {
    const Fill job{data + placed.offset * static_cast<int64_t>(self.element_size()),
                   dtype_of(self),
                   key.stream,
                   schedule(key.seed),
                   distribution,
                   placed.window};
    const auto fill = [&](int64_t begin, int64_t end) {
      const FloatEnvironment environment;
      isa().fill(job, static_cast<uint64_t>(begin), static_cast<uint64_t>(end));
    };
    const int64_t units = static_cast<int64_t>(placed.window.units());
    if (in_forked_child)
      fill(0, units);
    else
      at::parallel_for(0, units, kGrain, fill);
  }
}

}  // namespace

const char* cpu_isa() { return isa().name; }

TORCH_LIBRARY_IMPL(xinit, CPU, m) { register_ops(m, fill_cpu); }

}  // namespace xinit
