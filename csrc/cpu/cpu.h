// What the CPU's files share.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <vector>

#include "../fill.h"
#include "digest_loop.h"

namespace xinit {

at::Tensor digest_cpu(const at::Tensor& self, const std::vector<Placed>& windows, const DigestKey& key);

// The instruction set in use: avx512, avx2 or baseline; and its digest.
const char* cpu_isa();
DigestRange digest_of_isa();

// OpenMP's threads do not survive a fork, and a child that waits for them hangs: it runs on one thread.
bool in_forked_child();

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  if (in_forked_child())
    f(begin, end);
  else
    at::parallel_for(begin, end, grain, f);
}

}  // namespace xinit
