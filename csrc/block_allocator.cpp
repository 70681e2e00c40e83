#include "block_allocator.h"

#include <algorithm>
#include <limits>
#include <new>

namespace bertgen {
namespace {

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();

int64_t pages_for(int64_t positions, int64_t page) { return (positions + page - 1) / page; }

bool within(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

// The stack of all pages, page 0 on top.
std::vector<int32_t> all_pages(int64_t count) {
  std::vector<int32_t> stack(count);
  for (int64_t i = 0; i < count; ++i) stack[i] = static_cast<int32_t>(count - 1 - i);
  return stack;
}

int32_t pop(std::vector<int32_t>& stack) {
  const int32_t top = stack.back();
  stack.pop_back();
  return top;
}

}  // namespace

std::unique_ptr<BlockAllocator> BlockAllocator::create(const Limits& limits, Status* status) {
  *status = kInvalid;
  for (int64_t size : {limits.rows, limits.positions, limits.slots, limits.page, limits.source_page}) {
    if (!within(size, 1, kLargest)) return nullptr;
  }
  for (int64_t size : {limits.source_positions, limits.source_slots}) {
    if (!within(size, 0, kLargest)) return nullptr;
  }
  *status = kOutOfMemory;
  try {
    std::unique_ptr<BlockAllocator> allocator(new BlockAllocator(limits));
    *status = kOk;
    return allocator;
  } catch (const std::exception&) {  // bad_alloc, length_error
    return nullptr;
  }
}

BlockAllocator::BlockAllocator(const Limits& limits)
    : limits_(limits),
      row_pages_(static_cast<int32_t>(pages_for(limits.positions, limits.page))),
      source_row_pages_(static_cast<int32_t>(pages_for(limits.source_positions, limits.source_page))),
      rows_(limits.rows),
      requests_(limits.rows),
      sources_(limits.rows),
      pages_(limits.rows * row_pages_, -1),
      source_pages_(limits.rows * source_row_pages_, -1),
      free_(all_pages(limits.slots / limits.page)),
      free_source_(all_pages(limits.source_slots / limits.source_page)),
      stamps_(limits.rows, 0),
      seen_(free_.size()),
      seen_source_(free_source_.size()) {}

// A handle is generation * limits.rows + first row; the generation counts the earlier requests of that first row.
BlockAllocator::Request* BlockAllocator::find(int64_t request) {
  if (request < 0) return nullptr;
  Request& candidate = requests_[request % limits_.rows];
  return candidate.rows > 0 && candidate.generation == request / limits_.rows ? &candidate : nullptr;
}

int64_t BlockAllocator::free_run(int64_t rows) const {
  int64_t length = 0;
  for (int64_t row = 0; row < limits_.rows; ++row) {
    length = rows_[row].request < 0 ? length + 1 : 0;
    if (length == rows) return row - rows + 1;
  }
  return -1;
}

Status BlockAllocator::admit(int64_t rows, int64_t positions, uint64_t source_key, int64_t source_length,
                             Admission* admission) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (rows < 1 || !within(positions, 1, limits_.positions) || source_length < 0) return kInvalid;
  if (rows > limits_.rows) return kRowsNever;
  const int64_t each = pages_for(positions, limits_.page);
  const int64_t total = limits_.slots / limits_.page;
  if (rows * each > total) return kPagesNever;
  if (source_length > limits_.source_positions) return kSourceNever;
  const int64_t source_each = pages_for(source_length, limits_.source_page);
  if (source_each > static_cast<int64_t>(seen_source_.size())) return kSourceNever;

  int64_t source = -1, vacant = -1;
  if (source_length > 0) {
    for (int64_t i = 0; i < limits_.rows; ++i) {
      if (sources_[i].users == 0) {
        if (vacant < 0) vacant = i;
      } else if (sources_[i].key == source_key) {
        source = i;
      }
    }
    if (source >= 0 && sources_[source].length != source_length) return kSourceDiffers;
  }
  const bool is_new = source_length > 0 && source < 0;

