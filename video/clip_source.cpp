#include "video/clip_source.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "slidetile/error.h"
#include "slidetile/parallel.h"

namespace slidetile::video {
namespace {

constexpr int kMostClips = 4096;  // steps times this is a clip's place in the endless source
constexpr size_t kAhead = 4;      // batches

size_t clip_bytes(const Dim3& extent) { return static_cast<size_t>(extent.volume()) * 3; }

ClipBatch empty_batch(const ClipSourceOptions& options) {
  const auto clips = static_cast<size_t>(options.clips);
  return {std::vector<Scene>(clips), std::vector<uint8_t>(clips * clip_bytes(options.extent))};
}

void render_into(const ClipSourceOptions& options, uint64_t step, int clip, ClipBatch& batch) {
  const uint64_t index = step * kMostClips + static_cast<uint64_t>(clip);
  Scene& scene = batch.scenes[static_cast<size_t>(clip)];
  scene = draw_scene(options.seed, index, options.mix);
  const Clip rendered = render(scene, options.extent, (options.seed + 1) * 0x9e3779b97f4a7c15u + index);
  uint8_t* out = batch.pixels.data() + static_cast<size_t>(clip) * clip_bytes(options.extent);
  for (const float value : rendered.pixels) *out++ = static_cast<uint8_t>(std::clamp(value, 0.0f, 1.0f) * 255.0f + 0.5f);
}

void check(const ClipSourceOptions& options) {
  require(options.clips >= 1 && options.clips <= kMostClips, "clips: a batch of ", options.clips, ", expected 1 to ", kMostClips);
  require(options.threads >= 0, "clips: ", options.threads, " threads, expected 0 or more");
}

}  // namespace

ClipBatch clip_batch(const ClipSourceOptions& options, uint64_t step) {
  check(options);
  ClipBatch batch = empty_batch(options);
  for (int clip = 0; clip < options.clips; ++clip) render_into(options, step, clip, batch);
  return batch;
}

struct ClipSource::State {
  struct Pending {
    uint64_t step;
    ClipBatch batch;
    int started = 0, done = 0;
  };

  ClipSourceOptions options;
  std::mutex mutex;
  std::condition_variable work, ready;
  std::deque<Pending> batches;  // ascending steps; references stay valid while the ends change
  std::exception_ptr error;
  bool stop = false;
  double waited = 0;
  std::vector<std::thread> threads;

  Pending* unstarted() {
    for (Pending& pending : batches) {
      if (pending.started < options.clips) return &pending;
    }
    return nullptr;
  }

  void run() {
    std::unique_lock lock(mutex);
    for (;;) {
      Pending* pending = nullptr;
      work.wait(lock, [&] { return stop || (pending = unstarted()) != nullptr; });
      if (stop) return;
      const int clip = pending->started++;
      lock.unlock();
      std::exception_ptr thrown;
      try {
        render_into(options, pending->step, clip, pending->batch);
      } catch (...) {
        thrown = std::current_exception();
      }
      lock.lock();
      if (thrown && !error) error = thrown;
      if (++pending->done == options.clips || error) ready.notify_all();
    }
  }
};

ClipSource::ClipSource(const ClipSourceOptions& options, uint64_t first_step) : state_(std::make_unique<State>()) {
  check(options);
  state_->options = options;
  for (uint64_t step = first_step; step < first_step + kAhead; ++step) state_->batches.push_back({step, empty_batch(options)});
  const int threads = options.threads > 0 ? options.threads : std::max(1, usable_threads() - 1);
  try {
    for (int i = 0; i < threads; ++i) state_->threads.emplace_back([state = state_.get()] { state->run(); });
  } catch (...) {
    state_->stop = true;
    state_->work.notify_all();
    for (std::thread& thread : state_->threads) thread.join();
    throw;
  }
}

ClipSource::~ClipSource() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->work.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

ClipBatch ClipSource::take() {
  const auto start = std::chrono::steady_clock::now();
  std::unique_lock lock(state_->mutex);
  state_->ready.wait(lock, [&] { return state_->error || state_->batches.front().done == state_->options.clips; });
  if (state_->error) std::rethrow_exception(state_->error);
  ClipBatch batch = std::move(state_->batches.front().batch);
  const uint64_t next = state_->batches.back().step + 1;
  state_->batches.pop_front();
  state_->batches.push_back({next, empty_batch(state_->options)});
  state_->waited += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  lock.unlock();
  state_->work.notify_all();
  return batch;
}

double ClipSource::seconds_waited() const noexcept { return state_->waited; }

}  // namespace slidetile::video
