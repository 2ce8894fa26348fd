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
  explicit ThreadPool(int threads);   // throws std::system_error when there cannot be so many
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }
  // Runs f(thread) on every thread, the caller being thread 0; returns when all have returned. f must not throw: the others
  // wait for this one, so with more than one thread an exception ends the process. Throws std::runtime_error after a fork.
  void run(const std::function<void(int)>& f);
  // Inside run: waits until every thread is here.
  void barrier();
  // Inside run: waits until another thread has brought `progress` to `least`.
  static void wait(const std::atomic<int>& progress, int least);

 private:
  void work(int thread);
  void stop();

  int size_, process_;  // a fork of the process has no threads but its own
  std::vector<std::thread> threads_;
  const std::function<void(int)>* job_ = nullptr;
  std::mutex mutex_;
  std::condition_variable* wake_;  // never destroyed in a fork, where it would wait for threads that are not there
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  bool stop_ = false;
};

}  // namespace vglm
