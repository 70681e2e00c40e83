"""The `generate` method of the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import decoding
from ..arguments import cache_alias
from ..config import EncoderDecoderConfig, GenerationConfig
from ..config.validators import check_callable, check_callables, check_flag
from ..decoding.logits_processors import AllowedTokens, LogitsProcessor, build_logits_processors
from ..decoding.stopping_criteria import StoppingCriterion, build_stopping_criteria, with_custom_limits
from ..errors import ConfigError, InputError, UnsupportedError, quoted
from ..kernels.plain import is_traced
from ..layers.inspection import is_plain
from ..ops.device_guard import on_own_device
from ..ops.slow_paths import report_slow_paths
from ..outputs import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput, GenerateOutput
from .generation_decoders import CachedDecoder, ForwardDecoder, UncachedDecoder
from .generation_inputs import GenerationInputs, decoder_only_inputs, encoder_decoder_inputs
from .generation_warnings import warn_without_end_token
from .inputs import check_ids, check_tensors


class GenerationMixin:
    """`generate`, for encoder-decoders and for decoders on their own."""

    config: Any
    generation_config: Any
    decoder: Any  # of an encoder-decoder
    device: Any
    dtype: Any

    @cache_alias
    @torch.no_grad()
    @on_own_device
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriterion] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        *,
        streamer: Any = None,
        tokenizer: Any = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Generate with greedy search, sampling or beam search; tokens and scores are those of transformers.

        Args:
            inputs (or input_ids): int64 [B, S]; for a decoder on its own the prompt, best padded on the left. Without
                inputs, one bos token.
            generation_config: options for this call; the model's own are used for those that it does not set.
            logits_processor: functions (tokens so far int64 [R, L], scores float32 [R, V]) -> scores, called after the
                processors of the options and before those of sampling.
            stopping_criteria: functions (tokens so far, scores of all steps or None) -> bool [R], or one bool.
            prefix_allowed_tokens_fn: function (source, its tokens so far int64 [L]) -> ids allowed as the next token.
            streamer: receives the tokens as they are chosen, see `bertgen.TextStreamer`; not with beams.
            tokenizer: for `stop_strings`.
            generator: random numbers for sampling; None is torch's default generator.
            options: those of `GenerationConfig`, and inputs of the model:
                attention_mask: [B, S]. Without it, pad ids of the input count as padding (`infer_attention_mask`).
                position_ids, token_type_ids: int64 [B, S]. inputs_embeds: [B, S, hidden], in place of ids.
                past_key_values: the cache of an earlier call, to continue from. The ids are those of the whole
                    sequence so far.
              Of an encoder-decoder:
                encoder_outputs: return value of the encoder, which then is not called.
                decoder_input_ids: int64 [B, P], first tokens of the outputs. The start token is put before them
                    unless a row begins with it.
                decoder_attention_mask, decoder_position_ids: [B, P].
              Of a decoder on its own:
                encoder_hidden_states: [B, S, hidden], encoder_attention_mask: [B, S], if it has cross-attention.

        Returns:
            int64 [B * num_return_sequences, L], start token or prompt first; with `return_dict_in_generate` a
            GenerateEncoderDecoderOutput or GenerateDecoderOnlyOutput. Where a beam search finds fewer outputs of a
            source, because constraints leave fewer, the last rows of the source are empty: padding after the start
            token, with the score -inf.

        Raises:
            ConfigError: unknown or contradictory options. UnsupportedError: options bertgen does not have.
            InputError: ids, shapes or lengths outside the model's limits.
            BackendError: the C++ extension is missing, and BERTGEN_REQUIRE_EXT=1.
        """
        if is_traced():
            raise UnsupportedError("generate cannot be traced, because its length depends on tokens; forward can")
        report_slow_paths(self.device)
        logits_processor = check_callables(logits_processor, "logits_processor")
        stopping_criteria = check_callables(stopping_criteria, "stopping_criteria")
        check_callable(prefix_allowed_tokens_fn, "prefix_allowed_tokens_fn")
        if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
            raise ConfigError(f"streamer must have the methods put and end, got {quoted(streamer)}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ConfigError(f"generator must be a torch.Generator, got {quoted(generator)}")
        prepare: Any = encoder_decoder_inputs if isinstance(self.config, EncoderDecoderConfig) else decoder_only_inputs
        # The keywords of `prepare` are the inputs of the model, all others are options.
        model_inputs = {name: options.pop(name) for name in prepare.__kwdefaults__ if name in options}
        if inputs is not None:
            if model_inputs.get("input_ids") is not None:
                raise InputError("inputs and input_ids are two names of one argument; pass one of them")
            model_inputs["input_ids"] = inputs
        merged = GenerationConfig.of_call(options, generation_config, self.generation_config)
        prepared, resolved = prepare(self, merged, **model_inputs)
        if stopping_criteria is None:
            warn_without_end_token(self, resolved, options)
        if streamer is not None and resolved.num_beams > 1:
            raise ConfigError(
                f"a streamer cannot be used with num_beams {resolved.num_beams}: beams change earlier tokens"
            )
        decoder: Any = self.decoder if prepared.is_encoder_decoder else self
        processors = build_logits_processors(
            resolved, decoder.config.vocab_size, prepared.prefix, prefix_mask=prepared.mask,
            source_ids=prepared.source_ids, allowed=prefix_allowed_tokens_fn, custom=logits_processor,
        )  # fmt: skip
        criteria = build_stopping_criteria(resolved, tokenizer, stopping_criteria)
        limited = with_custom_limits(resolved, prepared.prefix.shape[1], stopping_criteria)
        search = decoding.empty_search(limited, processors, criteria, generator)
        if streamer is None and (sequences := self._static_sequences(prepared, limited, search)) is not None:
            return sequences
        search.join(prepared.prefix, range(len(prepared.prefix)))
        step_decoder = self._step_decoder(decoder, prepared, resolved)
        output = decoding.run_search(step_decoder, search, streamer)
        if not resolved.return_dict_in_generate:
            return output.sequences
        cache = step_decoder.cache if resolved.use_cache else None
        if not prepared.is_encoder_decoder:
            return GenerateDecoderOnlyOutput(
                **vars(output),
                attentions=step_decoder.attentions,
                hidden_states=step_decoder.states,
                past_key_values=cache,
            )
        encoded = prepared.encoder_output
        return GenerateEncoderDecoderOutput(
            **vars(output),
            encoder_attentions=encoded.attentions if encoded and resolved.output_attentions else None,
            encoder_hidden_states=encoded.hidden_states if encoded and resolved.output_hidden_states else None,
            decoder_attentions=step_decoder.attentions,
            cross_attentions=step_decoder.cross_attentions,
            decoder_hidden_states=step_decoder.states,
            past_key_values=cache,
        )

    def _static_sequences(
        self, inputs: GenerationInputs, options: GenerationConfig, search: decoding.Search
    ) -> torch.Tensor | None:
        """int64 [outputs, L] of static steps; None, with nothing done, where these do not cover the call.

        Args:
            options: resolved. search: without sources.
        """
        return None

    def _step_decoder(self, decoder: Any, inputs: GenerationInputs, options: GenerationConfig) -> CachedDecoder:
        """The decoder of the decode loop for these inputs and resolved options.

        Raises:
            UnsupportedError: hooks that would not be called.
        """
        # Without `use_cache` the returned states have the shapes that they have without a cache; tokens are the same.
        returns_states = options.return_dict_in_generate and (options.output_attentions or options.output_hidden_states)
        uncached = not decoder.config.is_decoder or (returns_states and not options.use_cache and inputs.cache is None)
        if all(map(is_plain, (self, decoder, decoder.body))):
            return (UncachedDecoder if uncached else CachedDecoder)(decoder, inputs, options)
        if uncached:
            raise UnsupportedError(
                f"the {type(self).__name__}, its decoder or the decoder's stack has a hook or a patched forward, which "
                "generate does not call where it has no cache (is_decoder=False, use_cache=False)"
            )
        return ForwardDecoder(self, inputs, options)

    def compute_transition_scores(
        self,
        sequences: torch.Tensor,
        scores: Sequence[torch.Tensor],
        beam_indices: torch.Tensor | None = None,
        normalize_logits: bool = False,
    ) -> torch.Tensor:
        """The score of each generated token, float32 [N, steps]; 0 after the end of a beam's output.

        Args:
            sequences: int64 [N, L]; scores: per step [R, vocab]; beam_indices: [N, steps], as `generate` returned them.
            normalize_logits: turn the scores into log-probabilities first.
        """
        if not isinstance(scores, (tuple, list)) or not scores:
            raise InputError(f"scores must be a tuple of tensors, one per step, got {quoted(scores)}")
        step_scores = {f"scores[{step}]": tensor for step, tensor in enumerate(scores)}
        check_tensors(None, sequences=sequences, beam_indices=beam_indices, **step_scores)
        if sequences is None or any(tensor is None for tensor in scores):
            raise InputError(f"sequences and scores must be tensors, got {quoted(sequences)} and {quoted(scores)}")
        shape = scores[0].shape
        if len(shape) != 2 or any(s.shape != shape or not s.is_floating_point() for s in scores):
            raise InputError(f"scores must be floats [rows, vocab], the same in all steps, got {tuple(shape)}")
        if sequences.dim() != 2 or sequences.shape[1] < len(scores) * (beam_indices is None):
            raise InputError(f"sequences must be [rows, at least {len(scores)}], got {tuple(sequences.shape)}")
        check_ids(sequences, shape[1], "sequences")
        if beam_indices is not None:
            max_steps = min(len(scores), sequences.shape[1])
            if beam_indices.dim() != 2 or len(beam_indices) != len(sequences) or beam_indices.shape[1] > max_steps:
                limit = f"[{len(sequences)}, at most {max_steps}]"
                raise InputError(f"beam_indices must be {limit}, got {tuple(beam_indices.shape)}")
            check_ids(beam_indices + 1, shape[0] + 1, "beam_indices, counted from 1,")
        elif len(sequences) != shape[0]:
            raise InputError(f"sequences have {len(sequences)} rows, scores {shape[0]}: beams need beam_indices")
        normalize_logits = check_flag(normalize_logits, "normalize_logits")
        table = torch.stack(tuple(scores))
        if normalize_logits:
            table = table.log_softmax(-1)
        if beam_indices is None:  # row r is output r
            beam_indices = torch.arange(table.shape[1], device=sequences.device)[:, None].expand(-1, len(table))
        steps = int((beam_indices >= 0).sum(1).max())
        rows = beam_indices[:, :steps].long()
        tokens = sequences[:, sequences.shape[1] - steps :]
        token_scores = table[torch.arange(steps, device=rows.device), rows.clamp(min=0), tokens]
        return token_scores.masked_fill(rows < 0, 0.0)
