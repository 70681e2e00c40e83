// Random operations on KvCache, read from bytes; built under the sanitizers by `make fuzz`.
//
//     fuzz_kv_cache OPERATIONS SEED THREADS
//
// makes the bytes itself. With one thread it keeps a model of who holds which slot and calls `check` after every
// operation; more threads share one cache and each its own requests, as the header's rules for threads allow.
// A fuzzer that brings the bytes (-fsanitize=fuzzer -DBERTGEN_LIBFUZZER) calls the same.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "kv_cache.h"

using namespace bertgen;

namespace {

#define EXPECT(condition)                                                              \
  do {                                                                                 \
    if (!(condition)) {                                                                \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                    \
    }                                                                                  \
  } while (false)

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return at_ >= size_; }
  int next() { return empty() ? 0 : data_[at_++]; }
  int64_t below(int64_t limit) { return next() % limit; }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

// One cache and its tables, which all threads share.
struct Shared {
  explicit Shared(const Limits& limits)
      : own(limits.rows * limits.positions, -1), sources(limits.rows * limits.source_positions, -1) {
    Status status;
    cache = KvCache::create(limits, &status);
    EXPECT(cache != nullptr && status == kOk);
  }
  std::unique_ptr<KvCache> cache;
  std::vector<int32_t> own, sources;
};

struct Row {
  int64_t next = 0, positions = 0;
  bool finished = false;
  std::map<int64_t, int32_t> slots;  // of the positions it took
};

struct Request {
  Admission admission;
  uint64_t key;
  int64_t source_length;
  std::vector<Row> rows;
};

// One user of a cache, and what it must find there.
class User {
 public:
  // `alone`: nobody else uses the cache, so that what is refused can be told and everything recounted.
  User(Shared& shared, bool alone) : shared_(shared), cache_(*shared.cache), alone_(alone) {}

  void operate(Bytes& bytes) {
    switch (bytes.below(8)) {
      case 0:
      case 1:
        admit(bytes);
        break;
      case 2:
      case 3:
      case 4:
        step(bytes);
        break;
      case 5:
        extend(bytes);
        break;
      case 6:
        finish(bytes);
        break;
      default:
        release(bytes);
    }
    if (alone_) recount();
  }

  void release_all() {
    for (const Request& request : requests_) EXPECT(cache_.release(request.admission.request) == kOk);
    requests_.clear();
    if (alone_) recount();
  }

 private:
  void admit(Bytes& bytes) {
    const Limits& limits = cache_.limits();
    const int64_t rows = bytes.below(16) == 0 ? odd(bytes) : 1 + bytes.below(limits.rows);
    const int64_t positions = bytes.below(16) == 0 ? odd(bytes) : 1 + bytes.below(limits.positions);
    const uint64_t key = bytes.below(6);
    // One length to a key, mostly.
    const int64_t shift = bytes.below(16) == 0 ? 1 : 0;
    const int64_t length = bytes.below(16) == 0 ? odd(bytes) : (key * 7 + shift) % (limits.source_positions + 1);
    Admission admission{-1, -1, -1, -1};
    const Status status = cache_.admit(rows, positions, key, length, &admission);
    if (status != kOk) {
      EXPECT(admission.request == -1);
      if (alone_ && requests_.empty()) EXPECT(status != kRowsNow && status != kPagesNow && status != kSourceNow);
      return;
    }
    for (const Request& other : requests_) {
      EXPECT(other.admission.request != admission.request);
      const int64_t first = other.admission.first_row, end = first + static_cast<int64_t>(other.rows.size());
      EXPECT(admission.first_row >= end || admission.first_row + rows <= first);
      if (length > 0 && other.source_length > 0 && other.key == key) {
        EXPECT(other.admission.source == admission.source && !admission.is_new);
      }
    }
    EXPECT((admission.source >= 0) == (length > 0));
    requests_.push_back({admission, key, length, std::vector<Row>(rows)});
    for (Row& row : requests_.back().rows) row.positions = positions;
    // A thread that shares a source must not write its table while others may read it.
    if (admission.is_new || alone_) EXPECT(cache_.fill_source(admission.request, shared_.sources.data()) == kOk);
  }

