#include "thread_pool.hpp"

#include <unistd.h>

#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace vglm {
namespace {

// Spinning is right while every thread has a processor of its own. Where another program takes one, two threads of the pool
// may share the other, and each spin keeps the very thread that is waited for from running: so give way after a few
// microseconds. A yield with nobody else to run costs less than one.
constexpr int kSpins = 100;
constexpr int kIdleTurns = 1500;   // spins and yields between steps, before a worker sleeps: about half a millisecond

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

void pause(int turn) {
  if (turn < kSpins)
    relax();
  else
    std::this_thread::yield();
}

// Denormals cost a hundred times a normal number and mean nothing here. Restored for the caller, whose thread it is.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

}  // namespace

ThreadPool::ThreadPool(int threads) : size_(threads), process_(getpid()), wake_(new std::condition_variable) {
  try {
    for (int i = 1; i < threads; i++) threads_.emplace_back([this, i] { work(i); });
  } catch (...) {
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  if (process_ != getpid()) {
    for (auto& t : threads_) t.detach();
    return;
  }
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    round_.fetch_add(1);
  }
  wake_->notify_all();
  for (auto& t : threads_) t.join();
  delete wake_;
}

void ThreadPool::run(const std::function<void(int)>& f) {
  FlushDenormals flush;
  if (size_ == 1) return f(0);
  if (process_ != getpid()) throw std::runtime_error("the model was loaded before this process was forked; load it again here");
  {
    std::lock_guard lock(mutex_);
    job_ = &f;
    round_.fetch_add(1);
  }
  wake_->notify_all();
  [&]() noexcept { f(0); }();
  barrier();
}

void ThreadPool::work(int thread) {
  FlushDenormals flush;
  uint32_t seen = 0;
  for (;;) {
    for (int i = 0; i < kIdleTurns && round_.load(std::memory_order_acquire) == seen; i++) pause(i);
    const std::function<void(int)>* job;
    {
      std::unique_lock lock(mutex_);
      wake_->wait(lock, [&] { return round_.load() != seen; });
      seen = round_.load();
      if (stop_) return;
      job = job_;
    }
    (*job)(thread);
    barrier();
  }
}

void ThreadPool::barrier() {
  if (size_ == 1) return;
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int i = 0; phase_.load(std::memory_order_acquire) == phase; i++) pause(i);
}

void ThreadPool::wait(const std::atomic<int>& progress, int least) {
  for (int i = 0; progress.load(std::memory_order_acquire) < least; i++) pause(i);
}

}  // namespace vglm
