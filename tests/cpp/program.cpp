// Programs from bytes: a good one is read as it is; whatever is overwritten, parse_program throws or returns something
// that satisfies every promise of program.h.
#include "layers/program.h"

#include <cstdint>
#include <random>
#include <stdexcept>
#include <vector>

#include "check.h"

namespace {

using mf::Opcode;

// Convolution 3x3 from [2, 6, 5] to 4 channels, batch norm, ReLU, max-pool 2x2, linear to 3.
std::vector<int64_t> good() {
  std::vector<int64_t> p = {0x4d46, 1, 6, 5, 5, 4 * 18 + 4 + 4 + 4 + 3 * 24, 0, 5, 8, 0, 0, 0, 0, 0, 0, 0};
  const auto value = [&](int64_t c, int64_t h, int64_t w) { p.insert(p.end(), {c, h, w, 0}); };
  value(2, 6, 5), value(4, 6, 5), value(4, 6, 5), value(4, 6, 5), value(4, 3, 2), value(3, 1, 1);
  int64_t offset = 0;
  const auto param = [&](int64_t a, int64_t b, int64_t c, int64_t d) {
    p.insert(p.end(), {offset, a, b, c, d, 1, 0, 0});
    offset += a * b * c * d;
  };
  param(4, 2, 3, 3), param(4, 1, 1, 1), param(4, 1, 1, 1), param(4, 1, 1, 1), param(3, 24, 1, 1);
  const auto instruction = [&](std::vector<int64_t> row) {
    row.resize(24, 0);
    p.insert(p.end(), row.begin(), row.end());
  };
  instruction({1, 1, 0, -1, 0, 1, 1, 0, 3, 3, 1, 1, 1, 1, 1});
  instruction({3, 2, 1, -1, 2, 3, 1, 0, 0, 0});
  instruction({6, 3, 2, -1, -1, -1, 2});
  instruction({12, 4, 3, -1, -1, -1, 2, 0, 2, 2, 2, 2, 0, 0});
  instruction({2, 5, 4, -1, 4, -1, 2});
  return p;
}

const std::vector<double> kAttributes = {0.1, 1e-5};

mf::Program parse(const std::vector<int64_t>& p) {
  return mf::parse_program(p.data(), static_cast<int64_t>(p.size()), kAttributes.data(),
                           static_cast<int64_t>(kAttributes.size()));
}

// What kernels rely on.
void check_promises(const mf::Program& p) {
  int64_t total = 0;
  for (const mf::ParamInfo& q : p.params) {
    CHECK(q.offset == total && q.numel() > 0, "a parameter lies at %lld", static_cast<long long>(q.offset));
    total += q.numel();
  }
  CHECK(total == p.param_total, "P is %lld", static_cast<long long>(p.param_total));
  const int values = static_cast<int>(p.values.size()), params = static_cast<int>(p.params.size());
  std::vector<bool> there(p.values.size(), false);
  there[0] = true;
  for (const mf::Instruction& i : p.instructions) {
    CHECK(i.out > 0 && i.out < values && i.in0 >= 0 && i.in0 < values && i.in1 < values, "a value is not there");
    CHECK(i.weight < params && i.bias < params, "a parameter is not there");
    CHECK(there[i.in0] && (i.in1 < 0 || there[i.in1]) && !there[i.out], "an instruction is out of order");
    there[i.out] = true;
    if (i.op == Opcode::batch_norm)
      CHECK(i.ints[1] >= 0 && i.ints[1] + 2 * p.values[i.in0].c <= p.stats_total, "statistics lie outside");
    if (i.weight >= 0 && i.op == Opcode::conv2d)
      CHECK(p.params[i.weight].numel() == p.values[i.out].c * (p.values[i.in0].c / i.ints[6]) * i.ints[0] * i.ints[1],
            "a weight has the wrong size");
  }
  CHECK(there[p.logits], "the logits are not there");
}

}  // namespace

int main() {
  const std::vector<int64_t> start = good();
  const mf::Program p = parse(start);
  check_promises(p);
  CHECK(p.instructions.size() == 5 && p.classes() == 3 && p.label_smoothing == 0.1, "the good program is read wrongly");

  const int64_t wild[] = {INT64_MIN,        -2,       -1, 0, 1, 2, 3, 5, 7, 17, 1 << 16, int64_t{1} << 40,
                          int64_t{1} << 62, INT64_MAX};
  int refused = 0, read = 0;
  const auto attempt = [&](const std::vector<int64_t>& changed) {
    try {
      check_promises(parse(changed));
      ++read;
    } catch (const std::invalid_argument& error) {
      ++refused;
      CHECK(std::string(error.what()).rfind("program: ", 0) == 0, "an error without its argument: %s", error.what());
    }
  };
  for (size_t at = 0; at < start.size(); ++at)
    for (const int64_t value : wild) {
      std::vector<int64_t> changed = start;
      changed[at] = value;
      attempt(changed);
    }
  std::mt19937_64 random(1);
  for (int round = 0; round < 20000; ++round) {  // several entries at once
    std::vector<int64_t> changed = start;
    for (int k = 0; k < 3; ++k) changed[random() % changed.size()] = static_cast<int64_t>(random() % 9) - 1;
    attempt(changed);
  }
  for (size_t size = 0; size < start.size(); size += 7)
    attempt(std::vector<int64_t>(start.begin(), start.begin() + static_cast<int64_t>(size)));
  CHECK(refused > 10000 && read > 100, "%d refused, %d read", refused, read);
  return check_result();
}