  void step(Bytes& bytes) {
    std::vector<int32_t> rows, positions;
    std::vector<Row*> held;
    bool good = true;
    for (Request& request : requests_) {
      for (size_t i = 0; i < request.rows.size(); ++i) {
        Row& row = request.rows[i];
        const int64_t kind = bytes.below(32);
        if (kind == 0 || ((row.finished || row.next >= row.positions) && kind > 1)) continue;
        const int64_t skip = kind == 2 ? bytes.below(5) : 0;
        rows.push_back(static_cast<int32_t>(request.admission.first_row + i));
        positions.push_back(static_cast<int32_t>(row.next + skip));
        held.push_back(&row);
        good &= !row.finished && positions.back() < row.positions;
        if (kind == 3 && row.next > 0) {
          positions.back() = static_cast<int32_t>(row.next - 1);
          good = false;
        }
      }
    }
    if (alone_ && bytes.below(16) == 0 && !rows.empty()) {  // among threads the row might be another's
      const int32_t wrong[] = {rows[0], -1, static_cast<int32_t>(cache_.limits().rows), free_row()};
      rows.push_back(wrong[bytes.below(4)]);
      positions.push_back(0);
      good = false;
    }
    std::vector<int32_t> slots(rows.size(), -1);
    int64_t where = -1;
    const Status status = cache_.step(rows.data(), positions.data(), rows.size(), shared_.own.data(), slots.data(),
                                      &where);
    EXPECT((status == kOk) == good);
    if (status != kOk) return;
    for (size_t i = 0; i < held.size(); ++i) take(rows[i], *held[i], positions[i], slots[i]);
  }

  // A row that nobody has, or a number that is none.
  int32_t free_row() const {
    int64_t row = 0;
    for (bool taken = true; taken;) {
      taken = false;
      for (const Request& request : requests_) {
        const int64_t first = request.admission.first_row, end = first + static_cast<int64_t>(request.rows.size());
        if (first <= row && row < end) {
          row = end;
          taken = true;
        }
      }
    }
    return static_cast<int32_t>(row);
  }

  void extend(Bytes& bytes) {
    if (alone_ && bytes.below(16) == 0) {
      EXPECT(cache_.extend(free_row(), 1, shared_.own.data()) == kUnknownRow);
      EXPECT(cache_.finish_row(free_row()) == kUnknownRow);
      EXPECT(cache_.fill_source(odd(bytes), shared_.sources.data()) == kUnknownRequest || !requests_.empty());
    }
    if (requests_.empty()) return;
    Request& request = requests_[bytes.below(requests_.size())];
    const int64_t index = bytes.below(request.rows.size()), number = request.admission.first_row + index;
    Row& row = request.rows[index];
    const int64_t count = bytes.below(16) == 0 ? odd(bytes) : bytes.below(6);
    const bool good = !row.finished && count >= 0 && count <= row.positions - row.next;
    const int64_t from = row.next;
    EXPECT((cache_.extend(number, count, shared_.own.data()) == kOk) == good);
    for (int64_t t = from; good && t < from + count; ++t) {
      take(number, row, t, shared_.own[number * cache_.limits().positions + t]);
    }
  }

  void take(int64_t number, Row& row, int64_t position, int32_t slot) {
    const Limits& limits = cache_.limits();
    EXPECT(0 <= slot && slot < limits.slots / limits.page * limits.page);
    EXPECT(slot % limits.page == position % limits.page);
    EXPECT(shared_.own[number * limits.positions + position] == slot);
    row.slots[position] = slot;
    row.next = position + 1;
  }

  void finish(Bytes& bytes) {
    if (requests_.empty()) return;
    Request& request = requests_[bytes.below(requests_.size())];
    const int64_t index = bytes.below(request.rows.size());
    EXPECT(cache_.finish_row(request.admission.first_row + index) == (request.rows[index].finished ? kFinishedRow : kOk));
    request.rows[index].finished = true;
  }

  void release(Bytes& bytes) {
    if (requests_.empty()) {
      if (alone_) EXPECT(cache_.release(odd(bytes)) == kUnknownRequest);
      return;
    }
    const int64_t index = bytes.below(requests_.size());
    const int64_t request = requests_[index].admission.request;
    EXPECT(cache_.release(request) == kOk);
    EXPECT(cache_.release(request) == kUnknownRequest);
    requests_.erase(requests_.begin() + index);
  }

