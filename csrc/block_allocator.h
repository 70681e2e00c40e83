// Which slots of the key/value pools belong to which row and which source.
//
// Self-attention: a pool of slots, one token each, in pages. A row (one sequence being decoded) takes a page when its
// next position has no slot yet. Pages exist only inside this class: callers see slot numbers. Cross-attention: a
// second pool, also in pages; requests with one source share its pages, which are counted.
//
// Admission is by the worst case: a request reserves all pages that its rows may need, so that an admitted row never
// waits. The rows of a request have adjacent numbers, the lowest free run that is long enough. A request of several
// rows can therefore wait while enough rows are free but not adjacent; it fits when its neighbours have left, at the
// latest when the allocator is empty. A caller that admits no other request before the one that has waited longest
// always makes progress.
//
// A row writes its own slots only; the history of a beam may lie in the slots of its siblings. So the slots of a
// request stay valid until the whole request is released, also those of rows that finished early.
//
// Threads: each member function holds one lock while it runs, so any threads may use one allocator. The tables belong
// to the caller. A call writes only entries of the rows (or the source) that it is given: threads that work on
// different requests may share a table, and must order a read of an entry after the call that wrote it.
//
// Deterministic: the same calls in the same order give the same numbers. After construction nothing allocates, throws
// or depends on time or addresses. No torch header is used here, so that the class is tested by itself.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace bertgen {

// bertgen/cache/python_block_allocator.py repeats the numbers.
enum Status : int64_t {
  kOk = 0,
  kInvalid = -1,            // a size outside its limits
  kRowsNever = -2,          // more rows than exist
  kPagesNever = -3,         // more pages than exist
  kSourceNever = -4,        // more source pages than exist, or a source longer than its table
  kRowsNow = -5,            // no free run of rows is long enough
  kPagesNow = -6,           // too few pages are free and unreserved
  kSourceNow = -7,          // too few source pages are free
  kSourceDiffers = -8,      // the key is in flight with another length
  kUnknownRequest = -9,     // never admitted, or released
  kUnknownRow = -10,        // belongs to no request
  kFinishedRow = -11,       // has given back its reservation
  kRepeatedRow = -12,       // named twice in one step
  kPositionTaken = -13,     // the row is already past this position
  kPositionTooLarge = -14,  // beyond the positions of its admission
  kOutOfMemory = -15,       // for the allocator's own arrays
};

// The first inconsistency that `check` meets, or kSound.
enum Violation : int64_t {
  kSound = 0,
  kPageOwners = 1,         // a page without an owner, or with two
  kPageCounts = 2,         // free and used pages do not add up to all pages
  kReservations = 3,       // reservations do not add up, or exceed what is free
  kRowRequests = 4,        // a row without a request, or a request with rows of another
  kSourcePageOwners = 5,   // as for pages
  kSourcePageCounts = 6,
  kSourceUsers = 7,        // a count that is not the number of requests
  kSourceKeys = 8,         // one key, two sources
  kOwnTable = 9,           // the caller's table of slots has other numbers
  kSourceTable = 10,       // the caller's table of source slots has other numbers
};

struct Limits {
  int64_t rows;              // numbers 0 .. rows - 1, for all requests together; also the most sources in flight
  int64_t positions;         // of the longest row: the width of the table of slots
  int64_t slots;             // of self-attention; those after the last whole page are not used
  int64_t page;              // slots to a page
  int64_t source_positions;  // of the longest source: the width of the table of source slots
  int64_t source_slots;      // of cross-attention; 0 where there are no sources
  int64_t source_page;
};

struct Admission {
  int64_t request;    // its handle, never used again
  int64_t first_row;  // its rows are first_row .. first_row + rows - 1
  int64_t source;     // its row of the source table; -1 without a source
  int64_t is_new;     // 1 where no request in flight had this source: it must be encoded
};

