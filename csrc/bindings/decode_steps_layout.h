// The layout of the arguments of decode_steps: the names of its tensors, each once and in their order.
//
// bertgen/ops/decode_steps_layout.py names the same tensors. The extension exports these names and bertgen/ops/
// extension.py does not use an extension with other names or in another order.
#pragma once

#include <cstddef>

namespace bertgen {

// FIELD(index, name) of the parameters of a decoder before those of its layers. `type` and the two of the transform may
// be empty; a norm is weight and shift, and the others but the tables of embeddings are as those of a layer.
#define BERTGEN_DECODER_PARTS(FIELD)         \
  FIELD(kWords, "words")                     \
  FIELD(kPositions, "positions")             \
  FIELD(kType, "type")                       \
  FIELD(kEmbeddingNorm, "embedding_norm")    \
  FIELD(kHead, "head")                       \
  FIELD(kTransform, "transform")             \
  FIELD(kTransformNorm, "transform_norm")

// FIELD(index, name) of `tables`.
#define BERTGEN_STATIC_TABLES(FIELD)         \
  FIELD(kOver, "over")                       \
  FIELD(kTokens, "tokens")                   \
  FIELD(kParents, "parents")                 \
  FIELD(kOwnSlots, "own_slots")              \
  FIELD(kSlotTable, "slot_table")            \
  FIELD(kRowLengths, "lengths")              \
  FIELD(kSources, "source_table")            \
  FIELD(kLengthsOfSources, "source_lengths") \
  FIELD(kFirstRows, "cu_rows")

// FIELD(index, name) of the state of greedy search and sampling.
#define BERTGEN_SAMPLING_STATE(FIELD)        \
  FIELD(kSequences, "sequences")             \
  FIELD(kSampleLengths, "lengths")           \
  FIELD(kSampleLimits, "limits")             \
  FIELD(kSeeds, "seeds")                     \
  FIELD(kNumbers, "numbers")                 \
  FIELD(kLogProbs, "log_probs")              \
  FIELD(kTemperature, "temperature")         \
  FIELD(kTopK, "top_k")                      \
  FIELD(kTopP, "top_p")                      \
  FIELD(kMinP, "min_p")

// FIELD(index, name) of the state of beam search.
#define BERTGEN_BEAM_STATE(FIELD)                   \
  FIELD(kRunningSequences, "running_sequences")     \
  FIELD(kFinishedSequences, "finished_sequences")   \
  FIELD(kRunningScores, "running_scores")           \
  FIELD(kFinishedScores, "finished_scores")         \
  FIELD(kFinishedLengths, "finished_lengths")       \
  FIELD(kIsFinished, "is_finished")                 \
  FIELD(kCanImprove, "can_improve")                 \
  FIELD(kBeamLengths, "lengths")                    \
  FIELD(kBeamLimits, "limits")

#define BERTGEN_INDEX(index, name) index,
#define BERTGEN_NAME(index, name) name,

enum DecoderPart : size_t { BERTGEN_DECODER_PARTS(BERTGEN_INDEX) kDecoderParts };
constexpr const char* kDecoderPartNames[] = {BERTGEN_DECODER_PARTS(BERTGEN_NAME)};

enum StaticTable : size_t { BERTGEN_STATIC_TABLES(BERTGEN_INDEX) kStaticTables };
constexpr const char* kStaticTableNames[] = {BERTGEN_STATIC_TABLES(BERTGEN_NAME)};

enum SamplingField : size_t { BERTGEN_SAMPLING_STATE(BERTGEN_INDEX) kSamplingFields };
constexpr const char* kSamplingStateNames[] = {BERTGEN_SAMPLING_STATE(BERTGEN_NAME)};

enum BeamField : size_t { BERTGEN_BEAM_STATE(BERTGEN_INDEX) kBeamFields };
constexpr const char* kBeamStateNames[] = {BERTGEN_BEAM_STATE(BERTGEN_NAME)};

#undef BERTGEN_INDEX
#undef BERTGEN_NAME

}  // namespace bertgen
