#include "host/collate.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace metafast::host {

namespace {

constexpr std::uint64_t kGolden = 0x9e3779b97f4a7c15ull;
constexpr std::uint64_t kAugmentTask = 1ull << 32, kAugmentClass = 1ull << 33, kAugmentExample = 1ull << 34;

std::uint64_t mix(std::uint64_t z) {  // splitmix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

std::uint64_t draw(std::uint64_t key, std::uint64_t counter) { return mix(key + (counter + 1) * kGolden); }

std::int64_t bounded(std::uint64_t bits, std::int64_t limit) {
  return static_cast<std::int64_t>(((bits >> 32) * static_cast<std::uint64_t>(limit)) >> 32);
}

std::int64_t between(std::uint64_t bits, Range range) { return range.low + bounded(bits, range.high - range.low + 1); }

// `width` different numbers below `count`. `order` holds 0, 1, 2, ... before and after.
void choose(std::uint64_t key, std::uint64_t first, std::int64_t count, std::int64_t width,
            std::vector<std::int64_t>& order, std::int64_t* chosen) {
  if (static_cast<std::int64_t>(order.size()) < count) {
    const std::size_t before = order.size();
    order.resize(count);
    std::iota(order.begin() + before, order.end(), static_cast<std::int64_t>(before));
  }
  std::vector<std::int64_t>::iterator begin = order.begin();
  std::int64_t others[64];
  std::vector<std::int64_t> many;
  if (width > 64) many.resize(width);
  std::int64_t* other = width > 64 ? many.data() : others;
  for (std::int64_t step = 0; step < width; ++step) {
    other[step] = step + bounded(draw(key, first + step), count - step);
    std::swap(begin[step], begin[other[step]]);
    chosen[step] = begin[step];
  }
  for (std::int64_t step = width - 1; step >= 0; --step) std::swap(begin[step], begin[other[step]]);
}

struct Augmentation {
  int turns = 0;  // quarters, counterclockwise
  bool flip = false;
  std::int64_t down = 0, right = 0;
};

Augmentation augmentation(const EpisodePlan& plan, std::uint64_t key, std::int64_t slot, std::int64_t place,
                          std::int64_t turned) {
  const std::uint64_t bits = plan.per == 2   ? draw(key, kAugmentTask)
                             : plan.per == 1 ? draw(key, kAugmentClass + slot)
                                             : draw(key, kAugmentExample + slot * (1 << 16) + place);
  const std::uint64_t span = 2 * plan.crop + 1;
  Augmentation a;
  a.turns = static_cast<int>((turned + (plan.rotate ? bits & 3 : 0)) % 4);
  a.flip = plan.flip && ((bits >> 2) & 1);
  a.down = static_cast<std::int64_t>((((bits >> 8) & 0xffffff) * span) >> 24) - plan.crop;
  a.right = static_cast<std::int64_t>((((bits >> 32) & 0xffffff) * span) >> 24) - plan.crop;
  return a;
}

// No fused multiply-add here: numpy rounds twice, and so does this (see the file's compile options).
void convert(const std::uint8_t* from, std::int64_t count, std::int64_t stride, float scale, float shift, float* to) {
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]) * scale + shift;
  } else {
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i * stride]) * scale + shift;
  }
}

void write_picture(const EpisodePlan& plan, const std::uint8_t* picture, const Augmentation& a, bool plain, float* to,
                   std::vector<std::uint8_t>& patch) {
  const std::int64_t height = plan.height, width = plan.width, area = height * width;
  for (std::int64_t c = 0; c < plan.channels; ++c, to += area) {
    const std::uint8_t* from = picture + c * area;
    if (plain) {
      convert(from, area, 1, plan.scale[c], plan.shift[c], to);
      continue;
    }
    if (a.down != 0 || a.right != 0) {
      patch.assign(area, 0);
      const std::int64_t x0 = std::max<std::int64_t>(0, -a.right), x1 = std::min(width, width - a.right);
      for (std::int64_t y = 0; y < height && x0 < x1; ++y) {
        const std::int64_t row = y + a.down;
        if (row >= 0 && row < height) std::memcpy(&patch[y * width + x0], from + row * width + x0 + a.right, x1 - x0);
      }
      from = patch.data();
    }
    // Element (y, x) of the result is from[start + y * dy + x * dx]; turned pictures are square.
    std::int64_t start = 0, dy = width, dx = 1;
    if (a.turns == 1) start = width - 1, dy = -1, dx = width;
    if (a.turns == 2) start = area - 1, dy = -width, dx = -1;
    if (a.turns == 3) start = area - width, dy = 1, dx = -width;
    if (a.flip) {  // column x before the turn is column width - 1 - x
      const std::int64_t row = start / width, column = start % width;
      start = row * width + (width - 1 - column);
      if (a.turns % 2 == 0) dx = -dx;
      else dy = -dy;
    }
    for (std::int64_t y = 0; y < height; ++y)
      convert(from + start + y * dy, width, dx, plan.scale[c], plan.shift[c], to + y * width);
  }
}

