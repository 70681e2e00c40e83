// Which slots of the key/value pools belong to whom.
//
// Self-attention: a pool of slots, one token each, in pages. A row (one sequence being decoded) takes a page when its
// next position has no slot yet; pages exist only in here, the world outside sees slot numbers. Cross-attention: a
// second pool, also in pages; requests of one source share its pages, which are counted.
//
// Admission is by the worst case: a request reserves the pages that all its rows can come to need, so that a row that
// was admitted never waits. Its rows have adjacent numbers, the lowest free run that holds them. A request of several
// rows can therefore wait while as many rows are free but apart; it fits once its neighbours have left, and at the
// latest in an empty cache: a caller that admits nobody before the one that waits longest always makes progress.
//
// A row writes its own slots only; the history of a beam may lie in the slots of its siblings. So the slots of a
// request stay valid until all of it is released, also those of rows that finished early.
//
// Threads: each member takes one lock for its whole length, so a cache may be used from any threads. The tables belong
// to the caller. A call writes only entries of the rows (or the source) it names: threads that work on different
// requests may share a table, and whoever reads an entry orders that after the call that wrote it.
//
// Deterministic: the same calls in the same order give the same numbers. After construction nothing allocates, throws
// or depends on the time or on addresses. No torch header is used here, so that the class is tested by itself.
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
  kRowsNever = -2,          // more rows than there are
  kPagesNever = -3,         // more pages than there are
  kSourceNever = -4,        // more source pages than there are, or a source longer than its table
  kRowsNow = -5,            // no free run of rows is long enough
  kPagesNow = -6,           // not so many pages are free and unreserved
  kSourceNow = -7,          // not so many source pages are free
  kSourceDiffers = -8,      // the key is in flight with another length
  kUnknownRequest = -9,     // never admitted, or released
  kUnknownRow = -10,        // belongs to no request
  kFinishedRow = -11,       // gave back its reservation
  kRepeatedRow = -12,       // twice in one step
  kPositionTaken = -13,     // the row is past this position
  kPositionTooLarge = -14,  // beyond what was asked at admission
  kOutOfMemory = -15,       // for the cache's own tables
};

// What `check` found first; 0 where all is well.
enum Violation : int64_t {
  kSound = 0,
  kPageOwners = 1,         // a page that nobody owns, or two do
  kPageCounts = 2,         // free and used pages do not add up
  kReservations = 3,       // reservations do not add up, or exceed what is free
  kRowRequests = 4,        // a row of no request, or a request with other rows than its own
  kSourcePageOwners = 5,   // as for pages
  kSourcePageCounts = 6,
  kSourceUsers = 7,        // a count that is not the number of requests
  kSourceKeys = 8,         // one key, two sources
  kOwnTable = 9,           // the caller's table says something else
  kSourceTable = 10,
};

struct Limits {
  int64_t rows;              // numbers 0 .. rows - 1, for all requests together; also the most sources in flight
  int64_t positions;         // of the longest row: the width of the table of own slots
  int64_t slots;             // of self-attention; those beyond the last whole page are not used
  int64_t page;              // slots to a page
  int64_t source_positions;  // of the longest source: the width of the table of source slots
  int64_t source_slots;      // of cross-attention; 0 where there are no sources
  int64_t source_page;
};

struct Admission {
  int64_t request;    // its handle; never used a second time
  int64_t first_row;  // its rows are first_row .. first_row + rows - 1
  int64_t source;     // its row of the source table; -1 without a source
  int64_t is_new;     // 1 where nobody had this source in flight: it must be encoded
};

struct Statistics {
  int64_t pages, pages_used, pages_reserved, pages_peak;  // free are pages - pages_used; the reserved are among them
  int64_t source_pages, source_pages_used, source_pages_peak;
  int64_t rows, rows_used, rows_peak;
  int64_t requests, sources;
};

class KvCache {
 public:
  // Null, and why in `status`, where a limit makes no sense or memory is short.
  static std::unique_ptr<KvCache> create(const Limits& limits, Status* status);

  const Limits& limits() const { return limits_; }

  // Takes rows and reserves pages for `rows` sequences of up to `positions` positions, and takes the pages of the
  // source or shares those that hold the same key. A source length of 0 is a request without a source.
  Status admit(int64_t rows, int64_t positions, uint64_t source_key, int64_t source_length, Admission* admission);

  // Gives row rows[i] a slot for its position positions[i], for all i < n: slots[i] is its number. Positions of a row
  // ascend; one that skips some (a beam whose prefix lies in a sibling's slots) gives back the pages it skips. Whole
  // pages are entered in `own` [limits.rows, limits.positions] when they are taken. On an error nothing has changed,
  // and *where is the i it is about.
  Status step(const int32_t* rows, const int32_t* positions, int64_t n, int32_t* own, int32_t* slots, int64_t* where);

  // Gives a row slots for its next `count` positions; own[row] has their numbers.
  Status extend(int64_t row, int64_t count, int32_t* own);

  // Enters the slots of a request's source in its row of `table` [limits.rows, limits.source_positions].
  Status fill_source(int64_t request, int32_t* table);

  // The row takes no more positions: gives back the pages it did not reach. Its slots stay until `release`.
  Status finish_row(int64_t row);

  // Everything of the request goes back; its handle is void.
  Status release(int64_t request);

  Statistics statistics();

  // Recounts everything; a null table is not compared.
  Violation check(const int32_t* own, const int32_t* source_table);

 private:
  struct Row {
    int64_t request = -1;  // handle of its request, -1 of a free row
    int32_t positions = 0;
    int32_t next = 0;       // the lowest position it may still take
    int32_t reserved = 0;   // pages
    int32_t last_page = -1;  // index of the page it took last
    int32_t end = 0;         // positions below lie in pages it has, or skipped
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

  explicit KvCache(const Limits& limits);
  Request* find(int64_t request);
  int64_t free_run(int64_t rows) const;
  void take_page(int32_t row, int32_t position, int32_t* own);
  Violation check_self(const int32_t* own);
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
  std::vector<int64_t> stamps_;              // the step that named a row last
  std::vector<bool> seen_, seen_source_;     // of `check`
  int64_t steps_ = 0;
  int64_t reserved_ = 0;
  int64_t rows_used_ = 0, request_count_ = 0, source_count_ = 0;
  int64_t pages_peak_ = 0, source_pages_peak_ = 0, rows_peak_ = 0;
};

}  // namespace bertgen
