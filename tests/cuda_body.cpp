// Runs the CUDA threads' body on the host, for many launch shapes, sizes, alignments and windows, and compares every
// byte with the CPU's fill. Exits 1 at the first difference. test_cuda_body.py compiles it, plainly and under
// sanitizers.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../csrc/cpu/digest_loop.h"
#include "../csrc/cpu/fill_loop.h"
#include "../csrc/cuda/fill_body.h"
#include "../csrc/digest.h"

using namespace xinit;

namespace {

struct Shape {
  uint64_t blocks, threads;
};
constexpr Shape kShapes[] = {{1, 1}, {1, 33}, {7, 96}, {132, 256}};
constexpr int64_t kGuard = 64;
constexpr const char* kKinds[] = {"uniform", "uniform clamped", "normal", "truncated", "truncated tail"};
constexpr const char* kDtypeNames[] = {"float32",       "float64",     "float16",         "bfloat16",
                                       "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"};
constexpr Dtype kAll[] = {Dtype::kFloat,        Dtype::kDouble,     Dtype::kHalf,           Dtype::kBFloat16,
                          Dtype::kFloat8E4M3FN, Dtype::kFloat8E5M2, Dtype::kFloat8E4M3FNUZ, Dtype::kFloat8E5M2FNUZ};

long compared = 0, groups = 0;
uint64_t digest = 14695981039346656037u;  // FNV-1a over all that the CPU filled

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
  const int64_t size = size_of(job.dtype);
  std::vector<char> buffer(static_cast<size_t>((extent + shift) * size + 2 * kGuard), 0x5a);
  char* aligned = buffer.data() + (16 - reinterpret_cast<uintptr_t>(buffer.data()) % 16) % 16 + 32;
  job.out = aligned + shift * size;
  f(job);
  return std::vector<char>(aligned - 32, aligned + (extent + shift) * size);
}

void run_threads(const CudaFill& job, Shape shape, bool backwards) {
  const uint64_t count = shape.blocks * shape.threads;
  const Schedule keys = schedule(job.fill.key.seed);
  specialize(job.fill.distribution.kind, job.fill.dtype, [&](auto kind, auto dtype) {
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t thread = backwards ? count - 1 - i : i;
      if (job.groups > 0)
        contiguous_thread<kind.value, dtype.value>(job, keys, thread, count);
      else
        window_thread<kind.value, dtype.value>(job, keys, thread, count);
    }
  });
}

void fail(const char* how, const Fill& fill, int kind, Shape shape) {
  std::printf("%s differs: %s %s base %llu run %lld launch %llux%llu\n", how, kKinds[kind],
              kDtypeNames[static_cast<int>(fill.dtype)], static_cast<unsigned long long>(fill.window.base),
              static_cast<long long>(fill.window.run), static_cast<unsigned long long>(shape.blocks),
              static_cast<unsigned long long>(shape.threads));
  std::exit(1);
}

void compare(uint64_t base, const std::vector<Dim>& dims, int64_t extent, int64_t shift, int kind, Dtype dtype) {
  const Key key{0x123456789abcdef0, 0x3edcba9876543210};  // a generator's stream has 62 bits
  for (const Placed& placed : make_windows(base, dims)) {
    const Fill fill{nullptr, dtype, key, distribution(kind, dtype), placed.window};
    const auto expected =
        filled(fill, extent, shift, [](const Fill& job) { fill_baseline(job, 0, job.window.units()); });
    for (const char byte : expected) digest = (digest ^ static_cast<unsigned char>(byte)) * 1099511628211u;
    const auto run = [&](Shape shape, bool captured) {
      return filled(fill, extent, shift, [&](const Fill& job) {
        CudaFill cuda{};
        cuda.fill = job;
        const int64_t at_replay[2] = {static_cast<int64_t>(key.seed), static_cast<int64_t>(key.stream * 4 - 8)};
        if (captured) {
          cuda.fill.key = {0, 0};
          cuda.seed = &at_replay[0];
          cuda.offset = &at_replay[1];
          cuda.offset_in_graph = 8;
        } else {
          share_out(cuda, size_of(dtype));
        }
        groups += cuda.groups > 0;
        ++compared;
        run_threads(cuda, shape, shape.blocks % 2 == 1);
      });
    };
    for (const Shape& shape : kShapes)
      if ((base == 0 || extent > 1000 || shape.blocks < 100) && run(shape, false) != expected)
        fail("launch", fill, kind, shape);
    if (run(kShapes[1], true) != expected) fail("captured launch", fill, kind, kShapes[1]);
  }
}

