// Callers that share the team of threads; built with ThreadSanitizer by `make fuzz`.
//
//     fuzz_team CALLS SEED CALLERS
//
// Every task must be done once, and each caller must see what its tasks have written. Some tasks fail or run out of
// memory: the call then ends as they do. Between calls the helpers have time to fall asleep. At the end a forked child
// does the same, in the middle of the work of others, unless ThreadSanitizer is there: it stops such a child.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "team.h"

using namespace bertgen;

namespace {

enum Outcome : int { kDone, kOutOfMemory, kFailed };

// What is wrong with one call, or null.
const char* fault(std::mt19937_64& randomness) {
  const auto between = [&](int64_t low, int64_t high) {
    return low + static_cast<int64_t>(randomness() % static_cast<uint64_t>(high - low + 1));
  };
  const int64_t count = between(0, 40), bad = between(0, 7) == 0 ? between(0, 40) : -1, threads = between(1, 6);
  const Outcome how = between(0, 1) ? kOutOfMemory : kFailed;
  std::vector<int64_t> times(static_cast<size_t>(count));
  const int64_t rounds = between(1, 2000);
  Outcome outcome = kDone;
  try {
    for_each<std::vector<int64_t>>(count, int64_t{1} << 20, team_of(threads), [&](int64_t i, std::vector<int64_t>& own) {
      for (int64_t k = 0; k < rounds; ++k) own.assign(1, k);
      ++times[static_cast<size_t>(i)];
      if (i == bad) how == kOutOfMemory ? throw std::bad_alloc() : throw std::logic_error("bad");
    });
  } catch (const std::bad_alloc&) {
    outcome = kOutOfMemory;
  } catch (const std::exception&) {  // on one thread the error itself
    outcome = kFailed;
  }
  const bool fails = bad >= 0 && bad < count;
  if (outcome != (fails ? how : kDone)) return "the call ended otherwise than its tasks";
  for (const int64_t n : times) {
    if (n > 1 || (n == 0 && !fails)) return "a task was not done once";
  }
  if (between(0, 20) == 0) std::this_thread::sleep_for(std::chrono::microseconds(between(0, 3000)));
  return nullptr;
}

// Makes calls from several threads; the number of faults.
int calls(int64_t count, uint64_t seed, int64_t callers) {
  std::atomic<int> faults{0};
  std::vector<std::thread> threads;
  for (int64_t caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&faults, count, seed, caller] {
      std::mt19937_64 randomness(seed + static_cast<uint64_t>(caller));
      for (int64_t call = 0; call < count; ++call) {
        if (const char* what = fault(randomness)) {
          std::fprintf(stderr, "caller %lld, call %lld: %s\n", static_cast<long long>(caller),
                       static_cast<long long>(call), what);
          ++faults;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return faults;
}

// Whether forked children work while others are inside of the team.
bool children_work([[maybe_unused]] int64_t count, [[maybe_unused]] uint64_t seed) {
  bool work = true;
#if !defined(_WIN32) && !defined(__SANITIZE_THREAD__)
  std::atomic<bool> over{false};
  std::thread other([&] {
    std::mt19937_64 randomness(seed);
    while (!over) fault(randomness);
  });
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);  // a child that hangs ends with an error
      std::mt19937_64 randomness(seed + 100);
      int faults = 0;
      for (int64_t call = 0; call < count; ++call) faults += fault(randomness) != nullptr;
      _exit(faults);
    }
    int status = 1;
    work &= waitpid(child, &status, 0) == child && status == 0;
  }
  over = true;
  other.join();
#endif
  return work;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s CALLS SEED CALLERS\n", argv[0]);
    return 2;
  }
  const int64_t count = std::atoll(argv[1]), callers = std::atoll(argv[3]);
  const uint64_t seed = std::strtoull(argv[2], nullptr, 10);
  if (calls(count, seed, callers) > 0) return 1;
  if (!children_work(count / 10, seed)) {
    std::fprintf(stderr, "a forked child has failed\n");
    return 1;
  }
  std::printf("%s calls of each of %s callers: all right\n", argv[1], argv[3]);
  return 0;
}
