// The function decode_steps, and its arguments that are made once: the weights of a decoder, and the plan of a search.
// Each is a capsule, destroyed with its last reference. decode_steps_layout.h has the order of the tensors.
#include "../decode_steps_cpu.h"

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "decode_steps_layout.h"
#include "decoder_parameters.h"
#include "functions.h"
#include "python.h"

namespace bertgen {
namespace {

struct DecoderWeights {
  static constexpr char kName[] = "bertgen.DecoderWeights";
  Decoder decoder;  // its layers have no pools
};

struct Plan {
  static constexpr char kName[] = "bertgen.SearchPlan";
  SearchPlan plan;
  std::vector<std::vector<int64_t>> integers;  // of the processors
  std::vector<std::vector<double>> floats;
  int64_t vocabulary;  // in which the ids of the processors are
};

struct Workspace {
  static constexpr char kName[] = "bertgen.StepsWorkspace";
  StepsWorkspace memory;
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
};

template <class T>
void destroy(PyObject* capsule) {
  delete static_cast<T*>(PyCapsule_GetPointer(capsule, T::kName));
}

template <class T>
PyObject* capsule_of(std::unique_ptr<T> object) {
  PyObject* capsule = PyCapsule_New(object.get(), T::kName, destroy<T>);
  if (capsule != nullptr) object.release();
  return capsule;
}

template <class T>
struct CapsuleArgument {
  explicit CapsuleArgument(PyObject* object) : value(static_cast<T*>(PyCapsule_GetPointer(object, T::kName))) {
    if (value == nullptr) throw PythonError();
  }
  T* value;
};

}  // namespace

template <>
struct Argument<DecoderWeights*> : CapsuleArgument<DecoderWeights> {
  using CapsuleArgument::CapsuleArgument;
};
template <>
struct Argument<Plan*> : CapsuleArgument<Plan> {
  using CapsuleArgument::CapsuleArgument;
};
template <>
struct Argument<Workspace*> : CapsuleArgument<Workspace> {
  using CapsuleArgument::CapsuleArgument;
};

namespace {

// parameters      the tensors of the parts of the decoder, then of its layers; they must outlive the capsule
// layers          their number
// cross           whether the layers have cross-attention
// first_position  row of the position table of the first token
// eps, embedding_eps, head_eps
//                 of the norms of the layers, of the embeddings, and of the transform of the head
PyObject* decoder_weights(const std::vector<Tensor>& parameters, const std::optional<Tensor>& codebook, int64_t layers,
                          bool cross, int64_t heads, int64_t first_position, double eps, double embedding_eps,
                          double head_eps, bool int8) {
  check_no_codebook(int8, codebook);
  BERTGEN_CHECK(layers >= 0 && first_position >= 0, layers, " layers, first position ", first_position);
  Parameters rest(parameters, codebook);
  BERTGEN_CHECK(!parameters.empty(), "there are no parameters");
  const int64_t hidden = size_of(parameters[0], 2, 1), width = heads > 0 ? hidden / heads : 0;
  BERTGEN_CHECK(heads > 0 && width > 0 && heads * width == hidden, hidden, " columns of x in ", heads, " heads");
  auto weights = std::make_unique<DecoderWeights>();
  Decoder& decoder = weights->decoder;
  decoder.heads = heads;
  decoder.width = width;
  decoder.eps = static_cast<float>(eps);
  decoder.int8 = int8;
  const char* const* names = kDecoderPartNames;
  Embeddings& embeddings = decoder.embeddings;
  embeddings.type = rest.next_type(names[kWords]);
  embeddings.words = rest.table(hidden, embeddings.type, &embeddings.vocabulary, names[kWords]);
  embeddings.positions = rest.table(hidden, embeddings.type, &embeddings.position_rows, names[kPositions]);
  embeddings.token_type = rest.vector_or_null(hidden, embeddings.type, names[kType]);
  embeddings.first_position = first_position;
  embeddings.norm = rest.norm_part(hidden, names[kEmbeddingNorm]);
  embeddings.eps = static_cast<float>(embedding_eps);
  LanguageHead& head = decoder.head;
  head.output = rest.dense_part(-1, hidden, names[kHead]);
  BERTGEN_CHECK(head.output.outputs > 0 && embeddings.vocabulary > 0, "the vocabulary is empty");
  head.transforms = !rest.skip_empty();
  if (head.transforms) {
    head.transform = rest.dense_part(hidden, hidden, names[kTransform]);
    head.norm = rest.norm_part(hidden, names[kTransformNorm]);
    head.eps = static_cast<float>(head_eps);
  }
  decoder.layers = rest.layers(static_cast<size_t>(layers), hidden, cross);
  BERTGEN_CHECK(rest.empty(), "there are more parameters than ", layers, " layers have");
  return capsule_of(std::move(weights));
}

// units, width    of the search
// beams, samples, scored
//                 its kind, and whether it sums the log-probabilities of what it chooses
// ends            ids that end a sequence
// candidates, fused, early_stopping, length_penalty
//                 of beams; csrc/decode_steps_cpu.h has their meaning
// kinds, integers, floats
//                 of each processor; csrc/processors_cpu.h has their meaning
// vocabulary      of the scores
PyObject* search_plan(int64_t units, int64_t width, bool beams, bool samples, bool scored,
                      const std::vector<int64_t>& ends, int64_t candidates, bool fused, int64_t early_stopping,
                      double length_penalty, const std::vector<int64_t>& kinds,
                      const std::vector<std::vector<int64_t>>& integers, const std::vector<std::vector<double>>& floats,
                      int64_t vocabulary) {
  BERTGEN_CHECK(units >= 0 && width > 0 && (beams || width == 1), units, " units of ", width, " rows");
  BERTGEN_CHECK(!beams || candidates >= width, candidates, " candidates of ", width, " beams");
  BERTGEN_CHECK(early_stopping >= kNotEarly && early_stopping <= kNeverEarly, "early_stopping is ", early_stopping);
  BERTGEN_CHECK(integers.size() == kinds.size() && floats.size() == kinds.size(), kinds.size(), " processors with ",
                integers.size(), " lists of integers and ", floats.size(), " of floats");
  auto plan = std::make_unique<Plan>();
  // Copies of ranges: to copy a whole vector needs GCC 11 at run time, newer than torch does.
  for (const auto& numbers : integers) plan->integers.emplace_back(numbers.begin(), numbers.end());
  for (const auto& numbers : floats) plan->floats.emplace_back(numbers.begin(), numbers.end());
  plan->vocabulary = vocabulary;
  plan->plan = {units, width, beams, samples, scored, {ends.begin(), ends.end()}, {}, candidates, fused,
                static_cast<EarlyStopping>(early_stopping), length_penalty};
  for (size_t i = 0; i < kinds.size(); ++i) {
    const std::vector<int64_t>& numbers = plan->integers[i];
    const std::vector<double>& factors = plan->floats[i];
    const Processor processor{static_cast<ProcessorKind>(kinds[i]), numbers.data(),
                              static_cast<int64_t>(numbers.size()), factors.data(),
                              static_cast<int64_t>(factors.size())};
    const char* reason = why_not_processor(processor, vocabulary);
    BERTGEN_CHECK(reason == nullptr, "processor ", i, " of kind ", kinds[i], ": ", reason);
    plan->plan.processors.push_back(processor);
  }
  return capsule_of(std::move(plan));
}

PyObject* steps_workspace() { return capsule_of(std::make_unique<Workspace>()); }

// Reads the tensors of a state in their order.
class Fields {
 public:
  Fields(const std::vector<Tensor>& tensors, const char* const* names, size_t count) : tensors_(tensors), names_(names) {
    BERTGEN_CHECK(tensors.size() == count, "a state has ", tensors.size(), " tensors, not ", count);
  }
  template <class T>
  T* at(size_t field, std::initializer_list<int64_t> sizes) const {
    return dense<T>(tensors_[field], sizes, names_[field]);
  }
  uint8_t* flags(size_t field, std::initializer_list<int64_t> sizes) const {
    return reinterpret_cast<uint8_t*>(at<bool>(field, sizes));
  }
  int64_t size(size_t field, int64_t dims, int64_t dim) const { return size_of(tensors_[field], dims, dim); }

