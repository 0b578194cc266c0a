// metafast._host.Collator: numpy arrays in, numpy arrays filled.
#include "host/collate_module.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "host/collate.h"

namespace py = pybind11;

namespace metafast::host {

namespace {

constexpr int kContiguous = py::array::c_style;
using Ints = py::array_t<std::int64_t, kContiguous>;
using Floats = py::array_t<float, kContiguous>;

// The bound object: the collator, the array that it gathers from, and those that it is writing to.
struct Bound {
  py::array examples;
  std::unordered_map<std::uint64_t, std::array<py::array, 7>> written;
  Collator collator;  // the last: its threads end before the arrays go
};

EpisodePlan plan_of(const py::array& examples, const Ints& members, const Ints& starts,
                    const std::array<std::int64_t, 16>& numbers, const Floats& scale, const Floats& shift) {
  EpisodePlan plan;
  if (examples.ndim() < 2 || !(examples.flags() & kContiguous))
    throw std::invalid_argument("examples must be a C-contiguous array of at least two dimensions");
  if (py::isinstance<py::array_t<std::uint8_t>>(examples)) plan.kind = Kind::bytes;
  else if (py::isinstance<py::array_t<std::int32_t>>(examples)) plan.kind = Kind::tokens;
  else if (py::isinstance<py::array_t<float>>(examples)) plan.kind = Kind::floats;
  else throw std::invalid_argument("examples must be uint8, int32 or float32");
  plan.examples = examples.data();
  plan.count = examples.shape(0);
  if (plan.kind == Kind::bytes) {
    if (examples.ndim() != 4) throw std::invalid_argument("uint8 examples must be [M, C, H, W]");
    plan.channels = examples.shape(1);
    plan.height = examples.shape(2);
    plan.width = examples.shape(3);
  } else {
    plan.width = plan.count == 0 ? 0 : examples.size() / plan.count;
  }
  plan.members.assign(members.data(), members.data() + members.size());
  plan.starts.assign(starts.data(), starts.data() + starts.size());
  plan.seed = static_cast<std::uint64_t>(numbers[0]);
  plan.tasks = numbers[1];
  plan.first_task = numbers[2];
  plan.own_tasks = numbers[3];
  plan.ways = {numbers[4], numbers[5]};
  plan.shots = {numbers[6], numbers[7]};
  plan.queries = {numbers[8], numbers[9]};
  plan.same_positions = numbers[10] != 0;
  plan.class_rotations = numbers[11] != 0;
  plan.rotate = numbers[12] != 0;
  plan.flip = numbers[13] != 0;
  plan.crop = numbers[14];
  plan.per = static_cast<int>(numbers[15]);
  plan.scale.assign(scale.data(), scale.data() + scale.size());
  plan.shift.assign(shift.data(), shift.data() + shift.size());
  return plan;
}

template <class T>
T* written(py::array& array, std::int64_t elements, const char* name) {
  if (!py::isinstance<py::array_t<T>>(array) || array.size() != elements || !array.writeable() ||
      !(array.flags() & kContiguous))
    throw std::invalid_argument(std::string(name) +
                                " must be a writable C-contiguous array of the plan's size and type");
  return static_cast<T*>(array.mutable_data());
}

EpisodeArrays arrays_of(const EpisodePlan& plan, std::array<py::array, 7>& arrays) {
  const std::int64_t support = plan.own_tasks * plan.support(), query = plan.own_tasks * plan.query();
  const std::int64_t size = plan.example_size();
  const auto x = [&](py::array& array, std::int64_t examples, const char* name) -> void* {
    if (plan.kind == Kind::tokens) return written<std::int64_t>(array, examples * size, name);
    return written<float>(array, examples * size, name);
  };
  EpisodeArrays out;
  out.support_x = x(arrays[0], support, "support_x");
  out.support_y = written<std::int64_t>(arrays[1], support, "support_y");
  out.query_x = x(arrays[2], query, "query_x");
  out.query_y = written<std::int64_t>(arrays[3], query, "query_y");
  out.support_mask = reinterpret_cast<std::uint8_t*>(written<bool>(arrays[4], support, "support_mask"));
  out.query_mask = reinterpret_cast<std::uint8_t*>(written<bool>(arrays[5], query, "query_mask"));
  out.classes = written<std::int64_t>(arrays[6], plan.own_tasks, "classes");
  return out;
}

}  // namespace

void bind_collator(py::module_& m) {
  py::class_<Bound>(m, "Collator", "Gathers meta-batches of few-shot tasks in threads of its own.")
      .def(py::init([](py::array examples, const Ints& members, const Ints& starts,
                       const std::array<std::int64_t, 16>& numbers, const Floats& scale, const Floats& shift,
                       int workers) {
             EpisodePlan plan = plan_of(examples, members, starts, numbers, scale, shift);
             return new Bound{std::move(examples), {}, {std::move(plan), workers}};
           }),
           py::arg("examples"), py::arg("members"), py::arg("starts"), py::arg("numbers"), py::arg("scale"),
           py::arg("shift"), py::arg("workers"))
      .def(
          "collate",
          [](Bound& self, std::uint64_t batch, std::array<py::array, 7> arrays) {
            const EpisodeArrays out = arrays_of(self.collator.plan(), arrays);
            py::gil_scoped_release release;
            CollateScratch scratch;
            collate(self.collator.plan(), batch, out, scratch);
          },
          py::arg("batch"), py::arg("arrays"), "Fills the arrays with a meta-batch, in the calling thread.")
      .def(
          "submit",
          [](Bound& self, std::uint64_t batch, std::array<py::array, 7> arrays) {
            self.collator.submit(batch, arrays_of(self.collator.plan(), arrays));
            self.written[batch] = std::move(arrays);
          },
          py::arg("batch"), py::arg("arrays"), "Has a thread fill the arrays.")
      .def(
          "wait",
          [](Bound& self, std::uint64_t batch) {
            bool there = false;
            {
              py::gil_scoped_release release;
              there = self.collator.wait(batch);
            }
            if (there) self.written.erase(batch);
            return there;
          },
          py::arg("batch"), "Waits for a submitted meta-batch; False where there is none.")
      .def(
          "close",
          [](Bound& self) {
            {
              py::gil_scoped_release release;
              self.collator.close();
            }
            self.written.clear();
          },
          "Ends the threads; what they have not begun is dropped.");
}

}  // namespace metafast::host
