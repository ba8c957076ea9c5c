#include "window.h"

#include <algorithm>

namespace xinit {
namespace {

// Outermost first; neighbours that step alike in memory and in logic become one.
std::vector<Dim> coalesce(std::vector<Dim> dims) {
  dims.erase(std::remove_if(dims.begin(), dims.end(), [](const Dim& d) { return d.size == 1; }), dims.end());
  std::stable_sort(dims.begin(), dims.end(), [](const Dim& x, const Dim& y) { return x.stride > y.stride; });
  std::vector<Dim> merged;
  for (const Dim& d : dims) {
    if (!merged.empty()) {
      Dim& outer = merged.back();
      if (outer.stride == d.stride * d.size && outer.step == d.step * static_cast<uint64_t>(d.size)) {
        outer = {outer.size * d.size, d.stride, d.step};
        continue;
      }
    }
    merged.push_back(d);
  }
  return merged;
}

void place(uint64_t base, int64_t offset, const Dim& run, const std::vector<Dim>& rows, std::vector<Placed>& out) {
  if (rows.size() > Window::kMaxDims) {
    const Dim outer = rows.front();
    const std::vector<Dim> inner(rows.begin() + 1, rows.end());
    for (int64_t i = 0; i < outer.size; ++i)
      place(base + static_cast<uint64_t>(i) * outer.step, offset + i * outer.stride, run, inner, out);
    return;
  }
  Window w;
  w.base = base;
  w.run = run.size;
  w.run_stride = run.stride;
  w.rows = 1;
  bool same_phase = true;
  for (auto d = rows.rbegin(); d != rows.rend(); ++d) {
    w.dims[w.ndim++] = *d;
    w.rows *= d->size;
    same_phase = same_phase && d->step % 4 == 0;
  }
  const int64_t phase = same_phase ? static_cast<int64_t>(base % 4) : 3;
  w.units_per_row = (phase + w.run + 3) / 4;
  w.rows_first = w.ndim > 0 && w.dims[0].stride < w.run_stride;
  out.push_back({w, offset});
}

}  // namespace

std::vector<Placed> make_windows(uint64_t base, std::vector<Dim> dims) {
  std::vector<Placed> out;
  for (const Dim& d : dims)
    if (d.size == 0) return out;
  dims = coalesce(std::move(dims));
  Dim run = {1, 1, 1};
  for (auto d = dims.begin(); d != dims.end(); ++d)
    if (d->step == 1) {
      run = *d;
      dims.erase(d);
      break;
    }
  place(base, 0, run, dims, out);
  return out;
}

}  // namespace xinit
