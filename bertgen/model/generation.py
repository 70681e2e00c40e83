"""The `generate` method of the models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import decoding
from ..config import EncoderDecoderConfig, GenerationConfig
from ..config.validators import check_callable, check_callables, check_flag
from ..decoding import logits_processors
from ..decoding.stopping_criteria import Criterion, overruled
from ..decoding.stopping_criteria import build as build_criteria
from ..errors import ConfigError, InputError, UnsupportedError, quoted
from ..kernels.plain import is_traced
from ..layers.linear import is_plain
from ..outputs import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput, GenerateOutput
from .generation_inputs import decoder_prompt, pair_prompt
from .generation_steps import Calls, Reruns, Steps
from .generation_warnings import warn_of_no_end
from .inputs import check_ids, check_tensors


class GenerationMixin:
    """`generate`, for encoder-decoders and for decoders on their own."""

    config: Any
    generation_config: Any
    decoder: Any  # of an encoder-decoder

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[logits_processors.Processor] | None = None,
        stopping_criteria: Sequence[Criterion] | None = None,
        prefix_allowed_tokens_fn: logits_processors.AllowedTokens | None = None,
        *,
        streamer: Any = None,
        tokenizer: Any = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Generate with greedy search, sampling or beam search; tokens and scores are those of transformers.

        Args:
            inputs (or input_ids): int64 [B, S]; for a decoder on its own the prompt, best padded on the left. One
                bos token where nothing is given.
            generation_config: options for this call; the model's own fill in what it leaves open.
            logits_processor: functions (tokens so far int64 [R, L], scores float32 [R, V]) -> scores, called after the
                processors of the options and before those of sampling.
            stopping_criteria: functions (tokens so far, scores of all steps or None) -> bool [R], or one bool.
            prefix_allowed_tokens_fn: function (source, its tokens so far int64 [L]) -> ids one of which comes next.
            streamer: gets the tokens as they are chosen, see `bertgen.TextStreamer`; not with beams.
            tokenizer: for `stop_strings`.
            generator: source of randomness for sampling; torch's default one otherwise.
            options: those of `GenerationConfig`, and inputs of the model:
                attention_mask: [B, S]. Where absent, pad ids of the input count as padding (`infer_attention_mask`).
                position_ids, token_type_ids: int64 [B, S]. inputs_embeds: [B, S, hidden], in place of ids.
                past_key_values: the cache an earlier call returned; it goes on from there. The ids are those of the
                    whole sequence so far.
              Of an encoder-decoder:
                encoder_outputs: what the encoder returned; saves encoding.
                decoder_input_ids: int64 [B, P] to begin with. The start token goes in front unless some row has it.
                decoder_attention_mask, decoder_position_ids: [B, P].
              Of a decoder on its own:
                encoder_hidden_states: [B, S, hidden], encoder_attention_mask: [B, S], if it has cross-attention.

        Returns:
            int64 [B * num_return_sequences, L], start token or prompt first; with `return_dict_in_generate` a
            GenerateEncoderDecoderOutput or GenerateDecoderOnlyOutput. Where beams find fewer outputs of a source than
            that, as what a call forbids leaves fewer, its last rows are empty: nothing but padding behind the start,
            with the score -inf.

        Raises:
            ConfigError: unknown or contradictory options. UnsupportedError: options bertgen does not have.
            InputError: ids, shapes or lengths outside the model's limits.
        """
        if is_traced():
            raise UnsupportedError("a trace has no ends that depend on tokens: generate cannot be traced, forward can")
        logits_processor = check_callables(logits_processor, "logits_processor")
        stopping_criteria = check_callables(stopping_criteria, "stopping_criteria")
        check_callable(prefix_allowed_tokens_fn, "prefix_allowed_tokens_fn")
        if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
            raise ConfigError(f"streamer must have the methods put and end, got {quoted(streamer)}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ConfigError(f"generator must be a torch.Generator, got {quoted(generator)}")
        prepare: Any = pair_prompt if isinstance(self.config, EncoderDecoderConfig) else decoder_prompt
        # The keywords of `prepare` are the inputs of the model, all others are options.
        given = {name: options.pop(name) for name in prepare.__kwdefaults__ if name in options}
        if inputs is not None:
            if given.get("input_ids") is not None:
                raise InputError("inputs and input_ids are two names of one argument; give one of them")
            given["input_ids"] = inputs
        levels = GenerationConfig.of_call(options, generation_config, self.generation_config)
        prompt, settled = prepare(self, levels, **given)
        if stopping_criteria is None:
            warn_of_no_end(self, settled, options)
        if streamer is not None and settled.num_beams > 1:
            raise ConfigError(f"a streamer cannot be used with num_beams {settled.num_beams}: beams change their past")
        decoder: Any = self.decoder if prompt.joint else self
        rules = logits_processors.build(
            settled, decoder.config.vocab_size, prompt.prefix, prefix_mask=prompt.mask, source_ids=prompt.source_ids,
            allowed=prefix_allowed_tokens_fn, custom=logits_processor,
        )  # fmt: skip
        criteria = build_criteria(settled, tokenizer, stopping_criteria)
        ends = overruled(settled, prompt.prefix.shape[1], stopping_criteria)
        searching = decoding.begin(prompt.prefix, ends, rules, criteria, generator)
        # What somebody looks at has the shapes it has without a cache; tokens are the same either way.
        looked_at = settled.return_dict_in_generate and (settled.output_attentions or settled.output_hidden_states)
        anew = not decoder.config.is_decoder or (looked_at and not settled.use_cache and prompt.cache is None)
        if all(map(is_plain, (self, decoder, decoder.body))):
            steps = (Reruns if anew else Steps)(decoder, prompt, settled)
        elif not anew:
            steps = Calls(self, prompt, settled)
        else:
            raise UnsupportedError(
                f"something is hung on the {type(self).__name__}, its decoder or the stack in that (a hook, a forward "
                "of its own): generate does not call it where it has no cache (is_decoder=False, use_cache=False)"
            )
        found = decoding.decode(steps, searching, streamer)
        if not settled.return_dict_in_generate:
            return found.sequences
        cache = steps.cache if settled.use_cache else None
        if not prompt.joint:
            return GenerateDecoderOnlyOutput(
                **vars(found), attentions=steps.attentions, hidden_states=steps.states, past_key_values=cache
            )
        encoded = prompt.encoded
        return GenerateEncoderDecoderOutput(
            **vars(found),
            encoder_attentions=encoded.attentions if encoded and settled.output_attentions else None,
            encoder_hidden_states=encoded.hidden_states if encoded and settled.output_hidden_states else None,
            decoder_attentions=steps.attentions,
            cross_attentions=steps.cross_attentions,
            decoder_hidden_states=steps.states,
            past_key_values=cache,
        )

    def compute_transition_scores(
        self,
        sequences: torch.Tensor,
        scores: Sequence[torch.Tensor],
        beam_indices: torch.Tensor | None = None,
        normalize_logits: bool = False,
    ) -> torch.Tensor:
        """The score of each token that was generated, float32 [N, steps]; 0 behind the end of a beam's output.

        Args:
            sequences: int64 [N, L]; scores: per step [R, vocab]; beam_indices: [N, steps], as `generate` returned them.
            normalize_logits: make log-probabilities of the scores first.
        """
        if not isinstance(scores, (tuple, list)) or not scores:
            raise InputError(f"scores must be a tuple of tensors, one per step, got {quoted(scores)}")
        of_steps = {f"scores[{step}]": one for step, one in enumerate(scores)}
        check_tensors(None, sequences=sequences, beam_indices=beam_indices, **of_steps)
        if sequences is None or any(one is None for one in scores):
            raise InputError(f"sequences and scores must be tensors, got {quoted(sequences)} and {quoted(scores)}")
        shape = scores[0].shape
        if len(shape) != 2 or any(s.shape != shape or not s.is_floating_point() for s in scores):
            raise InputError(f"scores must be floats [rows, vocab], the same in all steps, got {tuple(shape)}")
        if sequences.dim() != 2 or sequences.shape[1] < len(scores) * (beam_indices is None):
            raise InputError(f"sequences must be [rows, at least {len(scores)}], got {tuple(sequences.shape)}")
        check_ids(sequences, shape[1], "sequences")
        if beam_indices is not None:
            most = min(len(scores), sequences.shape[1])
            if beam_indices.dim() != 2 or len(beam_indices) != len(sequences) or beam_indices.shape[1] > most:
                limit = f"[{len(sequences)}, at most {most}]"
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
        found = table[torch.arange(steps, device=rows.device), rows.clamp(min=0), tokens]
        return found.masked_fill(rows < 0, 0.0)
