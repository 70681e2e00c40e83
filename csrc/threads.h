// How CPU kernels share work among the threads of their caller.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace bertgen {

// The threads of a caller: `run(worker)` calls the worker at least once, and once on each of several threads where it
// has them, `count` at most; it returns after all calls have returned.
struct Threads {
  int64_t count;
  std::function<void(const std::function<void()>&)> run;
};

struct NoWorkspace {};

// Calls `task(i, workspace)` once for each i < count. A thread takes the next task when it has finished one, and keeps
// one `Workspace` for all its tasks. `floats` is how many floats all tasks read together.
template <class Workspace, class F>
void for_each(int64_t count, int64_t floats, const Threads& threads, const F& task) {
  std::atomic<int64_t> next{0};
  const std::function<void()> worker = [&] {
    Workspace workspace;
    for (int64_t i = next++; i < count; i = next++) task(i, workspace);
  };
  // Waking a thread takes some microseconds, as long as reading this many floats.
  const bool alone = threads.count == 1 || count <= 1 || floats < (1 << 14);
  alone ? worker() : threads.run(worker);
}

}  // namespace bertgen