// Fills of all kinds, dtypes and sizes in one launch, as kernels.cuh's fill_many runs it.
void compare_many() {
  constexpr uint32_t kThreads = 64;
  std::vector<std::vector<char>> expected, found;
  std::vector<CudaFill> jobs;
  std::vector<uint32_t> first_block{0};
  for (int i = 0; i < 200; ++i) {
    const Dtype dtype = kAll[i % kDtypes];
    const int64_t count = i % 7 == 0 ? 50000 + i : 1 + 13 * i % 300, size = size_of(dtype);
    expected.emplace_back(count * size);
    found.emplace_back(count * size);
    Fill fill{expected[i].data(),
              dtype,
              {99, static_cast<uint64_t>(i)},
              distribution(i / 8 % 5, dtype),
              make_windows(static_cast<uint64_t>(i % 3), {{count, 1, 1}})[0].window};
    fill_baseline(fill, 0, fill.window.units());
    CudaFill job{};
    job.fill = fill;
    job.fill.out = found[i].data();
    share_out(job, size);
    jobs.push_back(job);
    const uint64_t work = job.groups > 0 ? job.groups : fill.window.units();
    first_block.push_back(first_block.back() + static_cast<uint32_t>((work + kGroupsPerBlock - 1) / kGroupsPerBlock));
  }
  const Schedule keys = schedule(99);
  for (uint32_t block = 0; block < first_block.back(); ++block) {
    const uint32_t i = fill_of_block(first_block.data(), static_cast<uint32_t>(jobs.size()), block);
    for (uint64_t thread = 0; thread < kThreads; ++thread)
      specialize(jobs[i].fill.distribution.kind, jobs[i].fill.dtype,
                 ContiguousThread{jobs[i], keys, (block - first_block[i]) * kThreads + thread,
                                  static_cast<uint64_t>(first_block[i + 1] - first_block[i]) * kThreads});
  }
  for (size_t i = 0; i < jobs.size(); ++i)
    if (expected[i] != found[i])
      fail("launch of many", jobs[i].fill, static_cast<int>(i / 8 % 5), {first_block.back(), kThreads});
}

// The digest of a window, by any number of threads, or by the CPU's loop in any parts, is the sum over its elements.
void compare_digests(Dtype dtype, const std::vector<Dim>& dims) {
  with_bits_of(dtype, [&](auto zero) {
    std::vector<decltype(zero)> data(3000);
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<decltype(zero)>(i * 0x9e3779b97f4a7c15u);
    const DigestKey key = digest_key({5, 6}, dtype);
    const Window window = make_windows(3, dims)[0].window;
    Digest expected;
    for (int64_t row = 0; row < window.rows; ++row) {
      const Row at = row_at(window, static_cast<uint64_t>(row));
      for (int64_t i = 0; i < window.run; ++i)
        expected += digest_element(key, at.start + static_cast<uint64_t>(i), data[at.offset + i * window.run_stride]);
    }
    const auto compare = [&](const char* how, uint64_t parts, Digest sum) {
      if (sum.low == expected.low && sum.high == expected.high) return;
      std::printf("digest differs: %s, %llu parts\n", how, static_cast<unsigned long long>(parts));
      std::exit(1);
    };
    for (const uint64_t threads : {1, 33, 256, 10000}) {
      Digest sum;
      for (uint64_t thread = 0; thread < threads; ++thread)
        sum += digest_elements(window, data.data(), key, thread, threads);
      compare("threads", threads, sum);
    }
    const int64_t count = window.rows * window.run;
    for (const int64_t parts : {1, 7, 100}) {
      Digest sum;
      for (int64_t part = 0; part < parts; ++part)
        sum += digest_baseline({data.data(), dtype, key, window}, part * count / parts, (part + 1) * count / parts);
      compare("loop", static_cast<uint64_t>(parts), sum);
    }
  });
}

}  // namespace

int main() {
  compare_many();
  for (const Dtype dtype : kAll)
    for (const auto& dims : {std::vector<Dim>{{2500, 1, 1}}, {{50, 60, 77}, {40, 1, 1}}, {{7, 1, 9}, {9, 7, 1}}})
      compare_digests(dtype, dims);
  for (int kind = 0; kind < 5; ++kind)
    for (const Dtype dtype : kAll) {
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
  std::printf("%ld fills equal, %ld of them in groups, digest %016llx\n", compared, groups,
              static_cast<unsigned long long>(digest));
  return groups > 0 ? 0 : 1;
}
