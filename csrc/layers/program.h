// The flat form of a model: values (one example's map each), parameters and instructions in topological order.
//
// A program arrives as an int64 and a float64 tensor. parse_program checks everything that a kernel relies on, because
// a wrong number would be a read of someone else's memory. Plain C++, no instruction set, no torch.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace mf {

enum class Opcode : int64_t {
  conv2d = 1,
  linear,
  batch_norm,
  layer_norm,
  group_norm,
  relu,
  gelu,
  tanh,
  sigmoid,
  silu,
  leaky_relu,
  max_pool,
  avg_pool,
  add,
  dropout,
  embed_mean,
};

enum class LossKind : int64_t { cross_entropy = 0, mse = 1 };

struct ValueInfo {
  int64_t c, h, w;
  bool flat;
  int64_t numel() const { return c * h * w; }
};

struct ParamInfo {
  int64_t offset, dims[4];
  bool adapted;
  int64_t numel() const { return dims[0] * dims[1] * dims[2] * dims[3]; }
};

struct Instruction {
  Opcode op;
  int out, in0, in1, weight, bias;  // -1: none
  double attribute;                 // eps, slope or p
  int64_t ints[16];                 // by opcode, see below

  bool is_activation() const { return op >= Opcode::relu && op <= Opcode::leaky_relu; }
};

struct Program {
  std::vector<ValueInfo> values;  // value 0 is the input
  std::vector<ParamInfo> params;  // one after another in the flat vector
  std::vector<Instruction> instructions;
  int64_t param_total = 0, stats_total = 0;
  LossKind loss = LossKind::cross_entropy;
  int logits = 0;
  bool tokens = false;
  double label_smoothing = 0;

  int64_t classes() const { return values[logits].c; }
};

