// The way of most calls from Python to an op.
#pragma once

#include <torch/csrc/python_headers.h>

namespace xinit {

// A tuple of a function for each op, in the order of ops().
PyObject* make_calls();

}  // namespace xinit
