#include "progress.h"

#include <unistd.h>

#include <cstdio>
#include <utility>

using Clock = std::chrono::steady_clock;

Progress::Progress(std::string label)
    : label_(std::move(label)), shown_(isatty(STDERR_FILENO) != 0), start_(Clock::now()), next_(start_ + std::chrono::milliseconds(300)) {}

Progress::~Progress() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

void Progress::update(int64_t done, int64_t total) {
  if (!shown_) return;
  const std::unique_lock lock(mutex_, std::try_to_lock);
  const auto now = Clock::now();
  if (!lock.owns_lock() || now < next_) return;
  next_ = now + std::chrono::milliseconds(100);
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double percent = total > 0 ? 100 * static_cast<double>(done) / static_cast<double>(total) : 0;
  std::fprintf(stderr, "\r\033[K%s: %.0f %%, %.1f s", label_.c_str(), percent, seconds);
}

void ProgressExecutor::run(int64_t count, const slidetile::Task& task) {
  std::atomic<int64_t> done{0};
  inner_.run(count, [&](int64_t index, int worker) {
    task(index, worker);
    progress_.update(done.fetch_add(1, std::memory_order_relaxed) + 1, count);
  });
}
