#include "team.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <system_error>
#include <thread>

#include "check.h"
#include "compiler.h"
#include "event.h"

#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#endif

namespace bertgen {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

// How long threads spin before they sleep: to be woken takes some tens of microseconds. A helper that waits for work
// spins longer on a processor that nobody else uses.
constexpr microseconds kHelperSpin{20}, kLongHelperSpin{1000}, kCallerSpin{100};
constexpr milliseconds kDisturbed{100};  // a processor that others have used counts as theirs for so long
constexpr milliseconds kRetry{1000};     // after a thread could not be started
constexpr int kWakes = 2;  // threads that one wakes: each wakes others in turn
constexpr int64_t kMostHelpers = 1023;

// Whether `done()` is true within a time.
template <class Done>
bool spin(microseconds time, const Done& done) {
  const Clock::time_point end = Clock::now() + time;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      relax();
    }
  } while (Clock::now() < end);
  return false;
}

// What the threads of a caller call. The exception of a worker is not kept: std::exception_ptr would need a newer
// libstdc++ than torch does.
class Work {
 public:
  explicit Work(const std::function<void()>& worker) : worker_(worker) {}

  void run() noexcept {
    try {
      worker_();
    } catch (const std::bad_alloc&) {
      out_of_memory_ = true;
    } catch (...) {
      failed_ = true;
    }
  }

  // Throws as a worker did.
  void check() const {
    if (out_of_memory_) throw std::bad_alloc();
    BERTGEN_CHECK(!failed_, "a worker failed");
  }

 private:
  const std::function<void()>& worker_;
  std::atomic<bool> out_of_memory_{false}, failed_{false};
};

// Work that helpers may join while its caller does it.
//
// A state counts the helpers inside and the seats: how many more may join. Without seats it is closed.
class Region {
 public:
  // Whether the region is now the caller's.
  bool take() { return !taken_.exchange(true, std::memory_order_acquire); }

  void open(Work& work, int64_t seats) {
    work_ = &work;
    state_.store(static_cast<uint32_t>(seats) * kSeat, std::memory_order_release);
  }

  uint32_t seats() const { return state_.load(std::memory_order_relaxed) / kSeat; }

  // Does the work, unless the region is closed. `joined` is called first.
  template <class Joined>
  bool help(const Joined& joined) {
    uint32_t state = state_.load(std::memory_order_relaxed);
    do {
      if (state < kSeat) return false;
    } while (!state_.compare_exchange_weak(state, state - kSeat + 1, std::memory_order_acquire));
    joined();
    work_->run();
    if (state_.fetch_sub(1, std::memory_order_acq_rel) == (kCallerWaits | 1)) left_.signal(1);
    return true;
  }

  // Waits for the helpers inside, and gives the region back.
  void close() {
    const auto empty = [&] { return state_.load(std::memory_order_acquire) % kCallerWaits == 0; };
    state_.fetch_and(kCallerWaits - 1, std::memory_order_relaxed);
    if (!spin(kCallerSpin, empty)) {
      state_.fetch_or(kCallerWaits, std::memory_order_relaxed);
      for (;;) {
        const uint32_t seen = left_.count();
        if (empty()) break;
        left_.wait(seen);
      }
    }
    taken_.store(false, std::memory_order_release);
  }

 private:
  static constexpr uint32_t kCallerWaits = 1 << 15, kSeat = 1 << 16;

  std::atomic<uint32_t> state_{0};
  std::atomic<bool> taken_{false};
  Work* work_ = nullptr;
  Event left_;  // by the last helper, where the caller waits
  [[maybe_unused]] char apart_[64];  // of the memory that the next region's threads write
};

// Whether others use the processor of a thread.
class Disturbance {
 public:
  bool now() {
#if defined(RUSAGE_THREAD)
    rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) != 0) return true;
    const Clock::time_point time = Clock::now();
    if (usage.ru_nivcsw != switches_) end_ = time + kDisturbed;
    switches_ = usage.ru_nivcsw;
    return time < end_;