struct Part {
  void* x;
  std::int64_t* y;
  std::uint8_t* mask;
  std::int64_t room, per_class, skip;
};

void write_part(const EpisodePlan& plan, std::uint64_t key, std::int64_t ways, const Part& part,
                std::int64_t slot_width, CollateScratch& scratch) {
  const std::int64_t size = plan.example_size(), classes = static_cast<std::int64_t>(plan.starts.size()) - 1;
  const bool augments = plan.class_rotations || plan.rotate || plan.flip || plan.crop > 0;
  float* floats = static_cast<float*>(part.x);
  std::int64_t* tokens = static_cast<std::int64_t*>(part.x);
  std::int64_t row = 0;
  for (std::int64_t slot = 0; slot < ways; ++slot) {
    const std::int64_t chosen = scratch.classes[slot];
    const std::int64_t* members = plan.members.data() + plan.starts[chosen % classes];
    for (std::int64_t i = 0; i < part.per_class; ++i, ++row) {
      const std::int64_t place = part.skip + i;
      const std::int64_t at = members[scratch.places[slot * slot_width + place]];
      if (plan.kind == Kind::bytes) {
        Augmentation a;
        if (augments) a = augmentation(plan, key, slot, place, chosen / classes);
        const bool plain = a.turns == 0 && !a.flip && a.down == 0 && a.right == 0;
        write_picture(plan, static_cast<const std::uint8_t*>(plan.examples) + at * size, a, plain, floats + row * size,
                      scratch.patch);
      } else if (plan.kind == Kind::tokens) {
        const std::int32_t* from = static_cast<const std::int32_t*>(plan.examples) + at * size;
        std::copy(from, from + size, tokens + row * size);
      } else {
        const float* from = static_cast<const float*>(plan.examples) + at * size;
        std::copy(from, from + size, floats + row * size);
      }
      part.y[row] = slot;
      part.mask[row] = 1;
    }
  }
  if (row == part.room) return;
  if (plan.kind == Kind::tokens) std::fill(tokens + row * size, tokens + part.room * size, 0);
  else std::fill(floats + row * size, floats + part.room * size, 0.0f);
  std::fill(part.y + row, part.y + part.room, 0);
  std::fill(part.mask + row, part.mask + part.room, std::uint8_t{0});
}

void* advance(const EpisodePlan& plan, void* x, std::int64_t examples) {
  const std::int64_t bytes = plan.kind == Kind::tokens ? 8 : 4;
  return static_cast<char*>(x) + examples * plan.example_size() * bytes;
}

}  // namespace

void check(const EpisodePlan& plan) {
  const std::int64_t classes = static_cast<std::int64_t>(plan.starts.size()) - 1;
  const std::int64_t drawn = plan.shots.high + plan.queries.high;
  auto require = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
  };
  require(classes >= 1 && plan.starts[0] == 0,
          "starts must begin with 0 and have one more element than there are classes");
  require(plan.starts[classes] <= static_cast<std::int64_t>(plan.members.size()), "starts must stay within members");
  for (Range range : {plan.ways, plan.shots, plan.queries})
    require(1 <= range.low && range.low <= range.high && range.high < (1 << 16), "ranges must be ascending, from 1 on");
  require(plan.ways.high <= classes * (plan.class_rotations ? 4 : 1), "ways must be at most the number of classes");
  for (std::int64_t c = 0; c < classes; ++c)
    require(plan.starts[c + 1] - plan.starts[c] >= drawn, "each class must have at least shots + queries examples");
  for (std::int64_t member : plan.members)
    require(0 <= member && member < plan.count, "members must be indices of examples");
  require(plan.tasks >= 1 && plan.first_task >= 0 && plan.own_tasks >= 1, "tasks must be at least 1");
  const bool turns = plan.class_rotations || plan.rotate;
  require(!turns || plan.height == plan.width, "pictures must be square to be turned by 90 degrees");
  require(!(turns || plan.flip || plan.crop > 0) || plan.kind == Kind::bytes, "only uint8 pictures can be augmented");
  require(plan.crop >= 0 && plan.per >= 0 && plan.per <= 2, "crop must be at least 0, and per 0, 1 or 2");
  require(plan.kind != Kind::bytes || (static_cast<std::int64_t>(plan.scale.size()) == plan.channels &&
                                       static_cast<std::int64_t>(plan.shift.size()) == plan.channels),
          "scale and shift must have one number per channel");
}

