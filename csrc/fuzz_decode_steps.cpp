// Decode steps of random small decoders and searches; built under the sanitizers by `make fuzz`.
//
//     fuzz_decode_steps CALLS SEED
//
// One call of several steps on several threads must leave the bits that as many calls of one step on one thread leave,
// and nothing of a unit that is over may change. In every other round a number in a tensor is out of range: then an
// error is right, but no access outside of an array. Every array has exactly the size it needs.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "decode_steps_cpu.h"
#include "fuzz.h"
#include "instruction_sets.h"

using namespace bertgen;

namespace {

Threads on(int64_t count) {
  return {count, [count](const std::function<void()>& worker) {
            std::vector<std::thread> others;
            for (int64_t i = 1; i < count; ++i) others.emplace_back(worker);
            worker();
            for (std::thread& other : others) other.join();
          }};
}

// The memory of parameters of one type: one list of arrays that do not move.
class Memory {
 public:
  const FloatType type = any_type();

  const void* normal_array(int64_t count) {
    arrays_.emplace_back(type, normal(count));
    return arrays_.back().data();
  }
  Dense dense(int64_t outputs, int64_t inputs) {
    Dense part{};
    part.weight = normal_array(outputs * inputs);
    part.bias = between(0, 1) ? normal_array(outputs) : nullptr;
    part.type = type;
    part.outputs = outputs;
    part.inputs = inputs;
    return part;
  }
  Norm norm(int64_t size) { return {normal_array(size), normal_array(size), type}; }

 private:
  std::vector<Numbers> arrays_;
};

// Also of NaN, which a row has where processors forbid all tokens.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

// The tensors of a search.
struct State {
  std::vector<int64_t> sequences, finished_sequences, lengths, limits, seeds, numbers, finished_lengths, top_k;
  std::vector<double> log_probs;
  std::vector<float> running_scores, finished_scores, temperature, top_p, min_p;
  std::vector<uint8_t> is_finished, can_improve;

  bool operator==(const State& other) const {
    return sequences == other.sequences && finished_sequences == other.finished_sequences &&
           lengths == other.lengths && finished_lengths == other.finished_lengths && same_bits(log_probs, other.log_probs) &&
           same_bits(running_scores, other.running_scores) && same_bits(finished_scores, other.finished_scores) &&
           is_finished == other.is_finished && can_improve == other.can_improve;
  }
};

// All tensors of a run.
struct Run {
  std::vector<uint8_t> over;
  std::vector<int64_t> tokens, parents;
  std::vector<int32_t> own_slots, table, lengths, source_table, source_lengths, cu_rows;
  std::vector<std::vector<uint8_t>> pools;  // keys and values of each layer, as they are stored
  std::vector<State> states;

  bool operator==(const Run& other) const {
    return over == other.over && tokens == other.tokens && parents == other.parents && table == other.table &&
           lengths == other.lengths && pools == other.pools && states == other.states;
  }
};

struct Case {
  Memory memory;
  Decoder decoder;
  int64_t positions, source_positions, slots, source_slots;
  std::vector<SearchPlan> plans;
  std::vector<std::vector<int64_t>> integers;
  std::vector<std::vector<double>> floats;
  FloatType type = any_type();  // of the pools
  Numbers source_pool;
  Run start;

  Case() {
    const int64_t heads = between(1, 3), width = between(1, 12), hidden = heads * width;
    const int64_t vocabulary = between(1, 30);
    const bool cross = between(0, 3) > 0;
    positions = between(1, 9);
    source_positions = between(1, 6);
    decoder.heads = heads;
    decoder.width = width;
    decoder.eps = 1e-3f;
    decoder.int8 = false;
    const bool types = between(0, 1);
    decoder.embeddings = {memory.normal_array(vocabulary * hidden),
                          memory.normal_array((positions + 3) * hidden),
                          types ? memory.normal_array(hidden) : nullptr,
                          memory.type,
                          vocabulary,
                          positions + 3,
                          between(0, 2),
                          memory.norm(hidden),
                          1e-5f};
    decoder.head.transforms = between(0, 1);
    decoder.head.transform = memory.dense(hidden, hidden);
    decoder.head.norm = memory.norm(hidden);
    decoder.head.eps = 1e-5f;
    decoder.head.output = memory.dense(vocabulary, hidden);
    const int64_t inner = between(1, 20);
    for (int64_t i = between(1, 2); i > 0; --i) {
      DecoderLayer layer{};
      layer.query = memory.dense(hidden, hidden);
      layer.key = memory.dense(hidden, hidden);
      layer.value = memory.dense(hidden, hidden);
      layer.attention_output = memory.dense(hidden, hidden);
      layer.attention_norm = memory.norm(hidden);
      layer.cross_query = memory.dense(hidden, hidden);
      layer.cross_output = memory.dense(hidden, hidden);
      layer.cross_norm = memory.norm(hidden);
      layer.intermediate = memory.dense(inner, hidden);
      layer.output = memory.dense(hidden, inner);
      layer.output_norm = memory.norm(hidden);
      decoder.layers.push_back(layer);
    }
    make_plans(vocabulary);
    make_start(vocabulary);
    source_slots = cross ? static_cast<int64_t>(start.over.size()) * source_positions : 0;
    source_pool = {type, normal(source_slots * hidden)};
    slots = static_cast<int64_t>(start.tokens.size()) * positions;
    for (size_t i = 0; i < 2 * decoder.layers.size(); ++i) {
      start.pools.push_back(Numbers(type, normal(slots * hidden)).stored);
    }
  }

