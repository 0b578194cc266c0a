// One gradient of every task's loss, and the product of its Hessian with a direction.
#pragma once

#include "inner_loop_engine.h"

namespace mf::cuda {

// task_grad, and with tangents task_hvp.
template <class T, class Device>
class TaskEngine : Engine<T, Device> {
  using Base = Engine<T, Device>;
  using Base::plan_, Base::device_, Base::shared_;

 public:
  TaskEngine(const TaskRequest& r, Device& device, const Place& place) : Base(*r.program, r.tasks, device), r_(r) {
    if (r.tasks == 0) return;
    this->check_size(r.data.n);
    all_ = plan_.reach(plan_.all_params(), r.grad_x != nullptr);
    moving_ = plan_.reach(plan_.all_params(), false);
    Carver measure;
    carve(measure);
    Carver carver(place.allocate(place.context, measure.used()));
    carve(carver);
    run();
  }

 private:
  void carve(Carver& c) {
    const int n = static_cast<int>(r_.data.n);
    const std::vector<char> everything = Base::every(plan_.storage.size());
    const bool hvp = r_.tangents != nullptr, backward = hvp || r_.grads || r_.grad_x;
    theta_ = c.template take<T>(r_.weights_per_task ? this->all_params() : plan_.packed);
    memory_ = Base::PassOf::carve(plan_, c, shared_.tasks, n, everything,
                                  backward ? (hvp ? moving_ : all_).values : Base::none(everything), true);
    if (hvp) tangents_ = Base::PassOf::carve(plan_, c, shared_.tasks, n, moving_.values, all_.values, false);
    grads_ = backward ? c.template take<T>(this->all_params()) : nullptr;
    u_ = hvp ? c.template take<T>(this->all_params()) : nullptr;
    product_ = hvp ? c.template take<T>(this->all_params()) : nullptr;
    shared_.splits = c.template take<T>(this->split_room(n, 2));
    counts_ = c.template take<int>(shared_.tasks);
    order_ = c.template take<int>(int64_t{1} * shared_.tasks * n);
  }

  void run() {
    const int n = static_cast<int>(r_.data.n);
    shared_.classes = r_.classes;
    shared_.seed = static_cast<uint64_t>(r_.seed), shared_.first_task = static_cast<uint64_t>(r_.first_task);
    const PerTask<T> theta{theta_, r_.weights_per_task ? plan_.packed : 0};
    this->pack({static_cast<const T*>(r_.weights), plan_.program.param_total}, {theta_, plan_.packed},
               r_.weights_per_task ? shared_.tasks : 1);
    const PassData<T> data{this->select(r_.data, nullptr, 0, n, counts_, order_),
                           r_.data.x,
                           r_.data.y,
                           r_.data.n,
                           theta,
                           static_cast<const T*>(r_.stats),
                           static_cast<uint64_t>(r_.step)};
    typename Base::PassOf pass(plan_, device_, shared_, data, memory_);
    pass.gather();
    pass.forward();
    const bool hvp = r_.tangents != nullptr;
    pass.loss(static_cast<T*>(r_.losses), 1, nullptr, T(0), grads_ ? T(1) : T(0), nullptr);
    if (r_.logits) pass.scatter_logits(static_cast<T*>(r_.logits));
    if (!grads_) return;
    this->zero(grads_, this->all_params());
    pass.backward(hvp ? moving_ : all_, this->params(grads_));
    const ValueInfo& in = plan_.value(0);
    const PassMemory<T>* source = &memory_;
    T* result = grads_;
    if (hvp) {
      this->pack({static_cast<const T*>(r_.tangents), plan_.program.param_total}, this->params(u_), shared_.tasks);
      this->zero(product_, this->all_params());
      pass.tangent(moving_, this->params(u_), tangents_);
      pass.backward_tangent(all_, moving_, this->params(u_), tangents_, this->params(product_));
      source = &tangents_;
      result = product_;
    }
    if (r_.grads) this->unpack(this->params(result), {}, static_cast<T*>(r_.grads), nullptr, false);
    if (!r_.grad_x || plan_.program.tokens) return;
    this->zero(static_cast<T*>(r_.grad_x), shared_.tasks * r_.data.n * in.numel());
    pass.scatter_input(*source, static_cast<T*>(r_.grad_x));
  }

  const TaskRequest& r_;
  Reach all_, moving_;
  PassMemory<T> memory_, tangents_;
  T *theta_, *grads_, *u_, *product_;
  int *counts_, *order_;
};

}  // namespace mf::cuda