#else
    return true;  // this system does not tell
#endif
  }

 private:
  [[maybe_unused]] long switches_ = 0;  // times that the system gave the processor to another thread
  [[maybe_unused]] Clock::time_point end_{};
};

class Team {
 public:
  void run(int64_t count, const std::function<void()>& worker) {
    if (helpers_.load(std::memory_order_relaxed) < count - 1) start(std::min(count - 1, kMostHelpers));
    // Other callers have a processor each.
    const int64_t helpers = helpers_.load(std::memory_order_relaxed);
    const int64_t seats = std::min(count - 1 - callers_.fetch_add(1, std::memory_order_relaxed), helpers);
    Region* region = seats > 0 ? free_region() : nullptr;
    Work work(worker);
    if (region != nullptr) {
      region->open(work, seats);
      opened_.signal(static_cast<int>(std::min<int64_t>(seats, kWakes)));
    }
    work.run();
    if (region != nullptr) region->close();
    callers_.fetch_sub(1, std::memory_order_relaxed);
    work.check();
  }

 private:
  void start(int64_t helpers) noexcept {
    if (starting_.test_and_set(std::memory_order_acquire)) return;
    if (Clock::now() >= retry_) {
      while (helpers_.load(std::memory_order_relaxed) < helpers) {
        try {
          std::thread([this] { help(); }).detach();
        } catch (...) {  // of the system, or of memory
          retry_ = Clock::now() + kRetry;
          break;
        }
        helpers_.fetch_add(1, std::memory_order_relaxed);
      }
    }
    starting_.clear(std::memory_order_release);
  }

  Region* free_region() {
    for (Region& region : regions_) {
      if (region.take()) return &region;
    }
    return nullptr;
  }

  [[noreturn]] void help() {
    block_signals();
    Disturbance disturbance;
    for (;;) {
      const uint32_t seen = opened_.count();
      while (help_one()) {
      }
      const auto another = [&] { return opened_.count() != seen; };
      if (spin(kHelperSpin, another) || (!disturbance.now() && spin(kLongHelperSpin, another))) continue;
      opened_.wait(seen);
    }
  }

  // Helps the caller that has the fewest helpers for its seats; false where none has a seat.
  bool help_one() {
    Region* most = &regions_[0];
    uint32_t seats = most->seats();
    for (Region& region : regions_) {
      if (region.seats() > seats) {
        most = &region;
        seats = region.seats();
      }
    }
    return seats > 0 && most->help([&] {
      if (seats > 1) opened_.wake(kWakes);
    });
  }

  // Signals of the process are for threads that know what to do with them.
  static void block_signals() {
#if !defined(_WIN32)
    sigset_t signals;
    sigfillset(&signals);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) sigdelset(&signals, fault);
#if defined(__linux__)
    sigprocmask(SIG_SETMASK, &signals, nullptr);  // of this thread; pthread_sigmask would need a newer system
#else
    pthread_sigmask(SIG_SETMASK, &signals, nullptr);
#endif
#endif
  }

  Event opened_;
  [[maybe_unused]] char apart_[64];
  Region regions_[8];
  std::atomic<int64_t> helpers_{0}, callers_{0};
  std::atomic_flag starting_ = ATOMIC_FLAG_INIT;
  Clock::time_point retry_{};
};

// Never destroyed: helpers use it until the process ends.
std::atomic<Team*> current{nullptr};

Team& team() {
  Team* found = current.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
#if !defined(_WIN32)
  static std::atomic<bool> registered{false};
  // A forked child has none of the helpers.
  if (!registered.exchange(true)) pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
#endif
  Team* const made = new Team;
  if (current.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

}  // namespace

Threads team_of(int64_t count) {
  return {count, [count](const std::function<void()>& worker) { team().run(count, worker); }};
}

}  // namespace bertgen
