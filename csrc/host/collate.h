// Meta-batches gathered from one array of examples, in threads of their own. No torch, no Python.
//
// metafast/data/_collate.py says what a meta-batch holds; this follows it draw for draw and bit for bit.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <vector>

namespace metafast::host {

enum class Kind { bytes, tokens, floats };  // uint8 [M, C, H, W] -> float, int32 [M, L] -> int64, float [M, F] -> float

struct Range {
  std::int64_t low = 1, high = 1;
};

struct EpisodePlan {
  Kind kind = Kind::bytes;
  const void* examples = nullptr;
  std::int64_t count = 0, channels = 1, height = 1, width = 1;  // tokens and floats: width is the whole example
  std::vector<std::int64_t> members, starts;  // class c has members[starts[c]] up to members[starts[c + 1]]
  std::uint64_t seed = 0;
  std::int64_t tasks = 1;                      // of a whole meta-batch
  std::int64_t first_task = 0, own_tasks = 1;  // those that are made here
  Range ways, shots, queries;
  bool same_positions = false, class_rotations = false, rotate = false, flip = false;
  std::int64_t crop = 0;
  int per = 0;                      // 0: augment each example by itself, 1: each class, 2: each task
  std::vector<float> scale, shift;  // per channel: number = scale * byte + shift

  std::int64_t example_size() const { return channels * height * width; }
  std::int64_t support() const { return ways.high * shots.high; }
  std::int64_t query() const { return ways.high * queries.high; }
};

// Where one meta-batch is written. x: float or int64; y, classes: int64; masks: bytes of 0 and 1.
struct EpisodeArrays {
  void* support_x = nullptr;
  std::int64_t* support_y = nullptr;
  void* query_x = nullptr;
  std::int64_t* query_y = nullptr;
  std::uint8_t* support_mask = nullptr;
  std::uint8_t* query_mask = nullptr;
  std::int64_t* classes = nullptr;
};

// Throws std::invalid_argument where an index or a size could lead outside of the examples.
void check(const EpisodePlan& plan);

// Memory that one thread reuses from task to task.
struct CollateScratch {
  std::vector<std::int64_t> classes, order, places;
  std::vector<std::uint8_t> patch;
};

void collate(const EpisodePlan& plan, std::uint64_t batch, const EpisodeArrays& out, CollateScratch& scratch);

// A queue of meta-batches and the threads that fill them. The arrays must live until wait() or close() has returned.
//
// A forked child has the object and not the threads: there submit() and wait() fail, and close() lets go of everything.
class Collator {
 public:
  Collator(EpisodePlan plan, int workers);
  ~Collator() { close(); }
  Collator(const Collator&) = delete;
  Collator& operator=(const Collator&) = delete;

  const EpisodePlan& plan() const { return *plan_; }

  // Never waits; the first call starts the threads.
  void submit(std::uint64_t batch, const EpisodeArrays& out);

  // Waits until `batch` is written; false where it was never submitted, was already waited for, or after close().
  bool wait(std::uint64_t batch);

  // Drops what has not begun, waits for what has, ends the threads. Anything may call it, any number of times.
  void close();

 private:
  struct Job {
    std::uint64_t batch;
    EpisodeArrays out;
  };

  // Apart from the object, because a forked child can neither join the threads nor destroy what they wait for.
  struct Queue {
    std::mutex mutex;
    std::condition_variable queued, finished;
    std::deque<Job> jobs;
    std::unordered_set<std::uint64_t> pending, done;
    std::vector<std::thread> threads;
    bool closing = false;
  };

  void work();
  bool forked() const;

  std::unique_ptr<const EpisodePlan> plan_;
  int workers_;
  long owner_;  // process
  std::unique_ptr<Queue> queue_;
};

}  // namespace metafast::host
