#include "host/machine.h"

#include <fstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace metafast::host {

#if defined(__x86_64__)
// The compiler's runtime also checks that the operating system saves the wide registers.
std::vector<std::pair<std::string, bool>> cpu_features() {
  __builtin_cpu_init();
  return {
      {"avx2", __builtin_cpu_supports("avx2") != 0},         {"fma", __builtin_cpu_supports("fma") != 0},
      {"avx512f", __builtin_cpu_supports("avx512f") != 0},   {"avx512bw", __builtin_cpu_supports("avx512bw") != 0},
      {"avx512cd", __builtin_cpu_supports("avx512cd") != 0}, {"avx512dq", __builtin_cpu_supports("avx512dq") != 0},
      {"avx512vl", __builtin_cpu_supports("avx512vl") != 0}, {"avx512bf16", __builtin_cpu_supports("avx512bf16") != 0},
  };
}

std::string cpu_level() {
  bool avx2 = true, avx512 = true;
  for (const auto& [name, present] : cpu_features()) {
    if (name == "avx2" || name == "fma") avx2 = avx2 && present;
    else if (name != "avx512bf16") avx512 = avx512 && present;
  }
  return avx2 ? (avx512 ? "avx512" : "avx2") : "none";
}
#elif defined(__aarch64__)
std::vector<std::pair<std::string, bool>> cpu_features() { return {{"neon", true}}; }  // part of the baseline

std::string cpu_level() { return "neon"; }
#else
std::vector<std::pair<std::string, bool>> cpu_features() { return {}; }

std::string cpu_level() { return "none"; }
#endif

#if defined(__APPLE__)
namespace {
std::int64_t sysctl_number(const char* name) {
  std::int64_t value = 0;
  std::size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
}
}  // namespace

std::string cpu_name() {
  char text[256] = "";
  std::size_t size = sizeof text;
  return sysctlbyname("machdep.cpu.brand_string", text, &size, nullptr, 0) == 0 ? text : "";
}

CacheSizes cache_sizes() {
  return {sysctl_number("hw.l1dcachesize"), sysctl_number("hw.l2cachesize"), sysctl_number("hw.l3cachesize")};
}
#else
std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "";
}

CacheSizes cache_sizes() {
  CacheSizes sizes;
  for (int index = 0; index < 8; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
    std::string type, text;
    int level = 0;
    if (!(std::ifstream(folder + "level") >> level)) break;
    std::ifstream(folder + "type") >> type;
    std::ifstream(folder + "size") >> text;
    if (type == "Instruction" || text.empty()) continue;
    const std::int64_t unit = text.back() == 'K' ? 1024 : text.back() == 'M' ? 1024 * 1024 : 1;
    const std::int64_t bytes = std::stoll(text) * unit;
    if (level == 1) sizes.l1d = bytes;
    if (level == 2) sizes.l2 = bytes;
    if (level == 3) sizes.l3 = bytes;
  }
  return sizes;
}
#endif

int core_count() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace metafast::host
