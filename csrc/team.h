// The threads that all kernels of the process share.
//
// Helpers join the work of a caller late or not at all: the caller does it itself meanwhile, and waits only for helpers
// that are inside. So a helper that the system does not schedule, because other processes use its processor, delays
// nobody. A barrier, as at the end of a parallel region of OpenMP, would wait for it.
#pragma once

#include <cstdint>

#include "threads.h"

namespace bertgen {

// Threads that call a worker on the thread of the caller and on up to `count - 1` helpers. Any threads may use them at
// the same time, and share the helpers. Helpers are started when they are first wanted, and again in the child of a
// fork; where the system starts none, there are fewer.
//
// A worker that has no memory makes `run` throw std::bad_alloc, one that throws something else Error.
Threads team_of(int64_t count);

}  // namespace bertgen
