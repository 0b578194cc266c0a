// What the CUDA driver works out of a program before it runs it: where parameters lie in its order, which layers run as
// one, and what depends on what. No torch, no CUDA.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

#include "../layers/program.h"
#include "inner_loop_loss.cuh"
#include "inner_loop_norm.cuh"
#include "inner_loop_params.cuh"

namespace mf::cuda {

// Hands out aligned stretches of one block; with no block it only counts.
class Carver {
 public:
  explicit Carver(void* base = nullptr) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    constexpr size_t kAlign = 256;
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  size_t used() const { return used_; }
  // The next take overlaps what was taken since `mark`: for what is never needed at one time.
  void rewind(size_t mark) { used_ = mark; }
  void advance_to(size_t end) { used_ = end > used_ ? end : used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// Parameters and values that something reaches: those that move, or whose gradient is wanted.
struct Reach {
  std::vector<char> params, values;
};

struct Plan {
  Program program;
  std::vector<int64_t> packed_offset;  // of each parameter
  int64_t packed = 0;
  std::vector<ParamTable> tables;
  std::vector<char> fused;         // an instruction that the one before it runs along: a ReLU behind a normalization
  std::vector<int> storage;        // value -> value that holds it: a fused normalization writes behind the ReLU
  std::vector<ConvGeometry> conv;  // of convolutions and linear layers, by instruction
  std::vector<char> centred;       // values that only a batch norm with the batch's statistics reads: dΣ is 0

  explicit Plan(Program p) : program(std::move(p)) {
    lay_out();
    fuse();
  }

  const Instruction& instruction(size_t i) const { return program.instructions[i]; }
  const ValueInfo& value(int v) const { return program.values[v]; }
  static bool is_norm(Opcode op) {
    return op == Opcode::batch_norm || op == Opcode::layer_norm || op == Opcode::group_norm;
  }
  bool relu_follows(size_t i) const { return i + 1 < fused.size() && fused[i + 1]; }
  // The value that instruction i writes, and whose gradient it reads.
  int output(size_t i) const { return storage[instruction(i).out]; }

  // What depends on the parameters of `from` (and on the input).
  Reach reach(const std::vector<char>& from, bool input) const {
    Reach r{from, std::vector<char>(program.values.size(), 0)};
    r.values[0] = input && !program.tokens;
    for (const Instruction& i : program.instructions) {
      char any = r.values[i.in0] || (i.in1 >= 0 && r.values[i.in1]);
      for (const int p : {i.weight, i.bias})
        if (p >= 0 && from[p]) any = 1;
      r.values[i.out] = any;
    }
    for (size_t v = 0; v < storage.size(); ++v)
      if (storage[v] != static_cast<int>(v)) r.values[v] = r.values[storage[v]];
    return r;
  }
  std::vector<char> adapted() const {
    std::vector<char> out;
    for (const ParamInfo& p : program.params) out.push_back(p.adapted);
    return out;
  }
  std::vector<char> all_params() const { return std::vector<char>(program.params.size(), 1); }

 private:
  void lay_out() {
    const size_t count = program.params.size();
    std::vector<ParamRow> rows(count);
    for (size_t k = 0; k < count; ++k) {
      const ParamInfo& p = program.params[k];
      rows[k] = {p.offset, 0, 1, narrow(p.numel()), 1, p.adapted};
    }
    conv.resize(program.instructions.size());
    for (size_t i = 0; i < program.instructions.size(); ++i) {
      const Instruction& in = instruction(i);
      const ValueInfo& x = value(in.in0);
      const ValueInfo& y = value(in.out);
      if (in.op == Opcode::conv2d) conv[i] = ConvGeometry(x.c, x.h, x.w, y.c, in.ints, in.ints[6]);
      if (in.op == Opcode::linear) {
        const int64_t whole[] = {x.h, x.w, 1, 1, 0, 0};
        conv[i] = ConvGeometry(x.c, x.h, x.w, y.c, whole, 1);
      }
      if (in.op == Opcode::conv2d || in.op == Opcode::linear) {
        ParamRow& w = rows[in.weight];
        w.outs = conv[i].co, w.ins = conv[i].cig, w.taps = conv[i].kh * conv[i].kw;
      }
      if (in.op == Opcode::layer_norm)
        for (const int p : {in.weight, in.bias})
          if (p >= 0) rows[p].outs = 1, rows[p].ins = narrow(x.c), rows[p].taps = narrow(x.h * x.w);
    }
    for (size_t k = 0; k < count; ++k) {
      packed_offset.push_back(packed);
      rows[k].packed_offset = packed;
      packed += (rows[k].numel() + 3) / 4 * 4;
      if (k % kParamRows == 0) {
        tables.emplace_back();
        tables.back().first = narrow(static_cast<int64_t>(k));
        tables.back().start = narrow(rows[k].packed_offset);
      }
      ParamTable& t = tables.back();
      t.row[t.count++] = rows[k];
      t.end = narrow(packed);
    }
    narrow(packed);
  }

  void fuse() {
    std::vector<int> readers(program.values.size(), 0);
    for (const Instruction& i : program.instructions) {
      ++readers[i.in0];
      if (i.in1 >= 0) ++readers[i.in1];
    }
    ++readers[program.logits];
    centred.assign(program.values.size(), 0);
    for (const Instruction& i : program.instructions)
      if (i.op == Opcode::batch_norm && i.ints[0] == 0 && readers[i.in0] == 1) centred[i.in0] = 1;
    for (size_t v = 0; v < program.values.size(); ++v) storage.push_back(static_cast<int>(v));
    fused.assign(program.instructions.size(), 0);
    for (size_t i = 0; i + 1 < fused.size(); ++i) {
      const Instruction &norm = instruction(i), &next = instruction(i + 1);
      if (!is_norm(norm.op) || next.op != Opcode::relu || next.in0 != norm.out || readers[norm.out] != 1) continue;
      fused[i + 1] = 1;
      storage[norm.out] = next.out;
    }
  }

  static int narrow(int64_t n) {
    if (n > (int64_t{1} << 30))
      throw std::invalid_argument("program: " + std::to_string(n) +
                                  " elements are more than the CUDA kernels count to");
    return static_cast<int>(n);
  }
};

}  // namespace mf::cuda