  const int64_t first = free_run(rows);
  if (first < 0) return kRowsNow;
  if (rows * each > static_cast<int64_t>(free_.size()) - reserved_) return kPagesNow;
  if (is_new && source_each > static_cast<int64_t>(free_source_.size())) return kSourceNow;

  if (is_new) {  // `vacant` exists: there are as many sources as rows, and a row is free
    source = vacant;
    sources_[source].key = source_key;
    sources_[source].length = static_cast<int32_t>(source_length);
    for (int64_t p = 0; p < source_each; ++p) source_pages_[source * source_row_pages_ + p] = pop(free_source_);
    ++source_count_;
  }
  if (source >= 0) ++sources_[source].users;

  Request& request = requests_[first];
  request.rows = static_cast<int32_t>(rows);
  request.source = static_cast<int32_t>(source);
  const int64_t handle = request.generation * limits_.rows + first;
  for (int64_t r = first; r < first + rows; ++r) {
    rows_[r] = Row();
    rows_[r].request = handle;
    rows_[r].positions = static_cast<int32_t>(positions);
    rows_[r].reserved = static_cast<int32_t>(each);
  }
  reserved_ += rows * each;
  rows_used_ += rows;
  ++request_count_;
  rows_peak_ = std::max(rows_peak_, rows_used_);
  source_pages_peak_ =
      std::max(source_pages_peak_, static_cast<int64_t>(seen_source_.size() - free_source_.size()));
  *admission = {handle, first, source, is_new};
  return kOk;
}

// Takes the page of `position`, which is after the pages the row has. The reservation of the row covers it and the
// pages that are skipped.
void BlockAllocator::take_page(int32_t r, int32_t position, int32_t* slot_table) {
  Row& row = rows_[r];
  const int32_t size = static_cast<int32_t>(limits_.page), index = position / size;
  const int32_t covered = index - row.last_page;
  row.reserved -= covered;
  reserved_ -= covered;
  row.last_page = index;
  const int32_t page = pop(free_);
  pages_[static_cast<int64_t>(r) * row_pages_ + index] = page;
  const int64_t start = static_cast<int64_t>(index) * size, end = std::min(start + size, limits_.positions);
  row.base = static_cast<int32_t>(static_cast<int64_t>(page) * size - start);
  row.end = static_cast<int32_t>(end);
  int32_t* entries = slot_table + r * limits_.positions;
  for (int64_t t = start; t < end; ++t) entries[t] = static_cast<int32_t>(row.base + t);
  pages_peak_ = std::max(pages_peak_, static_cast<int64_t>(seen_.size() - free_.size()));
}

Status BlockAllocator::step(const int32_t* rows, const int32_t* positions, int64_t n, int32_t* slot_table,
                            int32_t* slots, int64_t* where) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++steps_;
  for (int64_t i = 0; i < n; ++i) {
    *where = i;
    if (!within(rows[i], 0, limits_.rows - 1)) return kUnknownRow;
    const Row& row = rows_[rows[i]];
    if (row.request < 0) return kUnknownRow;
    if (row.finished) return kFinishedRow;
    if (stamps_[rows[i]] == steps_) return kRepeatedRow;
    if (positions[i] < row.next) return kPositionTaken;
    if (positions[i] >= row.positions) return kPositionTooLarge;
    stamps_[rows[i]] = steps_;
  }
  for (int64_t i = 0; i < n; ++i) {
    if (positions[i] >= rows_[rows[i]].end) take_page(rows[i], positions[i], slot_table);
    Row& row = rows_[rows[i]];
    slots[i] = row.base + positions[i];
    row.next = positions[i] + 1;
  }
  *where = 0;
  return kOk;
}