namespace program_detail {

constexpr int64_t kMagic = 0x4d46, kVersion = 1, kHeader = 16, kValue = 4, kParam = 8, kInstruction = 24;
constexpr int64_t kMaxCount = 1 << 16;              // values, parameters, instructions
constexpr int64_t kMaxElements = int64_t{1} << 40;  // of one map or parameter: no product below overflows

[[noreturn]] inline void fail(const std::string& what) { throw std::invalid_argument("program: " + what); }

inline void require(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

inline int64_t checked_product(std::initializer_list<int64_t> factors, const std::string& what) {
  int64_t product = 1;
  for (const int64_t f : factors) {
    require(f >= 1 && f <= kMaxElements && product <= kMaxElements / f, what + " has impossible dimensions");
    product *= f;
  }
  return product;
}

class Checker {
 public:
  Checker(Program& p, const double* attributes, int64_t attribute_count)
      : p_(p), attributes_(attributes), attribute_count_(attribute_count), defined_(p.values.size(), false) {
    defined_[0] = true;
    uses_.assign(p.params.size(), nullptr);
  }

  void instruction(int index, const int64_t* row) {
    Instruction& i = p_.instructions[index];
    name_ = "instruction " + std::to_string(index);
    require(row[0] >= 1 && row[0] <= static_cast<int64_t>(Opcode::embed_mean),
            name_ + " has the unknown opcode " + std::to_string(row[0]));
    i.op = static_cast<Opcode>(row[0]);
    i.out = id(row[1], p_.values.size(), false, "out value");
    i.in0 = id(row[2], p_.values.size(), false, "input value");
    i.in1 = id(row[3], p_.values.size(), true, "second input value");
    i.weight = id(row[4], p_.params.size(), true, "weight parameter");
    i.bias = id(row[5], p_.params.size(), true, "bias parameter");
    for (int k = 0; k < 16; ++k) i.ints[k] = row[8 + k];
    i.attribute = 0;
    if (takes_attribute(i.op)) {
      require(row[6] >= 0 && row[6] < attribute_count_, name_ + " names an attribute that is not there");
      i.attribute = attributes_[row[6]];
      require(i.attribute == i.attribute && i.attribute - i.attribute == 0,
              name_ + " has an attribute that is not finite");
    }
    require(!defined_[i.out], name_ + " writes value " + std::to_string(i.out) + ", which is there already");
    require(defined_[i.in0] && (i.in1 < 0 || defined_[i.in1]), name_ + " reads a value that no earlier one writes");
    require((i.in1 >= 0) == (i.op == Opcode::add), name_ + " has the wrong number of inputs");
    shapes(i);
    defined_[i.out] = true;
  }

  bool defined(int value) const { return defined_[value]; }

 private:
  static bool takes_attribute(Opcode op) {
    return op == Opcode::batch_norm || op == Opcode::layer_norm || op == Opcode::group_norm ||
           op == Opcode::leaky_relu || op == Opcode::dropout;
  }

  int id(int64_t value, size_t count, bool optional, const char* what) const {
    require((optional && value == -1) || (value >= 0 && value < static_cast<int64_t>(count)),
            name_ + " names " + what + " " + std::to_string(value) + " of " + std::to_string(count));
    return static_cast<int>(value);
  }

  void match(const ValueInfo& have, int64_t c, int64_t h, int64_t w) const {
    require(have.c == c && have.h == h && have.w == w,
            name_ + " gives " + text(c, h, w) + ", its out value is " + text(have.c, have.h, have.w));
  }

  static std::string text(int64_t c, int64_t h, int64_t w) {
    return "[" + std::to_string(c) + ", " + std::to_string(h) + ", " + std::to_string(w) + "]";
  }

  void param(int which, std::initializer_list<int64_t> dims, const Instruction& i) {
    if (which < 0) return;
    const ParamInfo& have = p_.params[which];
    int k = 0;
    for (const int64_t d : dims)
      require(have.dims[k++] == d, name_ + ": parameter " + std::to_string(which) + " has the wrong shape");
    for (; k < 4; ++k)
      require(have.dims[k] == 1, name_ + ": parameter " + std::to_string(which) + " has the wrong shape");
    same_use(which, i);
  }

  void vector(int which, int64_t numel, const Instruction& i) {
    if (which < 0) return;
    require(p_.params[which].numel() == numel, name_ + ": parameter " + std::to_string(which) + " has " +
                                                   std::to_string(p_.params[which].numel()) + " elements, needs " +
                                                   std::to_string(numel));
    same_use(which, i);
  }

  // A shared parameter has one packed layout, so its users must agree on it.
  void same_use(int which, const Instruction& i) {
    const Instruction*& first = uses_[which];
    if (!first) {
      first = &i;
      return;
    }
    const ValueInfo &a = p_.values[i.in0], &b = p_.values[first->in0];
    bool same = first->op == i.op && (first->weight == which) == (i.weight == which);
    if (i.op == Opcode::conv2d)
      for (int k = 0; k < 7; ++k) same = same && first->ints[k] == i.ints[k];
    if (i.op == Opcode::linear || i.op == Opcode::layer_norm || i.op == Opcode::conv2d)
      same = same && a.c == b.c && (i.op == Opcode::conv2d || (a.h == b.h && a.w == b.w));
    require(same,
            name_ + " shares parameter " + std::to_string(which) + " with an instruction of another kind or shape");
  }

  void window(const Instruction& i, const ValueInfo& x, int64_t out_channels) {
    const int64_t kh = i.ints[0], kw = i.ints[1], sh = i.ints[2], sw = i.ints[3], ph = i.ints[4], pw = i.ints[5];
    require(kh >= 1 && kw >= 1 && sh >= 1 && sw >= 1 && ph >= 0 && pw >= 0 && kh < kMaxElements && kw < kMaxElements &&
                sh < kMaxElements && sw < kMaxElements && ph < kMaxElements && pw < kMaxElements,
            name_ + " has an impossible kernel, stride or padding");
    require(ph < kh && pw < kw, name_ + ": padding must be smaller than the kernel");
    require(x.h + 2 * ph >= kh && x.w + 2 * pw >= kw, name_ + ": the kernel is larger than its padded input");
    match(p_.values[i.out], out_channels, (x.h + 2 * ph - kh) / sh + 1, (x.w + 2 * pw - kw) / sw + 1);
  }

  void shapes(const Instruction& i) {
    const ValueInfo &x = p_.values[i.in0], &y = p_.values[i.out];
    const bool tokens = p_.tokens && i.in0 == 0;
    require(tokens == (i.op == Opcode::embed_mean), name_ + (tokens ? " reads tokens" : " needs tokens"));
    const bool parametric = i.op <= Opcode::group_norm || i.op == Opcode::embed_mean;
    require(parametric || (i.weight < 0 && i.bias < 0), name_ + " takes no parameters");
    switch (i.op) {
      case Opcode::conv2d: {
        const int64_t groups = i.ints[6];
        require(groups >= 1 && x.c % groups == 0 && y.c % groups == 0, name_ + ": groups do not divide the channels");
        require(i.weight >= 0, name_ + " has no weight");
        window(i, x, y.c);
        param(i.weight, {y.c, x.c / groups, i.ints[0], i.ints[1]}, i);
        vector(i.bias, y.c, i);
        break;
      }
      case Opcode::linear:
        require(i.weight >= 0, name_ + " has no weight");
        match(y, y.c, 1, 1);
        param(i.weight, {y.c, x.numel()}, i);
        vector(i.bias, y.c, i);
        break;
      case Opcode::batch_norm:
        require(i.ints[0] == 0 || i.ints[0] == 1, name_ + ": mode must be 0 or 1");
        require(i.ints[1] >= 0 && i.ints[1] <= p_.stats_total && 2 * x.c <= p_.stats_total - i.ints[1],
                name_ + ": its statistics lie outside stats");
        affine(i, x.c);
        break;
      case Opcode::layer_norm:
        affine(i, x.numel());
        break;
      case Opcode::group_norm:
        require(i.ints[0] >= 1 && x.c % i.ints[0] == 0, name_ + ": groups do not divide the channels");
        affine(i, x.c);
        break;
      case Opcode::max_pool:
      case Opcode::avg_pool:
        window(i, x, x.c);
        require(2 * i.ints[4] <= i.ints[0] && 2 * i.ints[5] <= i.ints[1],
                name_ + ": padding must be at most half the kernel");
        break;
      case Opcode::add: {
        const ValueInfo& z = p_.values[i.in1];
        require(z.c == x.c && z.h == x.h && z.w == x.w && !(p_.tokens && i.in1 == 0), name_ + " adds unequal shapes");
        match(y, x.c, x.h, x.w);
        break;
      }
      case Opcode::dropout:
        require(i.attribute >= 0 && i.attribute < 1, name_ + ": p must be in [0, 1)");
        [[fallthrough]];
      case Opcode::relu:
      case Opcode::gelu:
      case Opcode::tanh:
      case Opcode::sigmoid:
      case Opcode::silu:
      case Opcode::leaky_relu:
        match(y, x.c, x.h, x.w);
        break;
      case Opcode::embed_mean: {
        require(i.weight >= 0 && i.bias < 0, name_ + " has a weight and no bias");
        const int64_t rows = p_.params[i.weight].dims[0];
        require(i.ints[0] >= -1 && i.ints[0] < rows, name_ + ": padding_idx lies outside the table");
        match(y, y.c, 1, 1);
        param(i.weight, {rows, y.c}, i);
        break;
      }
    }
  }

  void affine(const Instruction& i, int64_t numel) {
    require(i.attribute >= 0, name_ + ": eps must not be negative");
    require((i.weight >= 0) == (i.bias >= 0) || i.weight >= 0, name_ + " has a bias without a weight");
    const ValueInfo& x = p_.values[i.in0];
    match(p_.values[i.out], x.c, x.h, x.w);
    vector(i.weight, numel, i);
    vector(i.bias, numel, i);
  }

  Program& p_;
  const double* attributes_;
  int64_t attribute_count_;
  std::vector<bool> defined_;
  std::vector<const Instruction*> uses_;
  std::string name_;
};

}  // namespace program_detail

// Throws std::invalid_argument, with a text that names the first wrong entry.
inline Program parse_program(const int64_t* data, int64_t size, const double* attributes, int64_t attribute_count) {
  using namespace program_detail;
  require(size >= kHeader && data[0] == kMagic && data[1] == kVersion,
          "not a program of version " + std::to_string(kVersion) + "; build it with metafast.innerloop");
  const int64_t values = data[2], params = data[3], instructions = data[4];
  require(values >= 2 && values <= kMaxCount && params >= 0 && params <= kMaxCount && instructions >= 1 &&
              instructions <= kMaxCount &&
              size == kHeader + values * kValue + params * kParam + instructions * kInstruction,
          "its size does not fit its header");
  require(attribute_count >= 1, "attributes[0] must be the label smoothing");
  Program p;
  p.param_total = data[5];
  p.stats_total = data[8];
  p.label_smoothing = attributes[0];
  require(data[6] == 0 || data[6] == 1, "the loss must be 0 (cross-entropy) or 1 (mse)");
  p.loss = static_cast<LossKind>(data[6]);
  require(data[7] >= 1 && data[7] < values, "the logits are not one of its values");
  p.logits = static_cast<int>(data[7]);
  require(p.stats_total >= 0 && p.stats_total <= kMaxElements, "the size of stats is impossible");
  require(data[9] == 0 || data[9] == 1, "the input kind must be 0 (float map) or 1 (tokens)");
  p.tokens = data[9] == 1;
  require(p.label_smoothing >= 0 && p.label_smoothing < 1, "label smoothing must be in [0, 1)");

  const int64_t* row = data + kHeader;
  for (int64_t v = 0; v < values; ++v, row += kValue) {
    checked_product({row[0], row[1], row[2]}, "value " + std::to_string(v));
    p.values.push_back({row[0], row[1], row[2], row[3] != 0});
  }
  int64_t total = 0;
  for (int64_t k = 0; k < params; ++k, row += kParam) {
    const int64_t numel = checked_product({row[1], row[2], row[3], row[4]}, "parameter " + std::to_string(k));
    require(row[0] == total, "parameter " + std::to_string(k) + " does not begin where the one before it ends");
    total += numel;
    p.params.push_back({row[0], {row[1], row[2], row[3], row[4]}, row[5] != 0});
  }
  require(total == p.param_total, "its parameters have " + std::to_string(total) + " elements, the header says " +
                                      std::to_string(p.param_total));
  p.instructions.resize(instructions);
  Checker checker(p, attributes, attribute_count);
  for (int64_t i = 0; i < instructions; ++i, row += kInstruction) checker.instruction(static_cast<int>(i), row);
  require(checker.defined(p.logits), "no instruction writes the logits");
  require(p.values[p.logits].h == 1 && p.values[p.logits].w == 1, "the logits must be one number per class");
  return p;
}

}  // namespace mf