 private:
  const std::vector<Tensor>& tensors_;
  const char* const* names_;
};

SamplingState sampling_state(const Fields& fields, int64_t units, bool samples) {
  const int64_t positions = fields.size(kSequences, 2, 1);
  SamplingState state{fields.at<int64_t>(kSequences, {units, positions}),
          positions,
          fields.at<int64_t>(kSampleLengths, {units}),
          fields.at<int64_t>(kSampleLimits, {units}),
          fields.at<int64_t>(kSeeds, {units}),
          fields.at<int64_t>(kNumbers, {units}),
          fields.at<double>(kLogProbs, {units}),
          nullptr,
          nullptr,
          nullptr,
          nullptr};
  if (samples) {
    state.temperature = fields.at<float>(kTemperature, {units});
    state.top_k = fields.at<int64_t>(kTopK, {units});
    state.top_p = fields.at<float>(kTopP, {units});
    state.min_p = fields.at<float>(kMinP, {units});
  }
  return state;
}

BeamState beam_state(const Fields& fields, int64_t units, int64_t width) {
  const int64_t positions = fields.size(kRunningSequences, 3, 2);
  return {fields.at<int64_t>(kRunningSequences, {units, width, positions}),
          fields.at<int64_t>(kFinishedSequences, {units, width, positions}),
          positions,
          fields.at<float>(kRunningScores, {units, width}),
          fields.at<float>(kFinishedScores, {units, width}),
          fields.at<int64_t>(kFinishedLengths, {units, width}),
          fields.flags(kIsFinished, {units, width}),
          fields.flags(kCanImprove, {units}),
          fields.at<int64_t>(kBeamLengths, {units}),
          fields.at<int64_t>(kBeamLimits, {units})};
}

// weights, plans, workspace
//              capsules; a workspace serves one call at a time
// states       the tensors of the state of each search; greedy search has none from temperature on
// pools, source_pools
//              as those of decoder_step; no source pools without cross-attention
// tables       bool over [units], int64 tokens [rows, 1], parents [rows], int32 own_slots, slot_table [rows, positions],
//              lengths [rows], source_table [units, source positions], source_lengths [units], cu_rows [units + 1]
// -> the number of steps
int64_t decode_steps_op(DecoderWeights* weights, const std::vector<Plan*>& plans,
                        const std::vector<std::vector<Tensor>>& states, const std::vector<Tensor>& pools,
                        const std::vector<Tensor>& source_pools, const std::vector<Tensor>& tables,
                        Workspace* workspace, int64_t count, bool stop_when_over) {
  BERTGEN_CHECK(states.size() == plans.size(), plans.size(), " searches with ", states.size(), " states");
  const Fields fields(tables, kStaticTableNames, kStaticTables);
  StaticTables all{};
  all.units = fields.size(kOver, 1, 0);
  all.rows = fields.size(kRowLengths, 1, 0);
  all.positions = fields.size(kSlotTable, 2, 1);
  all.source_positions = fields.size(kSources, 2, 1);
  all.slots = pools.empty() ? 0 : size_of(pools[0], 3, 0);
  all.source_slots = source_pools.empty() ? 0 : size_of(source_pools[0], 3, 0);
  all.over = fields.flags(kOver, {all.units});
  all.tokens = fields.at<int64_t>(kTokens, {all.rows, 1});
  all.parents = fields.at<int64_t>(kParents, {all.rows});
  all.own_slots = fields.at<int32_t>(kOwnSlots, {all.rows, all.positions});
  all.table = fields.at<int32_t>(kSlotTable, {all.rows, all.positions});
  all.lengths = fields.at<int32_t>(kRowLengths, {all.rows});
  all.source_table = fields.at<int32_t>(kSources, {all.units, all.source_positions});
  all.source_lengths = fields.at<int32_t>(kLengthsOfSources, {all.units});
  all.cu_rows = fields.at<int32_t>(kFirstRows, {all.units + 1});
  std::vector<StaticSearch> searches;
  for (size_t i = 0; i < plans.size(); ++i) {
    const SearchPlan& plan = plans[i]->plan;
    BERTGEN_CHECK(plans[i]->vocabulary == weights->decoder.head.output.outputs, "search ", i, " is of ",
                  plans[i]->vocabulary, " tokens, the head of ", weights->decoder.head.output.outputs);
    StaticSearch search{&plan, {}, {}};
    if (plan.beams) {
      search.beam = beam_state({states[i], kBeamStateNames, kBeamFields}, plan.units, plan.width);
    } else {
      search.sampling = sampling_state({states[i], kSamplingStateNames, plan.samples ? kSamplingFields : kTemperature},
                                       plan.units, plan.samples);
    }
    searches.push_back(search);
  }
  const Decoder& own = weights->decoder;  // copied: other calls have other pools
  Decoder decoder{own.heads, own.width, own.eps, own.int8, own.embeddings, {own.layers.begin(), own.layers.end()},
                  own.head};
  set_pools(decoder.layers, pools, source_pools, {0, decoder.heads, decoder.width});
  BERTGEN_CHECK(!workspace->busy.test_and_set(std::memory_order_acquire), "the steps run already, in another thread");
  struct Free {
    std::atomic_flag& flag;
    ~Free() { flag.clear(std::memory_order_release); }
  } free{workspace->busy};
  return decode_steps(decoder, all, searches, count, stop_when_over, workspace->memory, threads());
}

PyMethodDef functions[] = {
    BERTGEN_QUICK("decoder_weights", decoder_weights,
                  "parameters, codebook, layers, cross, heads, first_position, eps, embedding_eps, head_eps, int8",
                  "The weights of a decoder, a capsule; their tensors must outlive it."),
    BERTGEN_QUICK("search_plan", search_plan,
                  "units, width, beams, samples, scored, ends, candidates, fused, early_stopping, length_penalty, "
                  "kinds, integers, floats, vocabulary",
                  "What a search does, a capsule."),
    BERTGEN_QUICK_WITHOUT_ARGUMENTS("steps_workspace", steps_workspace, "The memory of decode_steps, a capsule."),
    BERTGEN_KERNEL("decode_steps", decode_steps_op,
                   "weights, plans, states, pools, source_pools, tables, workspace, count, stop_when_over",
                   "Up to `count` decode steps of the running rows; their number."),
    {},
};

}  // namespace

bool add_decode_steps(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace bertgen
