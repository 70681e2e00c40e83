// Several decode steps of the running rows in one call on a CPU: embeddings, layers, head, and the choice of the next
// tokens. A step of a small model takes as long as some calls from Python. Types are as in decoder_step_cpu.h: all
// between the parameters and the logits is float.
//
// The state is that of bertgen/model/static_decoder.py, whose `step` defines the results: units of rows, each with one
// source, in tables that never move. Units that are over cost nothing and nothing of them is written.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder_step_cpu.h"
#include "processors_cpu.h"
#include "sample_cpu.h"
#include "selection_cpu.h"
#include "threads.h"

namespace bertgen {

// LayerNorm(word + type + position)
struct Embeddings {
  const void *words, *positions;  // [vocabulary, hidden], [rows of positions, hidden]
  const void* token_type;         // [hidden], that of all tokens, or null
  FloatType type;                 // of these
  int64_t vocabulary, position_rows;
  int64_t first_position;  // of the first token. Where it is above 0, the id before it is padding, at the row before it
  Norm norm;
  float eps;
};

// The language-model head. With a transform its input is LayerNorm(GELU(transform(x))).
struct LanguageHead {
  bool transforms;
  Dense transform;
  Norm norm;
  float eps;
  Dense output;
};

struct Decoder {
  int64_t heads, width;
  float eps;  // of the norms of the layers
  bool int8;
  Embeddings embeddings;
  std::vector<DecoderLayer> layers;
  LanguageHead head;
};

// The tables of all units; unit u has the rows cu_rows[u] .. cu_rows[u + 1] - 1.
struct StaticTables {
  int64_t units, rows, positions, source_positions;
  int64_t slots, source_slots;  // of the pools; source_slots 0: no cross-attention
  uint8_t* over;                // [units]
  int64_t *tokens, *parents;    // [rows]; a parent counts from the first row of its search
  const int32_t* own_slots;     // [rows, positions]
  int32_t* table;               // [rows, positions]
  int32_t* lengths;             // [rows]
  const int32_t* source_table;  // [units, source_positions]
  const int32_t *source_lengths, *cu_rows;  // [units], [units + 1]
};

enum EarlyStopping : int64_t { kNotEarly, kEarly, kNeverEarly };

// Units of one kind of search, which have the same number of rows each.
struct SearchPlan {
  int64_t units, width;
  bool beams;
  bool samples, scored;  // of others
  std::vector<int64_t> ends;  // ids that end a sequence
  std::vector<Processor> processors;
  // Of beams
  int64_t candidates;
  bool fused;  // the candidates are those of top_log_probs
  EarlyStopping early_stopping;
  double length_penalty;
};

// The tensors of greedy search and sampling, a unit is a row. bertgen/decoding/sampling.py has their meaning.
struct SamplingState {
  int64_t* sequences;  // [units, positions]
  int64_t positions;
  int64_t* lengths;
  const int64_t *limits, *seeds, *numbers;
  double* log_probs;
  const float* temperature;  // these and the seeds are read where the search samples
  const int64_t* top_k;
  const float *top_p, *min_p;
};

// The tensors of beam search; bertgen/decoding/beam_search.py has their meaning.
struct BeamState {
  int64_t *running_sequences, *finished_sequences;  // [units, width, positions]
  int64_t positions;
  float *running_scores, *finished_scores;  // [units, width]
  int64_t* finished_lengths;                // [units, width]
  uint8_t *is_finished, *can_improve;       // [units, width], [units]
  int64_t* lengths;
  const int64_t* limits;
};

struct StaticSearch {
  const SearchPlan* plan;
  SamplingState sampling;
  BeamState beam;
};

// Memory of calls, one after another.
struct StepsWorkspace {
  DecoderWorkspace decoder;
  Buffer hidden, transformed, logits;
};

// Up to `count` steps, until all units are over, or with `stop_when_over` until one more unit is over; returns their
// number. Throws std::runtime_error for a number in a tensor that is out of range, before the step that would use it.
int64_t decode_steps(const Decoder& decoder, const StaticTables& tables, const std::vector<StaticSearch>& searches,
                     int64_t count, bool stop_when_over, StepsWorkspace& workspace, const Threads& threads);

}  // namespace bertgen
