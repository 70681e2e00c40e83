#include "decode_steps_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "check.h"
#include "float_types.h"
#include "layernorm_gelu_cpu.h"
#include "vector.h"

namespace bertgen {
namespace {

constexpr float kDeadScore = -1.0e9f;             // DEAD_SCORE and LIVE_THRESHOLD of bertgen/decoding/beam_search.py
constexpr float kLiveThreshold = kDeadScore / 2;
constexpr int64_t kPrefix = 1;  // tokens of a history that are not generated

bool contains(const std::vector<int64_t>& ids, int64_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

// length ** exponent in double, rounded to float. The function of long double is in every libm; that of double would need
// a new one.
float power(int64_t length, double exponent) {
  return static_cast<float>(static_cast<double>(std::pow(static_cast<long double>(length), exponent)));
}

struct Ranked {
  float score;
  int64_t index;
};

// The best `wanted` of the scores with their indices, as torch.topk finds them on a CPU: of equal scores, those that
// these algorithms leave in front. The order of equal hypotheses is part of the results.
void top(const float* scores, int64_t count, int64_t wanted, std::vector<Ranked>& ranked) {
  const auto before = [](const Ranked& a, const Ranked& b) {
    return (std::isnan(a.score) && !std::isnan(b.score)) || a.score > b.score;
  };
  ranked.clear();
  ranked.reserve(count);
  for (int64_t i = 0; i < count; ++i) ranked.push_back({scores[i], i});
  const auto begin = ranked.begin();
  if (64 * wanted <= count) {
    std::partial_sort(begin, begin + wanted, ranked.end(), before);
  } else {
    std::nth_element(begin, begin + wanted - 1, ranked.end(), before);
    std::sort(begin, begin + wanted - 1, before);
  }
  ranked.resize(wanted);
}

void top(const std::vector<float>& scores, int64_t wanted, std::vector<Ranked>& ranked) {
  top(scores.data(), static_cast<int64_t>(scores.size()), wanted, ranked);
}

// The embedding of a token before its norm, from rows of a type.
template <class T>
struct EmbeddingRow {
  // out = word + token type, which may be null, + position
  template <class Set>
  static BERTGEN_INLINE void add(const T* word, const T* type, const T* position, int64_t columns, float* out) {
    int64_t k = 0;
    for (; k + kLanes <= columns; k += kLanes) {
      Vector sum, part;
      load<Set>(word + k, sum);
      if (type != nullptr) {
        load<Set>(type + k, part);
        sum += part;
      }
      load<Set>(position + k, part);
      vector_at(out + k).value = sum + part;
    }
    for (; k < columns; ++k) {
      const float sum = type == nullptr ? to_float(word[k]) : to_float(word[k]) + to_float(type[k]);
      out[k] = sum + to_float(position[k]);
    }
  }
};

// The units of a search that are not over, and their rows.
struct Live {
  std::vector<int64_t> units, lengths;  // numbers in the search, and tokens of their histories
  int64_t first_unit, first_row;        // of the search among all units and rows
  int64_t first;                        // row among the live rows of all searches
};

struct RowWorkspace {
  std::vector<float> scores, draws;
  ProcessorWorkspace processors;
};

struct UnitWorkspace {
  std::vector<float> scores;
  std::vector<int64_t> indices;
  std::vector<Ranked> order, finished;
  std::vector<int64_t> histories;
  std::vector<int32_t> table;
  std::vector<uint8_t> ends;
  ProcessorWorkspace processors;
};

class Steps {
 public:
  Steps(const Decoder& decoder, const StaticTables& tables, const std::vector<StaticSearch>& searches,
        StepsWorkspace& workspace, const Threads& threads)
      : decoder_(decoder), tables_(tables), searches_(searches), workspace_(workspace), threads_(threads) {
    int64_t unit = 0, row = 0;
    for (const StaticSearch& search : searches) {
      const SearchPlan& plan = *search.plan;
      live_.push_back({{}, {}, unit, row, 0});
      for (int64_t i = 0; i < plan.units; ++i, ++unit, row += plan.width) {
        BERTGEN_CHECK(tables.cu_rows[unit] == row, "cu_rows[", unit, "] is ", tables.cu_rows[unit], ", not ", row);
      }
    }
    BERTGEN_CHECK(unit == tables.units && row == tables.rows, "the searches have ", unit, " units of ", row,
                  " rows, the tables ", tables.units, " of ", tables.rows);
    BERTGEN_CHECK(tables.cu_rows[unit] == row, "cu_rows[", unit, "] is ", tables.cu_rows[unit], ", not ", row);
  }

  int64_t run(int64_t count, bool stop_when_over) {
    int64_t done = 0;
    for (; done < count; ++done) {
      if (!gather()) break;
      decode();
      for (size_t i = 0; i < searches_.size(); ++i) {
        if (live_[i].units.empty()) continue;
        searches_[i].plan->beams ? advance_beams(searches_[i], live_[i]) : advance_rows(searches_[i], live_[i]);
      }
      advance_lengths();
      if (stop_when_over && any_is_over()) return done + 1;
    }
    return done;
  }

 private:
  const Decoder& decoder_;
  const StaticTables& tables_;
  const std::vector<StaticSearch>& searches_;
  StepsWorkspace& workspace_;
  const Threads& threads_;

  // Of the live rows, the rows of each unit adjacent, and of the live units: copies without the others.
  std::vector<Live> live_;
  std::vector<int64_t> rows_, slots_;
  std::vector<int32_t> table_, lengths_, source_table_, source_lengths_, cu_rows_;
  int64_t table_stride_ = 1, source_stride_ = 1;
  float* logits_ = nullptr;  // [live rows, vocabulary]

  int64_t hidden() const { return decoder_.heads * decoder_.width; }
  int64_t vocabulary() const { return decoder_.head.output.outputs; }

  bool any_is_over() const {
    for (const Live& live : live_) {
      for (const int64_t unit : live.units) {
        if (tables_.over[live.first_unit + unit]) return true;
      }
    }
    return false;
  }

  // Collects what is live and checks it; false where nothing is.
  bool gather() {
    rows_.clear();
    slots_.clear();
    lengths_.clear();
    source_lengths_.clear();
    cu_rows_.assign(1, 0);
    std::vector<int64_t> units;
    for (size_t i = 0; i < searches_.size(); ++i) {
      Live& live = live_[i];
      const SearchPlan& plan = *searches_[i].plan;
      live.units.clear();
      live.lengths.clear();
      live.first = static_cast<int64_t>(rows_.size());
      for (int64_t unit = 0; unit < plan.units; ++unit) {
        if (tables_.over[live.first_unit + unit]) continue;
        live.lengths.push_back(checked_length(searches_[i], unit));
        live.units.push_back(unit);
        units.push_back(live.first_unit + unit);
        for (int64_t w = 0; w < plan.width; ++w) add_row(live.first_row + unit * plan.width + w);
        cu_rows_.push_back(static_cast<int32_t>(rows_.size()));
      }
    }
    if (rows_.empty()) return false;
    table_stride_ = std::max(1, *std::max_element(lengths_.begin(), lengths_.end()));
    table_.resize(rows_.size() * table_stride_);
    for (size_t i = 0; i < rows_.size(); ++i) {
      const int32_t* from = tables_.table + rows_[i] * tables_.positions;
      copy_slots("table", rows_[i], from, lengths_[i], tables_.slots, table_.data() + i * table_stride_);
    }
    if (tables_.source_slots > 0) gather_sources(units);
    return true;
  }

  void gather_sources(const std::vector<int64_t>& units) {
    source_stride_ = 1;
    for (const int64_t unit : units) {
      const int32_t length = tables_.source_lengths[unit];
      BERTGEN_CHECK(length >= 0 && length <= tables_.source_positions, "source_lengths[", unit, "] is ", length,
                    ", the table holds ", tables_.source_positions);
      source_lengths_.push_back(length);
      source_stride_ = std::max<int64_t>(source_stride_, length);
    }
    source_table_.resize(units.size() * source_stride_);
    for (size_t i = 0; i < units.size(); ++i) {
      const int32_t* from = tables_.source_table + units[i] * tables_.source_positions;
      copy_slots("source_table", units[i], from, source_lengths_[i], tables_.source_slots,
                 source_table_.data() + i * source_stride_);
    }
  }

  static void copy_slots(const char* name, int64_t row, const int32_t* from, int64_t count, int64_t slots, int32_t* to) {
    bool bad = false;
    for (int64_t t = 0; t < count; ++t) {
      to[t] = from[t];
      bad |= to[t] < 0 || to[t] >= slots;
    }
    for (int64_t t = 0; bad && t < count; ++t) {
      BERTGEN_CHECK(to[t] >= 0 && to[t] < slots, name, "[", row, ", ", t, "] is slot ", to[t], ", the pool has ", slots);
    }
  }

  static int64_t checked_length(const StaticSearch& search, int64_t unit) {
    const bool beams = search.plan->beams;
    const int64_t length = (beams ? search.beam.lengths : search.sampling.lengths)[unit];
    const int64_t positions = beams ? search.beam.positions : search.sampling.positions;
    BERTGEN_CHECK(length >= kPrefix && length < positions, "a history has ", length, " tokens, not ", kPrefix, " to ",
                  positions - 1);
    return length;
  }

  void add_row(int64_t row) {
    const int32_t length = tables_.lengths[row];
    BERTGEN_CHECK(length >= 0 && length < tables_.positions, "lengths[", row, "] is ", length, ", not 0 to ",
                  tables_.positions - 1);
    const int32_t slot = tables_.own_slots[row * tables_.positions + length];
    BERTGEN_CHECK(slot >= 0 && slot < tables_.slots, "own_slots[", row, ", ", length, "] is slot ", slot,
                  ", the pool has ", tables_.slots);
    const int64_t token = tables_.tokens[row];
    BERTGEN_CHECK(token >= 0 && token < decoder_.embeddings.vocabulary, "tokens[", row, "] is ", token,
                  ", the vocabulary has ", decoder_.embeddings.vocabulary);
    const int64_t position = position_of(token, length);
    BERTGEN_CHECK(position < decoder_.embeddings.position_rows, "row ", row, " has position ", position, ", the model ",
                  decoder_.embeddings.position_rows);
    rows_.push_back(row);
    slots_.push_back(slot);
    lengths_.push_back(length);
  }

  // As `next_positions` of bertgen/model/inputs.py.
  int64_t position_of(int64_t token, int64_t length) const {
    const int64_t first = decoder_.embeddings.first_position;
    return first > 0 && token == first - 1 ? first - 1 : length + first;
  }

  // The logits of the live rows; their keys and values are written, and the tables know them.
  void decode() {
    const int64_t rows = static_cast<int64_t>(rows_.size()), columns = hidden();
    float* x = workspace_.hidden.reserve(rows * columns);
    embed(x);
    DecoderStep step{};
    step.rows = rows;
    step.heads = decoder_.heads;
    step.width = decoder_.width;
    step.eps = decoder_.eps;
    step.int8 = decoder_.int8;
    step.slots = slots_.data();
    step.table = table_.data();
    step.table_stride = table_stride_;
    step.lengths = lengths_.data();
    if (tables_.source_slots > 0) {
      step.sources = static_cast<int64_t>(source_lengths_.size());
      step.source_table = source_table_.data();
      step.source_table_stride = source_stride_;
      step.source_lengths = source_lengths_.data();
      step.cu_rows = cu_rows_.data();
    }
    decoder_step(decoder_.layers, step, x, workspace_.decoder, threads_);
    const LanguageHead& head = decoder_.head;
    if (head.transforms) {
      float* y = workspace_.transformed.reserve(rows * columns);
      apply(head.transform, decoder_.int8, x, rows, y, threads_);
      gelu_layer_norm(y, rows, columns, head.norm, head.eps, y, threads_);
      x = y;
    }
    logits_ = workspace_.logits.reserve(rows * vocabulary());
    apply(head.output, decoder_.int8, x, rows, logits_, threads_);
    for (size_t i = 0; i < rows_.size(); ++i) {
      const int64_t row = rows_[i];
      tables_.table[row * tables_.positions + lengths_[i]] = static_cast<int32_t>(slots_[i]);
    }
  }

  // Counts the position of the rows that go on.
  void advance_lengths() const {
    for (size_t i = 0; i < searches_.size(); ++i) {
      const Live& live = live_[i];
      const int64_t width = searches_[i].plan->width;
      for (const int64_t unit : live.units) {
        if (tables_.over[live.first_unit + unit]) continue;
        for (int64_t w = 0; w < width; ++w) ++tables_.lengths[live.first_row + unit * width + w];
      }
    }
  }

  void embed(float* x) const {
    dispatch_type(decoder_.embeddings.type, [&](auto number) { add_embeddings<decltype(number)>(x); });
    add_layer_norm(x, nullptr, static_cast<int64_t>(rows_.size()), hidden(), decoder_.embeddings.norm,
                   decoder_.embeddings.eps, x, threads_);
  }

  // x = word + token type + position of each row.
  template <class T>
  void add_embeddings(float* x) const {
    const Embeddings& embeddings = decoder_.embeddings;
    const int64_t columns = hidden();
    const T* type = static_cast<const T*>(embeddings.token_type);
    const auto add = BERTGEN_DISPATCH_UP_TO(Avx2, EmbeddingRow<T>::template add);
    for (size_t i = 0; i < rows_.size(); ++i) {
      const int64_t token = tables_.tokens[rows_[i]];
      const T* word = static_cast<const T*>(embeddings.words) + token * columns;
      const T* position = static_cast<const T*>(embeddings.positions) + position_of(token, lengths_[i]) * columns;
      add(word, type, position, columns, x + i * columns);
    }
  }

  // Greedy search and sampling, as `Sampling`.
  void advance_rows(const StaticSearch& search, const Live& live) {
    const SearchPlan& plan = *search.plan;
    const SamplingState& state = search.sampling;
    const int64_t count = static_cast<int64_t>(live.units.size()), columns = vocabulary();
    for_each<RowWorkspace>(count, 4 * count * columns, threads_, [&](int64_t i, RowWorkspace& workspace) {
      const int64_t unit = live.units[i], row = live.first_row + unit, length = live.lengths[i];
      const float* logits = logits_ + (live.first + i) * columns;
      const float* scores = logits;
      int64_t* sequence = state.sequences + unit * state.positions;
      if (!plan.processors.empty()) {
        workspace.scores.assign(logits, logits + columns);
        process(plan.processors, sequence, length, workspace.scores.data(), columns, workspace.processors);
        scores = workspace.scores.data();
      }
      int64_t token;
      if (plan.samples) {
        float log_prob;
        const SampleLimits limits{state.temperature[unit], state.top_k[unit], state.top_p[unit], state.min_p[unit]};
        token = sample(scores, columns, {state.seeds[unit], state.numbers[unit], length}, limits, workspace.draws,
                       &log_prob);
      } else {
        token = best(scores, columns);
      }
      if (plan.scored) {
        const float log_prob = logits[token] - log_sum_exp(logits, columns);
        state.log_probs[unit] += static_cast<double>(log_prob);
      }
      sequence[length] = token;
      state.lengths[unit] = length + 1;
      tables_.tokens[row] = token;
      tables_.over[live.first_unit + unit] = contains(plan.ends, token) || length + 1 >= state.limits[unit];
    });
  }

  // As `BeamSearch`.
  void advance_beams(const StaticSearch& search, const Live& live) {
    const SearchPlan& plan = *search.plan;
    const int64_t units = static_cast<int64_t>(live.units.size()), width = plan.width, columns = vocabulary();
    const int64_t count = std::min(plan.candidates, width * columns);
    float* logits = logits_ + live.first * columns;
    std::vector<float> totals(units * count);
    std::vector<int64_t> indices(units * count);
    if (plan.fused) {
      std::vector<float> offsets;
      offsets.reserve(units * width);
      for (const int64_t unit : live.units) {
        const float* scores = search.beam.running_scores + unit * width;
        offsets.insert(offsets.end(), scores, scores + width);
      }
      top_log_probs(logits, units * width, columns, count, offsets.data(), width, totals.data(), indices.data(),
                    threads_);
    } else {
      log_softmax_of_rows(logits, units * width, columns, logits, threads_);
    }
    for_each<UnitWorkspace>(units, 4 * units * width * columns, threads_, [&](int64_t i, UnitWorkspace& workspace) {
      const int64_t unit = live.units[i];
      float* total = totals.data() + i * count;
      int64_t* index = indices.data() + i * count;
      if (!plan.fused) {
        float* scores = logits + i * width * columns;
        for (int64_t w = 0; w < width; ++w) {
          float* row = scores + w * columns;
          const int64_t* history = search.beam.running_sequences + (unit * width + w) * search.beam.positions;
          process(plan.processors, history, live.lengths[i], row, columns, workspace.processors);
          const float offset = search.beam.running_scores[unit * width + w];
          for (int64_t v = 0; v < columns; ++v) row[v] += offset;
        }
        best_extensions(scores, width * columns, count, total, index, workspace);
      }
      extend_beams(search, live, i, total, index, count, workspace);
    });
  }

  // The best `wanted` of many scores, as `top`, which is slow for many: only equal scores need its order.
  static void best_extensions(const float* scores, int64_t count, int64_t wanted, float* total, int64_t* index,
                              UnitWorkspace& workspace) {
    const int64_t found = std::min(wanted + 1, count);  // one more: it may be as good as the last
    workspace.scores.resize(found);
    workspace.indices.resize(found);
    best_scores(scores, count, found, workspace.scores.data(), workspace.indices.data());
    bool differ = true;  // false for NaN as well
    for (int64_t j = 1; j < found; ++j) differ &= workspace.scores[j - 1] > workspace.scores[j];
    if (differ) {
      std::copy_n(workspace.scores.data(), wanted, total);
      std::copy_n(workspace.indices.data(), wanted, index);
      return;
    }
    top(scores, count, wanted, workspace.order);
    for (int64_t j = 0; j < wanted; ++j) {
      total[j] = workspace.order[j].score;
      index[j] = workspace.order[j].index;
    }
  }

  // Continues the hypotheses of live unit i with the best of its candidates, and keeps those that end.
  void extend_beams(const StaticSearch& search, const Live& live, int64_t i, const float* total, const int64_t* index,
                    int64_t count, UnitWorkspace& workspace) {
    const SearchPlan& plan = *search.plan;
    const BeamState& state = search.beam;
    const int64_t unit = live.units[i], width = plan.width, columns = vocabulary();
    const int64_t length = live.lengths[i], new_length = length + 1, positions = state.positions;
    int64_t* running = state.running_sequences + unit * width * positions;
    uint8_t* is_finished = state.is_finished + unit * width;

    workspace.ends.resize(count);
    workspace.scores.assign(total, total + count);
    for (int64_t c = 0; c < count; ++c) {
      workspace.ends[c] = contains(plan.ends, index[c] % columns);
      if (workspace.ends[c]) workspace.scores[c] += kDeadScore;
    }
    top(workspace.scores, width, workspace.order);
    if (new_length >= state.limits[unit]) std::fill(workspace.ends.begin(), workspace.ends.end(), uint8_t{1});

    const auto has_enough = [&] {
      return plan.early_stopping == kEarly && std::all_of(is_finished, is_finished + width, [](uint8_t x) { return x; });
    };
    const bool continues = state.can_improve[unit] && !has_enough();
    const float generated = power(new_length - kPrefix, plan.length_penalty);
    finish(search, unit, length, total, index, count, generated, continues, workspace);

    // The histories before the running hypotheses take their place.
    workspace.histories.resize(width * new_length);
    int32_t* table = tables_.table + (live.first_row + unit * width) * tables_.positions;
    const int64_t slots = lengths_[live.first + i * width] + 1;  // with that of this step
    workspace.table.resize(width * slots);
    for (int64_t w = 0; w < width; ++w) {
      std::copy_n(running + w * positions, length, workspace.histories.data() + w * new_length);
      std::copy_n(table + w * tables_.positions, slots, workspace.table.data() + w * slots);
    }
    bool all_end = true;
    for (int64_t c = 0; c < count; ++c) all_end &= workspace.ends[c] != 0;
    for (int64_t w = 0; w < width; ++w) {
      const int64_t c = workspace.order[w].index, beam = index[c] / columns, token = index[c] % columns;
      const int64_t row = live.first_row + unit * width + w;
      std::copy_n(workspace.histories.data() + beam * new_length, length, running + w * positions);
      running[w * positions + length] = token;
      std::copy_n(workspace.table.data() + beam * slots, slots, table + w * tables_.positions);
      state.running_scores[unit * width + w] = workspace.ends[c] ? total[c] + kDeadScore : total[c];
      tables_.tokens[row] = token;
      tables_.parents[row] = unit * width + beam;
    }
    state.lengths[unit] = new_length;

    // It continues while its best running hypothesis could still beat its worst finished one.
    float horizon = generated;
    if (plan.early_stopping == kNeverEarly && plan.length_penalty > 0.0) {
      horizon = power(state.limits[unit] - kPrefix, plan.length_penalty);
    }
    const float best_running = state.running_scores[unit * width];
    float worst = std::numeric_limits<float>::infinity();
    for (int64_t w = 0; w < width; ++w) {
      const float score = state.finished_scores[unit * width + w];
      if (!(score >= worst)) worst = score;
    }
    const bool improves = best_running / horizon > worst && best_running > kLiveThreshold;
    state.can_improve[unit] = state.can_improve[unit] && improves;
    tables_.over[live.first_unit + unit] = !state.can_improve[unit] || has_enough() || all_end;
  }

  // Puts those of the first `width` candidates that end among the finished hypotheses, best first, where the search of
  // the unit `continues`.
  void finish(const StaticSearch& search, int64_t unit, int64_t length, const float* total, const int64_t* index,
              int64_t count, float generated, bool continues, UnitWorkspace& workspace) {
    const BeamState& state = search.beam;
    const int64_t width = search.plan->width, columns = vocabulary();
    const int64_t positions = state.positions, new_length = length + 1;
    const auto finishes = [&](int64_t c) {
      return continues && c < width && workspace.ends[c] && total[c] > kLiveThreshold;
    };
    const int64_t* running = state.running_sequences + unit * width * positions;
    int64_t* finished = state.finished_sequences + unit * width * positions;
    float* scores = state.finished_scores + unit * width;
    int64_t* lengths = state.finished_lengths + unit * width;
    uint8_t* is_finished = state.is_finished + unit * width;
    std::vector<int64_t> old_sequences(width * new_length), old_lengths(lengths, lengths + width);
    std::vector<uint8_t> old_flags(is_finished, is_finished + width);
    workspace.scores.assign(scores, scores + width);
    for (int64_t c = 0; c < count; ++c) {
      workspace.scores.push_back(finishes(c) ? total[c] / generated : -std::numeric_limits<float>::infinity());
    }
    top(workspace.scores, width, workspace.finished);
    for (int64_t w = 0; w < width; ++w) {
      std::copy_n(finished + w * positions, new_length, old_sequences.data() + w * new_length);
    }
    for (int64_t w = 0; w < width; ++w) {
      int64_t* sequence = finished + w * positions;
      const int64_t place = workspace.finished[w].index;
      scores[w] = workspace.finished[w].score;
      if (place < width) {
        std::copy_n(old_sequences.data() + place * new_length, new_length, sequence);
        lengths[w] = old_lengths[place];
        is_finished[w] = old_flags[place];
      } else {
        const int64_t c = place - width;
        std::copy_n(running + index[c] / columns * positions, length, sequence);
        sequence[length] = index[c] % columns;
        lengths[w] = new_length;
        is_finished[w] = finishes(c);
      }
    }
  }
};

}  // namespace

int64_t decode_steps(const Decoder& decoder, const StaticTables& tables, const std::vector<StaticSearch>& searches,
                     int64_t count, bool stop_when_over, StepsWorkspace& workspace, const Threads& threads) {
  return Steps(decoder, tables, searches, workspace, threads).run(count, stop_when_over);
}

}  // namespace bertgen
