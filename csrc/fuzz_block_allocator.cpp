// Random operations on BlockAllocator, read from bytes; built under the sanitizers by `make fuzz`.
//
//     fuzz_block_allocator OPERATIONS SEED THREADS
//
// makes the bytes itself. With one thread it keeps a model of which row holds which slot and calls `check` after every
// operation. More threads share one allocator, each with its own requests, as the header's rules for threads allow.
// libFuzzer calls the same operations with its bytes (-fsanitize=fuzzer -DBERTGEN_LIBFUZZER).
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "block_allocator.h"

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

// One allocator and its tables, which all threads share.
struct Shared {
  explicit Shared(const Limits& limits)
      : slot_table(limits.rows * limits.positions, -1), source_table(limits.rows * limits.source_positions, -1) {
    Status status;
    allocator = BlockAllocator::create(limits, &status);
    EXPECT(allocator != nullptr && status == kOk);
  }
  std::unique_ptr<BlockAllocator> allocator;
  std::vector<int32_t> slot_table, source_table;
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

// One user of an allocator, with a model of the results it must get.
class User {
 public:
  // `alone`: the only user of the allocator, so that refusals can be predicted and everything can be recounted.
  User(Shared& shared, bool alone) : shared_(shared), allocator_(*shared.allocator), alone_(alone) {}

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
    for (const Request& request : requests_) EXPECT(allocator_.release(request.admission.request) == kOk);
    requests_.clear();
    if (alone_) recount();
  }

 private:
  void admit(Bytes& bytes) {
    const Limits& limits = allocator_.limits();
    const int64_t rows = bytes.below(16) == 0 ? extreme(bytes) : 1 + bytes.below(limits.rows);
    const int64_t positions = bytes.below(16) == 0 ? extreme(bytes) : 1 + bytes.below(limits.positions);
    const uint64_t key = bytes.below(6);
    // Mostly one length for each key.
    const int64_t shift = bytes.below(16) == 0 ? 1 : 0;
    const int64_t length = bytes.below(16) == 0 ? extreme(bytes) : (key * 7 + shift) % (limits.source_positions + 1);
    Admission admission{-1, -1, -1, -1};
    const Status status = allocator_.admit(rows, positions, key, length, &admission);
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
    if (admission.is_new || alone_) {
      EXPECT(allocator_.fill_source(admission.request, shared_.source_table.data()) == kOk);
    }
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
      const int32_t wrong[] = {rows[0], -1, static_cast<int32_t>(allocator_.limits().rows), free_row()};
      rows.push_back(wrong[bytes.below(4)]);
      positions.push_back(0);
      good = false;
    }
    std::vector<int32_t> slots(rows.size(), -1);
    int64_t where = -1;
    const Status status = allocator_.step(rows.data(), positions.data(), rows.size(), shared_.slot_table.data(),
                                          slots.data(), &where);
    EXPECT((status == kOk) == good);
    if (status != kOk) return;
    for (size_t i = 0; i < held.size(); ++i) take(rows[i], *held[i], positions[i], slots[i]);
  }

  // A free row, or a number above all rows.
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
      EXPECT(allocator_.extend(free_row(), 1, shared_.slot_table.data()) == kUnknownRow);
      EXPECT(allocator_.finish_row(free_row()) == kUnknownRow);
      const Status status = allocator_.fill_source(extreme(bytes), shared_.source_table.data());
      EXPECT(status == kUnknownRequest || !requests_.empty());
    }
    if (requests_.empty()) return;
    Request& request = requests_[bytes.below(requests_.size())];
    const int64_t index = bytes.below(request.rows.size()), number = request.admission.first_row + index;
    Row& row = request.rows[index];
    const int64_t count = bytes.below(16) == 0 ? extreme(bytes) : bytes.below(6);
    const bool good = !row.finished && count >= 0 && count <= row.positions - row.next;
    const int64_t from = row.next;
    EXPECT((allocator_.extend(number, count, shared_.slot_table.data()) == kOk) == good);
    for (int64_t t = from; good && t < from + count; ++t) {
      take(number, row, t, shared_.slot_table[number * allocator_.limits().positions + t]);
    }
  }

  void take(int64_t number, Row& row, int64_t position, int32_t slot) {
    const Limits& limits = allocator_.limits();
    EXPECT(0 <= slot && slot < limits.slots / limits.page * limits.page);
    EXPECT(slot % limits.page == position % limits.page);
    EXPECT(shared_.slot_table[number * limits.positions + position] == slot);
    row.slots[position] = slot;
    row.next = position + 1;
  }

  void finish(Bytes& bytes) {
    if (requests_.empty()) return;
    Request& request = requests_[bytes.below(requests_.size())];
    const int64_t index = bytes.below(request.rows.size());
    const Status expected = request.rows[index].finished ? kFinishedRow : kOk;
    EXPECT(allocator_.finish_row(request.admission.first_row + index) == expected);
    request.rows[index].finished = true;
  }

  void release(Bytes& bytes) {
    if (requests_.empty()) {
      if (alone_) EXPECT(allocator_.release(extreme(bytes)) == kUnknownRequest);
      return;
    }
    const int64_t index = bytes.below(requests_.size());
    const int64_t request = requests_[index].admission.request;
    EXPECT(allocator_.release(request) == kOk);
    EXPECT(allocator_.release(request) == kUnknownRequest);
    requests_.erase(requests_.begin() + index);
  }

  // A number outside the limits; -1 among threads.
  int64_t extreme(Bytes& bytes) {
    const int64_t numbers[] = {-1, 0, INT64_MAX, INT64_MIN, INT32_MAX, INT32_MIN, int64_t{1} << 32, 1000000};
    return alone_ ? numbers[bytes.below(8)] : -1;
  }

  void recount() {
    EXPECT(allocator_.check(shared_.slot_table.data(), shared_.source_table.data()) == kSound);
    const Limits& limits = allocator_.limits();
    const Statistics statistics = allocator_.statistics();
    std::vector<bool> taken(limits.slots, false);
    int64_t rows = 0;
    for (const Request& request : requests_) {
      rows += request.rows.size();
      for (size_t i = 0; i < request.rows.size(); ++i) {
        for (const auto& [position, slot] : request.rows[i].slots) {
          EXPECT(!taken[slot]);
          taken[slot] = true;
          EXPECT(shared_.slot_table[(request.admission.first_row + i) * limits.positions + position] == slot);
        }
      }
    }
    EXPECT(statistics.requests == static_cast<int64_t>(requests_.size()) && statistics.rows_used == rows);
    EXPECT(statistics.pages_reserved + statistics.pages_used <= statistics.pages);
    if (requests_.empty()) {
      EXPECT(statistics.pages_used + statistics.pages_reserved + statistics.source_pages_used == 0);
    }
  }

  Shared& shared_;
  BlockAllocator& allocator_;
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

constexpr int64_t kRound = 400;  // operations on one allocator

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
        if (done % 64 == 0) EXPECT(shared.allocator->check(nullptr, nullptr) == kSound);
        if (done % 16 == 0) user.release_all();
      }
      user.release_all();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT(shared.allocator->check(shared.slot_table.data(), shared.source_table.data()) == kSound);
  EXPECT(shared.allocator->statistics().rows_used == 0);
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