  // Numbers at the edges of everything.
  int64_t odd(Bytes& bytes) {
    const int64_t numbers[] = {-1, 0, INT64_MAX, INT64_MIN, INT32_MAX, INT32_MIN, int64_t{1} << 32, 1000000};
    return alone_ ? numbers[bytes.below(8)] : -1;
  }

  void recount() {
    EXPECT(cache_.check(shared_.own.data(), shared_.sources.data()) == kSound);
    const Limits& limits = cache_.limits();
    const Statistics found = cache_.statistics();
    std::vector<bool> taken(limits.slots, false);
    int64_t rows = 0;
    for (const Request& request : requests_) {
      rows += request.rows.size();
      for (size_t i = 0; i < request.rows.size(); ++i) {
        for (const auto& [position, slot] : request.rows[i].slots) {
          EXPECT(!taken[slot]);
          taken[slot] = true;
          EXPECT(shared_.own[(request.admission.first_row + i) * limits.positions + position] == slot);
        }
      }
    }
    EXPECT(found.requests == static_cast<int64_t>(requests_.size()) && found.rows_used == rows);
    EXPECT(found.pages_reserved + found.pages_used <= found.pages);
    if (requests_.empty()) EXPECT(found.pages_used + found.pages_reserved + found.source_pages_used == 0);
  }

  Shared& shared_;
  KvCache& cache_;
  const bool alone_;
  std::vector<Request> requests_;
};

Limits limits_from(Bytes& bytes) {
  Limits limits;
  limits.rows = 1 + bytes.below(8);
  limits.positions = 1 + bytes.below(20);
  limits.page = 1 + bytes.below(6);
  limits.slots = 1 + bytes.below(100);
  limits.source_positions = bytes.below(12);
  limits.source_slots = bytes.below(40);
  limits.source_page = 1 + bytes.below(5);
  return limits;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  Shared shared(limits_from(bytes));
  User user(shared, true);
  while (!bytes.empty()) user.operate(bytes);
  user.release_all();
  return 0;
}

#ifndef BERTGEN_LIBFUZZER
namespace {

constexpr int64_t kRound = 400;  // operations to a cache

std::vector<uint8_t> random_bytes(std::mt19937_64& random, size_t size) {
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() >> 32);
  return bytes;
}

void run_alone(int64_t operations, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (int64_t done = 0; done < operations; done += kRound) {
    // An operation takes 1 to 260 bytes, a step one for each row.
    const std::vector<uint8_t> data = random_bytes(random, 1 << 14);
    Bytes bytes(data.data(), data.size());
    Shared shared(limits_from(bytes));
    User user(shared, true);
    for (int64_t i = 0; i < kRound; ++i) user.operate(bytes);
    user.release_all();
  }
}

void run_threads(int64_t operations, uint64_t seed, int64_t count) {
  Shared shared({32, 24, 32 * 24 / 2, 4, 8, 64, 4});
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < count; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937_64 random(seed + thread);
      User user(shared, false);
      for (int64_t done = 0; done < operations / count; ++done) {
        const std::vector<uint8_t> data = random_bytes(random, 64);
        Bytes bytes(data.data(), data.size());
        user.operate(bytes);
        if (done % 64 == 0) EXPECT(shared.cache->check(nullptr, nullptr) == kSound);
        if (done % 16 == 0) user.release_all();
      }
      user.release_all();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT(shared.cache->check(shared.own.data(), shared.sources.data()) == kSound);
  EXPECT(shared.cache->statistics().rows_used == 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s OPERATIONS SEED THREADS\n", argv[0]);
    return 2;
  }
  const int64_t operations = std::atoll(argv[1]), seed = std::atoll(argv[2]), threads = std::atoll(argv[3]);
  threads > 1 ? run_threads(operations, seed, threads) : run_alone(operations, seed);
  std::printf("%lld operations, %lld threads: sound\n", static_cast<long long>(operations),
              static_cast<long long>(threads));
  return 0;
}
#endif
