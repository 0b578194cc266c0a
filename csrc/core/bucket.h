// The arguments that all step ops share, read and checked once for every backend.
#pragma once

#include "check.h"

namespace mf {

struct Bucket {
  Bucket(std::vector<View>& p, std::vector<View>& g) : params(p), grads(g) {}

  std::vector<View>& params;
  std::vector<View>& grads;
  View state[kMaxStates], master, step, stats, partials, items, chunks, lr, grad_scale, found_inf, clip;

  int64_t item_count() const { return items.numel / 3; }
  int64_t chunk_count() const { return chunks.numel / 3; }

  // step .. clip stand in this order in every step schema.
  void read_tail(Args& args) {
    step = args.tensor();
    stats = args.tensor();
    partials = args.tensor();
    items = args.tensor();
    chunks = args.tensor();
    lr = args.tensor();
    grad_scale = args.optional_tensor();
    found_inf = args.optional_tensor();
    clip = args.optional_tensor();
  }

  // Everything that can be checked without reading device memory.
  void check(const char* op) const {
    const DTypeCodes& d = dtype_codes();
    STD_TORCH_CHECK(params.size() == grads.size() && static_cast<int64_t>(params.size()) == item_count(), op, ": ",
                    params.size(), " params, ", grads.size(), " grads and ", item_count(), " items must agree");
    for (size_t i = 0; i < params.size(); ++i) {
      storage_dtype(params[i], op, "params");
      storage_dtype(grads[i], op, "grads");
      STD_TORCH_CHECK(params[i].numel == grads[i].numel, op, ": params[", i, "] has ", params[i].numel,
                      " elements, its gradient ", grads[i].numel);
      STD_TORCH_CHECK(params[i].dense, op, ": params[", i, "] has gaps in memory; pass a contiguous copy");
      STD_TORCH_CHECK(params[i].numel == 0 || params[i].strides == grads[i].strides, op, ": grads[", i,
                      "] lies in memory in another order than its parameter; give it the same strides");
    }
    require(items, d.i64, 0, op, "items");
    require(chunks, d.i64, 0, op, "chunks");
    require(partials, d.f64, chunk_count() * kStatCount, op, "partials");
    require(step, d.f32, 0, op, "step");
    require(stats, d.f64, step.numel * kStatCount, op, "stats");
    require(lr, d.f64, 1, op, "lr");
    STD_TORCH_CHECK(lr.numel == 1 || lr.numel == step.numel, op, ": lr has ", lr.numel, " elements, needs 1 or ",
                    step.numel);
    for (const View* v : {&grad_scale, &found_inf, &clip})
      if (*v) require(*v, d.f32, 1, op, "grad_scale, found_inf or clip");
  }
};

}  // namespace mf