  void make_plans(int64_t vocabulary) {
    for (int64_t count = between(1, 3); count > 0; --count) {
      SearchPlan plan{};
      plan.beams = between(0, 1);
      plan.units = between(0, 3);
      plan.width = plan.beams ? between(1, 4) : 1;
      plan.samples = between(0, 1);
      plan.scored = between(0, 1);
      for (int64_t i = between(0, 2); i > 0; --i) plan.ends.push_back(between(0, vocabulary));
      plan.candidates = plan.width * (2 + between(0, 1));
      plan.fused = between(0, 1);
      plan.early_stopping = static_cast<EarlyStopping>(between(0, 2));
      plan.length_penalty = static_cast<double>(between(-2, 4)) / 2;
      plans.push_back(plan);
    }
    integers = {{2}, {0, 3, 0}, {}, {}};
    floats = {{}, {}, {1.5}, {}};
    const ProcessorKind kinds[] = {kNgram, kSuppress, kRepetition, kNormalize};
    for (SearchPlan& plan : plans) {
      if (plan.fused) continue;
      for (size_t i = 0; i < 4; ++i) {
        if (between(0, 1)) continue;
        plan.processors.push_back({kinds[i], integers[i].data(), static_cast<int64_t>(integers[i].size()),
                                   floats[i].data(), static_cast<int64_t>(floats[i].size())});
      }
    }
  }

  void make_start(int64_t vocabulary) {
    Run& run = start;
    int32_t row = 0;
    run.cu_rows.push_back(0);
    for (const SearchPlan& plan : plans) {
      const int64_t n = plan.units, rows = n * plan.width;
      for (int64_t unit = 0; unit < n; ++unit) {
        run.over.push_back(between(0, 3) == 0);
        run.source_lengths.push_back(static_cast<int32_t>(between(0, source_positions)));
        for (int64_t t = 0; t < source_positions; ++t) {
          run.source_table.push_back(static_cast<int32_t>(unit * source_positions + t) % 3);
        }
        run.cu_rows.push_back(row += static_cast<int32_t>(plan.width));
      }
      for (int64_t r = 0; r < rows; ++r) {
        run.tokens.push_back(between(0, vocabulary - 1));
        run.parents.push_back(r);
      }
      State state;
      const int64_t length = positions + 1;  // of histories
      state.sequences.assign(rows * length, 0);
      state.finished_sequences.assign(rows * length, 0);
      state.lengths.assign(n, 1);
      for (int64_t unit = 0; unit < n; ++unit) state.limits.push_back(between(2, length));
      state.seeds.assign(n, between(0, 99));
      state.numbers.assign(n, 7);
      state.finished_lengths.assign(rows, 1);
      state.top_k.assign(n, between(0, 3));
      state.log_probs.assign(n, 0.0);
      state.running_scores.assign(rows, -1e9f);
      for (int64_t unit = 0; unit < n; ++unit) state.running_scores[unit * plan.width] = 0.0f;
      state.finished_scores.assign(rows, -INFINITY);
      state.temperature.assign(n, 0.7f);
      state.top_p.assign(n, 0.9f);
      state.min_p.assign(n, 0.0f);
      state.is_finished.assign(rows, 0);
      state.can_improve.assign(n, 1);
      run.states.push_back(state);
    }
    const int64_t rows = static_cast<int64_t>(run.tokens.size());
    run.lengths.assign(rows, 0);
    run.table.assign(rows * positions, 0);
    for (int32_t slot = 0; slot < rows * positions; ++slot) run.own_slots.push_back(slot);
  }