void collate(const EpisodePlan& plan, std::uint64_t batch, const EpisodeArrays& out, CollateScratch& scratch) {
  const std::int64_t classes = static_cast<std::int64_t>(plan.starts.size()) - 1;
  const std::int64_t slot_width = plan.shots.high + plan.queries.high;
  const std::uint64_t root = mix(plan.seed + kGolden);
  scratch.classes.resize(plan.ways.high);
  scratch.places.resize(plan.ways.high * slot_width);
  for (std::int64_t task = 0; task < plan.own_tasks; ++task) {
    const std::uint64_t key = draw(root, batch * plan.tasks + plan.first_task + task);
    const std::uint64_t sizes = draw(key, 0);
    const std::int64_t ways = between(draw(sizes, 0), plan.ways);
    const std::int64_t shots = between(draw(sizes, 1), plan.shots);
    const std::int64_t queries = between(draw(sizes, 2), plan.queries);
    choose(sizes, 3, classes * (plan.class_rotations ? 4 : 1), ways, scratch.order, scratch.classes.data());
    for (std::int64_t slot = 0; slot < ways; ++slot) {
      const std::int64_t chosen = scratch.classes[slot] % classes;
      choose(draw(key, 1 + (plan.same_positions ? 0 : slot)), 0, plan.starts[chosen + 1] - plan.starts[chosen],
             shots + queries, scratch.order, &scratch.places[slot * slot_width]);
    }
    const std::int64_t support = plan.support(), query = plan.query();
    write_part(plan, key, ways,
               {advance(plan, out.support_x, task * support), out.support_y + task * support,
                out.support_mask + task * support, support, shots, 0},
               slot_width, scratch);
    write_part(plan, key, ways,
               {advance(plan, out.query_x, task * query), out.query_y + task * query, out.query_mask + task * query,
                query, queries, shots},
               slot_width, scratch);
    out.classes[task] = ways;
  }
}

Collator::Collator(EpisodePlan plan, int workers)
    : workers_(std::max(1, workers)), owner_(static_cast<long>(getpid())), queue_(std::make_unique<Queue>()) {
  check(plan);
  plan_ = std::make_unique<const EpisodePlan>(std::move(plan));
}

bool Collator::forked() const { return static_cast<long>(getpid()) != owner_; }

void Collator::submit(std::uint64_t batch, const EpisodeArrays& out) {
  if (forked()) throw std::runtime_error("the collator belongs to the process that this one was forked from");
  {
    std::lock_guard lock(queue_->mutex);
    if (queue_->closing) throw std::runtime_error("the collator is closed");
    if (!queue_->pending.insert(batch).second) throw std::invalid_argument("this batch is already submitted");
    queue_->jobs.push_back({batch, out});
    while (static_cast<int>(queue_->threads.size()) < workers_) queue_->threads.emplace_back([this] { work(); });
  }
  queue_->queued.notify_one();
}

bool Collator::wait(std::uint64_t batch) {
  if (forked()) return false;
  Queue& q = *queue_;
  std::unique_lock lock(q.mutex);
  q.finished.wait(lock, [&] { return q.closing || q.done.count(batch) != 0 || q.pending.count(batch) == 0; });
  if (q.done.erase(batch) == 0) return false;
  q.pending.erase(batch);
  return true;
}

void Collator::close() {
  if (forked()) {
    static_cast<void>(queue_.release());
    static_cast<void>(plan_.release());
    return;
  }
  std::vector<std::thread> threads;
  {
    std::lock_guard lock(queue_->mutex);
    queue_->closing = true;
    queue_->jobs.clear();
    threads.swap(queue_->threads);
  }
  queue_->queued.notify_all();
  queue_->finished.notify_all();
  for (std::thread& thread : threads) thread.join();
}

void Collator::work() {
  Queue& q = *queue_;
  CollateScratch scratch;
  std::unique_lock lock(q.mutex);
  for (;;) {
    q.queued.wait(lock, [&] { return q.closing || !q.jobs.empty(); });
    if (q.closing) return;
    const Job job = q.jobs.front();
    q.jobs.pop_front();
    lock.unlock();
    collate(*plan_, job.batch, job.out, scratch);
    lock.lock();
    q.done.insert(job.batch);
    q.finished.notify_all();
  }
}

}  // namespace metafast::host