Status BlockAllocator::extend(int64_t r, int64_t count, int32_t* slot_table) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!within(r, 0, limits_.rows - 1) || rows_[r].request < 0) return kUnknownRow;
  Row& row = rows_[r];
  if (row.finished) return kFinishedRow;
  if (count < 0) return kInvalid;
  if (count > row.positions - row.next) return kPositionTooLarge;
  const int32_t last = row.next + static_cast<int32_t>(count);
  while (row.end < last) take_page(static_cast<int32_t>(r), row.end, slot_table);
  row.next = last;
  return kOk;
}

Status BlockAllocator::fill_source(int64_t handle, int32_t* source_table) {
  std::lock_guard<std::mutex> lock(mutex_);
  const Request* request = find(handle);
  if (request == nullptr) return kUnknownRequest;
  if (request->source < 0) return kOk;
  const int32_t* pages = &source_pages_[static_cast<int64_t>(request->source) * source_row_pages_];
  int32_t* entries = source_table + request->source * limits_.source_positions;
  for (int64_t t = 0; t < sources_[request->source].length; ++t) {
    entries[t] = static_cast<int32_t>(pages[t / limits_.source_page] * limits_.source_page + t % limits_.source_page);
  }
  return kOk;
}

Status BlockAllocator::finish_row(int64_t r) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!within(r, 0, limits_.rows - 1) || rows_[r].request < 0) return kUnknownRow;
  if (rows_[r].finished) return kFinishedRow;
  reserved_ -= rows_[r].reserved;
  rows_[r].reserved = 0;
  rows_[r].finished = true;
  return kOk;
}

Status BlockAllocator::release(int64_t handle) {
  std::lock_guard<std::mutex> lock(mutex_);
  Request* request = find(handle);
  if (request == nullptr) return kUnknownRequest;
  const int64_t first = handle % limits_.rows;
  // In reverse order, so that the next request takes the pages in the order of this one.
  for (int64_t r = first + request->rows - 1; r >= first; --r) {
    reserved_ -= rows_[r].reserved;
    for (int64_t p = rows_[r].last_page; p >= 0; --p) {
      int32_t& page = pages_[r * row_pages_ + p];
      if (page >= 0) free_.push_back(page);
      page = -1;
    }
    rows_[r] = Row();
  }
  if (request->source >= 0 && --sources_[request->source].users == 0) {
    for (int64_t p = source_row_pages_ - 1; p >= 0; --p) {
      int32_t& page = source_pages_[static_cast<int64_t>(request->source) * source_row_pages_ + p];
      if (page >= 0) free_source_.push_back(page);
      page = -1;
    }
    --source_count_;
  }
  rows_used_ -= request->rows;
  --request_count_;
  request->rows = 0;
  request->source = -1;
  ++request->generation;
  return kOk;
}

Statistics BlockAllocator::statistics() {
  std::lock_guard<std::mutex> lock(mutex_);
  const int64_t pages = seen_.size(), source_pages = seen_source_.size();
  const int64_t free_pages = free_.size(), free_source_pages = free_source_.size();
  return {pages,        pages - free_pages,               reserved_,          pages_peak_,
          source_pages, source_pages - free_source_pages, source_pages_peak_, limits_.rows,
          rows_used_,   rows_peak_,                       request_count_,     source_count_};
}

Violation BlockAllocator::check(const int32_t* slot_table, const int32_t* source_table) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (const Violation violation = check_self(slot_table)) return violation;
  if (const Violation violation = check_rows()) return violation;
  return check_sources(source_table);
}

namespace {

// Marks pages [count] as seen and counts them; false where one does not exist or was seen before.
bool mark(std::vector<bool>& seen, const int32_t* pages, int64_t count, int64_t* marked) {
  for (int64_t i = 0; i < count; ++i) {
    if (pages[i] < 0) continue;
    if (pages[i] >= static_cast<int64_t>(seen.size()) || seen[pages[i]]) return false;
    seen[pages[i]] = true;
    ++*marked;
  }
  return true;
}

}  // namespace