struct Statistics {
  int64_t pages, pages_used, pages_reserved, pages_peak;  // pages - pages_used are free, the reserved among them
  int64_t source_pages, source_pages_used, source_pages_peak;
  int64_t rows, rows_used, rows_peak;
  int64_t requests, sources;
};

class BlockAllocator {
 public:
  // Null, with the reason in `status`, where a limit is out of range or memory is short.
  static std::unique_ptr<BlockAllocator> create(const Limits& limits, Status* status);

  const Limits& limits() const { return limits_; }

  // Takes `rows` rows and reserves their pages for up to `positions` positions each, and takes the pages of the source
  // or shares those of the same key. A source length of 0 is a request without a source.
  Status admit(int64_t rows, int64_t positions, uint64_t source_key, int64_t source_length, Admission* admission);

  // Gives row rows[i] a slot for its position positions[i] and writes its number to slots[i], for all i < n. Positions
  // of a row ascend; a row that skips some (a beam whose prefix lies in the slots of a sibling) gives back the pages it
  // skips. When a page is taken, its slots are entered in `slot_table` [limits.rows, limits.positions]. On an error
  // nothing has changed, and *where is the i of the error.
  Status step(const int32_t* rows, const int32_t* positions, int64_t n, int32_t* slot_table, int32_t* slots,
              int64_t* where);

  // Gives a row slots for its next `count` positions; their numbers are in its row of `slot_table`.
  Status extend(int64_t row, int64_t count, int32_t* slot_table);

  // Enters the slots of a request's source in its row of `source_table` [limits.rows, limits.source_positions].
  Status fill_source(int64_t request, int32_t* source_table);

  // The row takes no more positions: gives back the pages that it did not reach. Its slots stay valid until `release`.
  Status finish_row(int64_t row);

  // Gives back all rows and pages of the request, and ends its handle.
  Status release(int64_t request);

  Statistics statistics();

  // Recounts everything and compares the tables; a null table is not compared.
  Violation check(const int32_t* slot_table, const int32_t* source_table);

 private:
  struct Row {
    int64_t request = -1;  // handle of its request, -1 of a free row
    int32_t positions = 0;
    int32_t next = 0;       // the lowest position it may still take
    int32_t reserved = 0;   // pages
    int32_t last_page = -1;  // index of the last page it took
    int32_t end = 0;         // positions below it lie in pages that the row has or skipped
    int32_t base = 0;        // position t of the last page has slot base + t
    bool finished = false;
  };

  struct Request {  // of first row r at index r
    int64_t generation = 0;
    int32_t rows = 0;  // 0: no request begins at this row
    int32_t source = -1;
  };

  struct Source {
    uint64_t key = 0;
    int32_t length = 0;
    int32_t users = 0;  // 0: free
  };

  explicit BlockAllocator(const Limits& limits);
  Request* find(int64_t request);
  int64_t free_run(int64_t rows) const;
  void take_page(int32_t row, int32_t position, int32_t* slot_table);
  Violation check_self(const int32_t* slot_table);
  Violation check_rows() const;
  Violation check_sources(const int32_t* source_table);

  const Limits limits_;
  const int32_t row_pages_, source_row_pages_;  // the most pages of a row, of a source
  std::mutex mutex_;
  std::vector<Row> rows_;
  std::vector<Request> requests_;
  std::vector<Source> sources_;
  std::vector<int32_t> pages_;         // [rows, row_pages_] page of each row, -1 where it has none
  std::vector<int32_t> source_pages_;  // [rows, source_row_pages_]
  std::vector<int32_t> free_, free_source_;  // stacks: the page freed last is taken first
  std::vector<int64_t> stamps_;              // of each row, the last step that named it
  std::vector<bool> seen_, seen_source_;     // of `check`
  int64_t steps_ = 0;
  int64_t reserved_ = 0;
  int64_t rows_used_ = 0, request_count_ = 0, source_count_ = 0;
  int64_t pages_peak_ = 0, source_pages_peak_ = 0, rows_peak_ = 0;
};

}  // namespace bertgen
