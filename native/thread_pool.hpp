// A few threads that meet often: a forward pass has hundreds of barriers of a microsecond, so waiters spin for a while before
// they sleep, and give their time slice away when the machine is busy.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace vglm {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }
  // Runs f(thread) on every thread, the caller being thread 0; returns when all have returned. f must not throw.
  void run(const std::function<void(int)>& f);
  // Inside run: waits until every thread is here.
  void barrier();

 private:
  void work(int thread);

  int size_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* job_ = nullptr;
  std::mutex mutex_;
  std::condition_variable wake_;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  bool stop_ = false;
};

}  // namespace vglm