Violation BlockAllocator::check_self(const int32_t* slot_table) {
  std::fill(seen_.begin(), seen_.end(), false);
  int64_t used = 0, unused = 0, reserved = 0;
  if (!mark(seen_, free_.data(), free_.size(), &unused)) return kPageOwners;
  if (!mark(seen_, pages_.data(), pages_.size(), &used)) return kPageOwners;
  if (unused != static_cast<int64_t>(free_.size()) || used + unused != static_cast<int64_t>(seen_.size())) {
    return kPageCounts;
  }
  for (int64_t r = 0; r < limits_.rows; ++r) {
    const Row& row = rows_[r];
    if (row.reserved < 0 || (row.finished && row.reserved != 0)) return kReservations;
    // All pages of a running row are taken, skipped or reserved.
    if (row.request >= 0 && !row.finished &&
        row.last_page + 1 + row.reserved != pages_for(row.positions, limits_.page)) {
      return kReservations;
    }
    reserved += row.reserved;
    for (int64_t p = 0; p < row_pages_; ++p) {
      const int64_t page = pages_[r * row_pages_ + p];
      if (page < 0) continue;
      if (p > row.last_page) return kPageOwners;
      const int64_t end = std::min((p + 1) * limits_.page, limits_.positions);
      for (int64_t t = p * limits_.page; slot_table != nullptr && t < end; ++t) {
        if (slot_table[r * limits_.positions + t] != page * limits_.page + t % limits_.page) return kOwnTable;
      }
    }
  }
  return reserved == reserved_ && reserved <= unused ? kSound : kReservations;
}

Violation BlockAllocator::check_rows() const {
  int64_t used = 0, requests = 0;
  for (int64_t r = 0; r < limits_.rows;) {
    const Request& request = requests_[r];
    if (request.rows == 0) {  // a later row of a request is skipped below, so this row is free
      if (rows_[r].request >= 0) return kRowRequests;
      ++r;
      continue;
    }
    if (request.rows < 0 || r + request.rows > limits_.rows) return kRowRequests;
    for (const int64_t end = r + request.rows, first = r; r < end; ++r) {
      if (rows_[r].request != request.generation * limits_.rows + first) return kRowRequests;
      if (r > first && requests_[r].rows != 0) return kRowRequests;
      ++used;
    }
    ++requests;
  }
  return used == rows_used_ && requests == request_count_ ? kSound : kRowRequests;
}

Violation BlockAllocator::check_sources(const int32_t* source_table) {
  std::fill(seen_source_.begin(), seen_source_.end(), false);
  int64_t used = 0, unused = 0, sources = 0;
  if (!mark(seen_source_, free_source_.data(), free_source_.size(), &unused)) return kSourcePageOwners;
  if (!mark(seen_source_, source_pages_.data(), source_pages_.size(), &used)) return kSourcePageOwners;
  if (used + unused != static_cast<int64_t>(seen_source_.size())) return kSourcePageCounts;
  for (int64_t s = 0; s < limits_.rows; ++s) {
    const Source& source = sources_[s];
    const int32_t* pages = source_pages_.data() + s * source_row_pages_;
    const int64_t held = std::count_if(pages, pages + source_row_pages_, [](int32_t page) { return page >= 0; });
    const int64_t due = source.users > 0 ? pages_for(source.length, limits_.source_page) : 0;
    if (held != due) return kSourcePageCounts;
    int64_t users = 0;
    for (const Request& request : requests_) users += request.rows > 0 && request.source == s;
    if (users != source.users) return kSourceUsers;
    if (users == 0) continue;
    ++sources;
    for (int64_t other = 0; other < s; ++other) {
      if (sources_[other].users > 0 && sources_[other].key == source.key) return kSourceKeys;
    }
    for (int64_t t = 0; source_table != nullptr && t < source.length; ++t) {
      const int64_t slot = pages[t / limits_.source_page] * limits_.source_page + t % limits_.source_page;
      if (source_table[s * limits_.source_positions + t] != slot) return kSourceTable;
    }
  }
  return sources == source_count_ ? kSound : kSourceUsers;
}

}  // namespace bertgen
