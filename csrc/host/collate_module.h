#pragma once

#include <pybind11/pybind11.h>

namespace metafast::host {

// Adds the class Collator to the module.
void bind_collator(pybind11::module_& m);

}  // namespace metafast::host
