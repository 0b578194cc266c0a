#include "host/machine.h"

#include "check.h"

int main() {
  using namespace metafast::host;
  const std::string level = cpu_level();
  CHECK(level == "avx512" || level == "avx2" || level == "neon" || level == "none", "level %s", level.c_str());
  bool wide = false;
  for (const auto& [name, present] : cpu_features()) wide = wide || (name == "avx512f" && present);
  if (level == "avx512") CHECK(wide, "avx512 kernels need avx512f");
  CHECK(core_count() >= 1, "%d cores", core_count());
  const CacheSizes cache = cache_sizes();
  CHECK(cache.l1d >= 0 && cache.l2 >= 0 && cache.l3 >= 0, "cache sizes are bytes or 0");
  return check_result();
}
