#include "slidetile/parallel.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "slidetile/error.h"

namespace slidetile {
namespace {

// Processors granted by the control group, 0 where it sets no limit. Version 2 has "quota period" in one file.
double quota_processors() {
  double quota = 0, period = 0;
  std::string first;
  if (std::ifstream file("/sys/fs/cgroup/cpu.max"); file >> first >> period) {
    if (first == "max" || period <= 0) return 0;
    return std::strtod(first.c_str(), nullptr) / period;
  }
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) return quota / period;
  return 0;
}

}  // namespace

int usable_threads() noexcept {
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) threads = std::max(1, CPU_COUNT(&set));
  try {
    if (const double quota = quota_processors(); quota > 0) threads = std::min(threads, std::max(1, static_cast<int>(std::ceil(quota))));
  } catch (...) {  // unreadable: no quota is known
  }
  return threads;
}

struct ThreadPool::State {
  std::vector<std::thread> threads;
  std::mutex run_mutex;  // one run at a time
  std::mutex mutex;
  std::condition_variable work, done;
  const Task* task = nullptr;
  int64_t count = 0;
  std::atomic<int64_t> next{0};
  int busy = 0;
  uint64_t generation = 0;
  bool stop = false;
  std::exception_ptr error;

  void drain(int worker) {
    for (int64_t index = next.fetch_add(1); index < count; index = next.fetch_add(1)) {
      try {
        (*task)(index, worker);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
        next = count;
      }
    }
  }

  void serve(int worker) {
    uint64_t seen = 0;
    std::unique_lock lock(mutex);
    for (;;) {
      work.wait(lock, [&] { return stop || generation != seen; });
      if (stop) return;
      seen = generation;
      lock.unlock();
      drain(worker);
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(nullptr) {
  require(threads >= 0 && threads <= 4096, "thread pool: got ", threads, " threads, expected 0 (all) to 4096");
  if (threads == 0) threads = usable_threads();
  state_ = new State;
  for (int worker = 1; worker < threads; ++worker) {
    state_->threads.emplace_back([state = state_, worker] { state->serve(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->work.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
  delete state_;
}

int ThreadPool::workers() const noexcept { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::run(int64_t count, const Task& task) {
  if (count <= 0) return;
  State& state = *state_;
  const std::lock_guard one_run(state.run_mutex);
  {
    const std::lock_guard lock(state.mutex);
    state.task = &task;
    state.count = count;
    state.next = 0;
    state.error = nullptr;
    state.busy = static_cast<int>(state.threads.size());
    ++state.generation;
  }
  state.work.notify_all();
  state.drain(0);
  std::unique_lock lock(state.mutex);
  state.done.wait(lock, [&] { return state.busy == 0; });
  if (state.error) std::rethrow_exception(state.error);
}

namespace {

// A child made by fork() has the pool's memory but none of its threads: it makes a pool of its own, and lets its parent's be. No lock
// guards this, since a fork may copy a lock that is held.
class DefaultPool {
 public:
  DefaultPool() {
    pthread_atfork(nullptr, nullptr, [] { parents_ = pool_.exchange(nullptr); });
  }
  ~DefaultPool() { delete pool_.load(); }

  ThreadPool& get() const {
    ThreadPool* known = pool_;
    if (known != nullptr) return *known;
    auto made = std::make_unique<ThreadPool>();
    return pool_.compare_exchange_strong(known, made.get()) ? *made.release() : *known;
  }

 private:
  static inline std::atomic<ThreadPool*> pool_ = nullptr;
  static inline std::atomic<ThreadPool*> parents_ = nullptr;  // still pointed to: not a leak
};

}  // namespace

Executor& default_executor() {
  static const DefaultPool pool;
  return pool.get();
}

}  // namespace slidetile
