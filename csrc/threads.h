// How CPU kernels share work among the threads of their caller.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace bertgen {

// How to run something on the caller's threads: `everywhere(f)` calls f once or more on each of `count` and returns
// when all have returned.
struct Threads {
  int64_t count;
  std::function<void(const std::function<void()>&)> everywhere;
};

struct Nothing {};  // the workspace of tasks that need none

// Calls `task(i, workspace)` for i < count, each once, on as many threads as there is work for: those that are done
// first take the next. Each thread has a `Workspace` of its own. `floats` is how many the tasks read in all.
template <class Workspace, class F>
void for_each(int64_t count, int64_t floats, const Threads& threads, const F& task) {
  std::atomic<int64_t> next{0};
  const std::function<void()> worker = [&] {
    Workspace workspace;
    for (int64_t i = next++; i < count; i = next++) task(i, workspace);
  };
  // Waking a thread takes some microseconds, as long as reading these.
  const bool alone = threads.count == 1 || count <= 1 || floats < (1 << 14);
  alone ? worker() : threads.everywhere(worker);
}

}  // namespace bertgen
