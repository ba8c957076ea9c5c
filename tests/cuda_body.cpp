// Runs the CUDA threads' body on the host, for many launch shapes, sizes, alignments and windows, and compares every
// byte with the CPU's fill. Exits 1 at the first difference. test_cuda_body.py compiles it, plainly and under
// sanitizers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../csrc/cpu/fill_loop.h"
#include "../csrc/cuda/fill_body.h"

using namespace xinit;

namespace {

struct Shape {
  uint64_t blocks, threads;
};
constexpr Shape kShapes[] = {{1, 1}, {1, 33}, {7, 96}, {132, 256}};
constexpr int64_t kGuard = 64;
constexpr size_t kSizes[] = {4, 8, 2, 2};
constexpr const char* kKinds[] = {"uniform", "uniform clamped", "normal", "truncated", "truncated tail"};
constexpr const char* kDtypes[] = {"float32", "float64", "float16", "bfloat16"};

long compared = 0, groups = 0;

Distribution distribution(int kind, Dtype dtype) {
  switch (kind) {
    case 0:
      return uniform(-4, 4 + 1e-3, dtype);  // unclamped in float32 and float64 alone
    case 1:
      return uniform(0.1, 0.7, dtype);
    case 2:
      return normal(0.5, 0.02);
    case 3:
      return truncated_normal(0.1, 1, -4, 5, dtype);
    default:
      return truncated_normal(0, 1, 7, 9, dtype);
  }
}

// One fill of a buffer of bytes, by f, between guard bytes that must stay.
template <class F>
std::vector<char> filled(Fill job, int64_t extent, int64_t shift, F f) {
  const int64_t size = static_cast<int64_t>(kSizes[static_cast<int>(job.dtype)]);
  std::vector<char> buffer(static_cast<size_t>((extent + shift) * size + 2 * kGuard), 0x5a);
  char* aligned = buffer.data() + (16 - reinterpret_cast<uintptr_t>(buffer.data()) % 16) % 16 + 32;
  job.out = aligned + shift * size;
  f(job);
  return std::vector<char>(aligned - 32, aligned + (extent + shift) * size);
}

void run_threads(CudaFill job, Shape shape, bool backwards) {
  const uint64_t count = shape.blocks * shape.threads;
  specialize(job.fill.distribution.kind, job.fill.dtype, [&](auto kind, auto dtype) {
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t thread = backwards ? count - 1 - i : i;
      if (job.groups > 0)
        contiguous_thread<kind.value, dtype.value>(job, thread, count);
      else
        window_thread<kind.value, dtype.value>(job, thread, count);
    }
  });
}

void compare(uint64_t base, const std::vector<Dim>& dims, int64_t extent, int64_t shift, int kind, Dtype dtype) {
  const uint64_t seed = 0x123456789abcdef0, stream = 0xfedcba9876543210;
  for (const Placed& placed : make_windows(base, dims)) {
    const Fill fill{nullptr, dtype, stream, schedule(seed), distribution(kind, dtype), placed.window};
    const auto expected =
        filled(fill, extent, shift, [&](const Fill& job) { fill_baseline(job, 0, job.window.units()); });
    for (const Shape& shape : kShapes)
      for (const bool captured : {false, true}) {
        if (captured && shape.threads != 33) continue;
        const auto found = filled(fill, extent, shift, [&](const Fill& job) {
          CudaFill cuda{};
          cuda.fill = job;
          int64_t at_replay[2];
          const uint64_t offset = stream * 4 - 8;
          std::memcpy(&at_replay[0], &seed, 8);
          std::memcpy(&at_replay[1], &offset, 8);
          if (captured) {
            cuda.fill.stream = 0;
            cuda.fill.keys = Schedule{};
            cuda.seed = &at_replay[0];
            cuda.offset = &at_replay[1];
            cuda.offset_in_graph = 8;
          } else {
            share_out(cuda, static_cast<int64_t>(kSizes[static_cast<int>(dtype)]));
          }
          groups += cuda.groups > 0;
          run_threads(cuda, shape, shape.blocks % 2 == 1);
        });
        ++compared;
        if (!captured && found != expected) {
          std::printf("differs: %s %s base %llu first dim %lld shift %lld launch %llux%llu\n", kKinds[kind],
                      kDtypes[static_cast<int>(dtype)], static_cast<unsigned long long>(base),
                      static_cast<long long>(dims[0].size), static_cast<long long>(shift),
                      static_cast<unsigned long long>(shape.blocks), static_cast<unsigned long long>(shape.threads));
          std::exit(1);
        }
        // A replay's stream is the offset div 4, which has 62 bits: compare with a fill of that stream.
        if (captured) {
          Fill same = fill;
          same.stream = (stream * 4) / 4;
          if (found !=
              filled(same, extent, shift, [&](const Fill& job) { fill_baseline(job, 0, job.window.units()); })) {
            std::printf("differs under capture: %s\n", kKinds[kind]);
            std::exit(1);
          }
        }
      }
  }
}

}  // namespace

int main() {
  for (int kind = 0; kind < 5; ++kind)
    for (const Dtype dtype : {Dtype::kFloat, Dtype::kDouble, Dtype::kHalf, Dtype::kBFloat16}) {
      for (const int64_t count : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64, 100, 1021, 4099})
        for (const uint64_t base : {0ull, 1ull, 6ull, (1ull << 34) - 3})
          for (const int64_t shift : {0, 1, 2, 4})
            if (count < 1000 || (base < 2 && shift < 2)) compare(base, {{count, 1, 1}}, count, shift, kind, dtype);
      // Columns of a wider tensor, a transposed one, every second element, rows with gaps.
      compare(5, {{6, 10, 33}, {10, 1, 1}}, 60, 0, kind, dtype);
      compare(0, {{7, 1, 9}, {9, 7, 1}}, 63, 1, kind, dtype);
      compare(2, {{21, 2, 1}}, 42, 0, kind, dtype);
      compare(3, {{4, 24, 12}, {3, 8, 4}, {4, 2, 1}}, 96, 0, kind, dtype);
      compare(0, {{13, 3, 2}}, 39, 0, kind, dtype);
    }
  std::printf("%ld fills equal, %ld of them in groups\n", compared, groups);
  return groups > 0 ? 0 : 1;
}
