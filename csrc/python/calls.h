// What Python calls most often: pybind11's way takes several times as long as the work.
#pragma once

#include <torch/csrc/python_headers.h>

namespace xinit {

// A dict of a function for each op, by its name.
PyObject* make_calls();
// Key::fold_in, for words and names that Python has checked.
PyObject* make_fold_in();

}  // namespace xinit
