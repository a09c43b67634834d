// Runs independent tasks on the threads of a pool, or of a caller's executor.
#pragma once

#include <cstdint>
#include <functional>

namespace slidetile {

/// One unit of work. worker is in [0, workers()) and no two tasks with the same worker run at once, so it can index scratch memory.
using Task = std::function<void(int64_t index, int worker)>;

/// Where parallel loops run. Derive from it to run the library on your own threads.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual int workers() const noexcept = 0;
  /// Runs task(i, worker) once for every i in [0, count), in any order, and returns when all are done. The first exception
  /// that a task throws is thrown again here; tasks not yet started are then dropped. May be called from several threads.
  virtual void run(int64_t count, const Task& task) = 0;
};

/// Threads that this process may use: its affinity mask, and the processor quota of its control group, rounded up.
int usable_threads() noexcept;

/// A pool of threads, the caller's included; threads = 0 means usable_threads(). Throws if threads < 0.
class ThreadPool final : public Executor {
 public:
  explicit ThreadPool(int threads = 0);
  ~ThreadPool() override;
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int workers() const noexcept override;
  void run(int64_t count, const Task& task) override;

 private:
  struct State;
  State* state_;
};

/// The pool that is used where no executor is given; made at first use, with usable_threads() threads. A child of fork() has its own.
Executor& default_executor();

}  // namespace slidetile
