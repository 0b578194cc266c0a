// The Python module metafast._host: build and machine information, and the episode collator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>

#include "host/collate_module.h"
#include "host/machine.h"

namespace py = pybind11;
namespace host = metafast::host;

namespace {

py::list split(const std::string& text) {
  py::list parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.append(part);
  return parts;
}

py::dict build_info() {
  const host::BuildInfo& info = host::build_info();
  py::dict out;
  out["version"] = info.version;
  out["git_commit"] = info.git_commit;
  out["build_type"] = info.build_type;
  out["compiler"] = info.compiler;
  out["cuda_compiler"] = info.cuda_compiler;
  out["kernel_flags"] = info.kernel_flags;
  out["targets"] = split(info.targets);
  out["isas"] = split(info.isas);
  out["torch_target"] = info.torch_target;
  return out;
}

py::dict machine_info() {
  const host::CacheSizes cache = host::cache_sizes();
  py::dict features, caches, out;
  for (const auto& [name, present] : host::cpu_features()) features[py::str(name)] = present;
  caches["l1d"] = cache.l1d;
  caches["l2"] = cache.l2;
  caches["l3"] = cache.l3;
  out["cpu"] = host::cpu_name();
  out["cpu_level"] = host::cpu_level();
  out["cpu_features"] = features;
  out["cache_bytes"] = caches;
  out["cores"] = host::core_count();
  return out;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build and machine information of metafast's native code, and its episode collator.";
  m.def("build_info", &build_info, "What was built, by which compiler, from which commit.");
  m.def("machine_info", &machine_info, "Processor, its kernel level, caches and cores.");
  host::bind_collator(m);
}
