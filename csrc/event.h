// A counter that threads can wait for.
#pragma once

#include <atomic>
#include <cstdint>

#include "compiler.h"

#if defined(__linux__) && defined(BERTGEN_GNU)
#define BERTGEN_FUTEX
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#include <mutex>
#endif

namespace bertgen {

// Counts signals. A thread reads the count, looks at what it waits for, and if need be waits for another count:
//
//     const uint32_t seen = event.count();
//     if (!ready()) event.wait(seen);
class Event {
 public:
  uint32_t count() const { return count_.load(std::memory_order_acquire); }

  // Counts one more, then wakes at most `threads` of those that wait.
  void signal(int threads) {
    count_.fetch_add(1);
    wake(threads);
  }

  // Wakes at most `threads` of those that wait.
  void wake(int threads) {
    if (waiting_.load() <= 0) return;
#if defined(BERTGEN_FUTEX)
    const long woken = syscall(SYS_futex, word(), FUTEX_WAKE_PRIVATE, threads, nullptr, nullptr, 0);
    // Here and not by who wakes up: until the system schedules it, others would be waking it, too.
    if (woken > 0) waiting_.fetch_sub(static_cast<int32_t>(woken));
#else
    const std::lock_guard<std::mutex> lock(mutex_);
    for (int i = 0; i < threads; ++i) condition_.notify_one();
#endif
  }

  // Returns when woken, at once where the count is not `seen`, and now and then without a reason.
  void wait(uint32_t seen) {
    waiting_.fetch_add(1);
#if defined(BERTGEN_FUTEX)
    if (syscall(SYS_futex, word(), FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0) != 0) waiting_.fetch_sub(1);
#else
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (count() == seen) condition_.wait(lock);
    }
    waiting_.fetch_sub(1);
#endif
  }

 private:
  std::atomic<uint32_t> count_{0};
  std::atomic<int32_t> waiting_{0};  // added to before the count is compared, read after it has changed
#if defined(BERTGEN_FUTEX)
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t), "the system reads the count");
  uint32_t* word() { return reinterpret_cast<uint32_t*>(&count_); }
#else
  std::mutex mutex_;
  std::condition_variable condition_;
#endif
};

}  // namespace bertgen
