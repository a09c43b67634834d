// A line on the terminal that says how far long work is; nothing where the standard error is no terminal.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

#include "slidetile/parallel.h"

class Progress {
 public:
  explicit Progress(std::string label);
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  /// Takes the line away.
  ~Progress();

  bool shown() const noexcept { return shown_; }
  /// From any thread; the line changes ten times a second at most.
  void update(int64_t done, int64_t total);

 private:
  const std::string label_;
  const bool shown_;
  const std::chrono::steady_clock::time_point start_;
  std::mutex mutex_;
  std::chrono::steady_clock::time_point next_;
};

/// Runs tasks on another executor and tells a progress line how many are done.
class ProgressExecutor final : public slidetile::Executor {
 public:
  ProgressExecutor(slidetile::Executor& inner, Progress& progress) : inner_(inner), progress_(progress) {}

  int workers() const noexcept override { return inner_.workers(); }
  void run(int64_t count, const slidetile::Task& task) override;

 private:
  slidetile::Executor& inner_;
  Progress& progress_;
};
