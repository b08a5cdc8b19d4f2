// What each file of bindings adds to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace hpcrl {

void bind_random(pybind11::module_& module);
void bind_recurrence(pybind11::module_& module);

}  // namespace hpcrl
