#include "slidetile/parallel.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <vector>

#include "slidetile/error.h"

using namespace slidetile;

TEST_CASE("every index runs once, whatever the number of threads") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK(pool.workers() == threads);
    for (const int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(count));
      std::atomic<bool> worker_in_range = true;
      pool.run(count, [&](int64_t index, int worker) {
        ++runs[static_cast<size_t>(index)];
        if (worker < 0 || worker >= threads) worker_in_range = false;
      });
      CHECK(worker_in_range);
      for (const auto& n : runs) CHECK(n == 1);
    }
  }
}

TEST_CASE("no two tasks share a worker at once") {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<bool> shared = false;
  pool.run(2000, [&](int64_t, int worker) {
    if (inside[static_cast<size_t>(worker)]++ != 0) shared = true;
    --inside[static_cast<size_t>(worker)];
  });
  CHECK_FALSE(shared);
}

TEST_CASE("the first exception comes back and the pool works on") {
  ThreadPool pool(3);
  CHECK_THROWS_WITH_AS(pool.run(100,
                                [](int64_t index, int) {
                                  if (index == 5) throw std::runtime_error("five");
                                }),
                       "five", std::runtime_error);
  std::atomic<int> runs = 0;
  pool.run(10, [&](int64_t, int) { ++runs; });
  CHECK(runs == 10);
}

TEST_CASE("several threads may use one pool") {
  ThreadPool pool(2);
  std::atomic<int> runs = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      for (int n = 0; n < 50; ++n) pool.run(3, [&](int64_t, int) { ++runs; });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(runs == 4 * 50 * 3);
}

TEST_CASE("thread counts") {
  CHECK(usable_threads() >= 1);
  CHECK_THROWS_AS(ThreadPool(-1), Error);
  CHECK(&default_executor() == &default_executor());
}

// ThreadSanitizer ends children of processes that have threads; qemu's user emulation aborts in them when they start threads of their own.
#if !defined(__SANITIZE_THREAD__) && !defined(SLIDETILE_EMULATED)
TEST_CASE("a child of fork() has a pool of its own, and ends") {
  default_executor().run(100, [](int64_t, int) {});
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    alarm(20);  // rather than hang
    std::atomic<int> runs = 0;
    default_executor().run(100, [&](int64_t, int) { ++runs; });
    std::exit(runs == 100 ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}
#endif
