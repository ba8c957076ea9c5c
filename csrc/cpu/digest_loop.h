// The CPU's digest, compiled once for each instruction set. The namespace has no name, as in vector_lanes.h.
#pragma once

#include <algorithm>

#include "../digest.h"

namespace xinit {

// What is digested: the element at the window's origin, and on.
struct DigestJob {
  const void* data;
  Dtype dtype;
  DigestKey key;
  Window window;
};

namespace {

// A plain loop, of which the compiler makes vectors of 64-bit lanes, each with sums of its own, where it multiplies
// these fast enough: for AVX-512 and AVX2. It would not see that the index times a constant is a sum too.
template <class T>
XINIT_HD Digest digest_run(DigestKey key, uint64_t start, const T* data, int64_t stride, int64_t count) {
  Digest sum;
  uint64_t weyl = digest_weyl(key, start);
  for (int64_t i = 0; i < count; ++i, weyl += kDigestStep) sum += digest_hash(key, weyl, data[i * stride]);
  return sum;
}

// Of the elements [begin, end) of a window, counted row by row.
template <class T>
Digest digest_rows(const DigestJob& job, int64_t begin, int64_t end) {
  const Window& window = job.window;
  Digest sum;
  while (begin < end) {
    const int64_t row = begin / window.run, column = begin % window.run;
    const int64_t count = std::min(window.run - column, end - begin), stride = window.run_stride;
    const Row at = row_at(window, static_cast<uint64_t>(row));
    const T* const data = static_cast<const T*>(job.data) + at.offset + column * stride;
    const uint64_t start = at.start + static_cast<uint64_t>(column);
    sum += stride == 1 ? digest_run(job.key, start, data, 1, count) : digest_run(job.key, start, data, stride, count);
    begin += count;
  }
  return sum;
}

[[maybe_unused]] Digest digest_range(const DigestJob& job, int64_t begin, int64_t end) {
  return with_bits_of(job.dtype, [&](auto bits) { return digest_rows<decltype(bits)>(job, begin, end); });
}

}  // namespace

// One for each instruction set; cpu/fill.cpp chooses.
using DigestRange = Digest (*)(const DigestJob& job, int64_t begin, int64_t end);
Digest digest_baseline(const DigestJob& job, int64_t begin, int64_t end);
Digest digest_avx2(const DigestJob& job, int64_t begin, int64_t end);
Digest digest_avx512(const DigestJob& job, int64_t begin, int64_t end);

}  // namespace xinit
