// What this build is and what this machine can do. No torch, no Python.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace metafast::host {

struct BuildInfo {
  std::string version, git_commit, build_type, compiler, cuda_compiler, kernel_flags;
  std::string targets, isas;  // comma-separated
  std::string torch_target;
};

const BuildInfo& build_info();

// Best kernel level that the processor and the operating system both support: "avx512", "avx2", "neon" or "none".
std::string cpu_level();

// Features that matter to the kernels, in a fixed order.
std::vector<std::pair<std::string, bool>> cpu_features();

std::string cpu_name();

// Bytes; 0 where the system does not tell.
struct CacheSizes {
  std::int64_t l1d = 0, l2 = 0, l3 = 0;
};
CacheSizes cache_sizes();

// Logical cores that this process may run on.
int core_count();

}  // namespace metafast::host