  int64_t steps(Run& run, int64_t count, bool stops, int64_t threads) {
    const size_t layers = decoder.layers.size();
    for (size_t i = 0; i < layers; ++i) {
      decoder.layers[i].pools = {run.pools[i].data(), run.pools[layers + i].data(), type};
      decoder.layers[i].source_pools = {source_pool.stored.data(), source_pool.stored.data(), type};
    }
    StaticTables tables{};
    tables.units = static_cast<int64_t>(run.over.size());
    tables.rows = static_cast<int64_t>(run.tokens.size());
    tables.positions = positions;
    tables.source_positions = source_positions;
    tables.slots = slots;
    tables.source_slots = source_slots;
    tables.over = run.over.data();
    tables.tokens = run.tokens.data();
    tables.parents = run.parents.data();
    tables.own_slots = run.own_slots.data();
    tables.table = run.table.data();
    tables.lengths = run.lengths.data();
    tables.source_table = run.source_table.data();
    tables.source_lengths = run.source_lengths.data();
    tables.cu_rows = run.cu_rows.data();
    std::vector<StaticSearch> searches;
    for (size_t i = 0; i < plans.size(); ++i) {
      State& state = run.states[i];
      StaticSearch search{&plans[i], {}, {}};
      search.sampling = {state.sequences.data(),   positions + 1,           state.lengths.data(),
                         state.limits.data(),      state.seeds.data(),      state.numbers.data(),
                         state.log_probs.data(),   state.temperature.data(), state.top_k.data(),
                         state.top_p.data(),       state.min_p.data()};
      search.beam = {state.sequences.data(),       state.finished_sequences.data(), positions + 1,
                     state.running_scores.data(),  state.finished_scores.data(),    state.finished_lengths.data(),
                     state.is_finished.data(),     state.can_improve.data(),        state.lengths.data(),
                     state.limits.data()};
      searches.push_back(search);
    }
    StepsWorkspace workspace;
    return decode_steps(decoder, tables, searches, count, stops, workspace, on(threads));
  }

  // Puts a number out of range somewhere.
  void damage(Run& run) {
    const auto change = [](auto& numbers) {
      const int64_t values[] = {-1, 1 << 20, -(int64_t{1} << 31), 7};
      if (!numbers.empty()) {
        auto& number = numbers[between(0, static_cast<int64_t>(numbers.size()) - 1)];
        number = static_cast<std::decay_t<decltype(number)>>(values[between(0, 3)]);
      }
    };
    switch (between(0, 8)) {
      case 0: return change(run.tokens);
      case 1: return change(run.own_slots);
      case 2: return change(run.table);
      case 3: return change(run.lengths);
      case 4: return change(run.source_table);
      case 5: return change(run.source_lengths);
      case 6: return change(run.cu_rows);
      case 7: return change(run.states[0].lengths);
      case 8: return change(run.states[0].sequences);
    }
  }
};

// What must not change of the units that are over.
bool kept(const Case& one, const Run& before, const Run& after) {
  size_t unit = 0, row = 0;
  for (size_t i = 0; i < one.plans.size(); ++i) {
    const int64_t width = one.plans[i].width;
    for (int64_t n = 0; n < one.plans[i].units; ++n, ++unit, row += static_cast<size_t>(width)) {
      if (!before.over[unit]) continue;
      if (!after.over[unit] || before.states[i].lengths[n] != after.states[i].lengths[n]) return false;
      for (int64_t w = 0; w < width; ++w) {
        if (before.tokens[row + w] != after.tokens[row + w]) return false;
        if (before.lengths[row + w] != after.lengths[row + w]) return false;
      }
    }
  }
  return true;
}

const char* fault(int64_t call) {
  Case one;
  const int64_t count = between(0, 6);
  if (call % 2 == 1) {
    Run run = one.start;
    for (int64_t i = between(0, 3); i > 0; --i) one.damage(run);
    try {
      const int64_t done = one.steps(run, count, between(0, 1), between(1, 3));
      return done < 0 || done > count ? "the number of steps" : nullptr;
    } catch (const std::runtime_error&) {
      return nullptr;
    }
  }
  Run together = one.start, apart = one.start;
  const int64_t done = one.steps(together, count, false, between(1, 4));
  int64_t single = 0;
  while (single < count && one.steps(apart, 1, between(0, 1), 1) == 1) ++single;
  if (done != single) return "the number of steps";
  if (!(together == apart)) return "the state after several steps in one call";
  return kept(one, one.start, together) ? nullptr : "a unit that is over has changed";
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CALLS SEED\n", argv[0]);
    return 2;
  }
  randomness.seed(std::strtoull(argv[2], nullptr, 10));
  for (int64_t call = 0; call < std::atoll(argv[1]); ++call) {
    use_instruction_set(between(kPortable, best_instruction_set()));
    if (const char* what = fault(call)) {
      std::fprintf(stderr, "call %lld: %s\n", static_cast<long long>(call), what);
      return 1;
    }
  }
  std::printf("%s calls: all right\n", argv[1]);
  return 0;
}
