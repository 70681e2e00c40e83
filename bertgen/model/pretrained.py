"""What every model has in common: initial weights, loading, saving, and where it lives."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from .. import checkpoint, memory
from ..arguments import directory_aliases, path_aliases, supported_options, value_or_alias
from ..config import BitsAndBytesConfig, GenerationConfig, Int4Config, half_config, int4_config, read_json, special_ids
from ..config.base import check_flag, check_mapping, check_name
from ..errors import BackendError, CheckpointError, ConfigError, InputError, UnsupportedError, quoted
from ..hub import resolve_file, split_hub_options
from ..layers.activations import XIELU
from ..layers.heads import LMHead
from ..layers.linear import Int4Linear
from ..layers.meta_init import outlined
from ..layers.stack import Stack
from ..quantization.bitsandbytes import from_bitsandbytes
from ..quantization.int4 import quantize, why_not_int4_weight
from .state_dict import count_layers, fold_token_types, rename_tensors

logger = logging.getLogger(__name__)

_DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
# Dtypes that a file may hold weights in; float8 without scales is a float as any other.
STORED = frozenset(
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
)


class PretrainedModel(nn.Module):
    """Base of the models: `from_pretrained`, `save_pretrained`, ties, device and dtype."""

    config_class: ClassVar[Any]
    arguments: ClassVar[tuple[str, ...]] = ()  # of the class, beside its configuration
    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True
    name_or_path: str = ""  # where the model was loaded from

    config: Any
    _generation_config: GenerationConfig
    _require_grads_hooks: list[Any]
    _noted_ids: dict[str, Any]  # those of `config` that `_generation_config` has, or has others in place of

    @property
    def generation_config(self) -> Any:
        """How the model generates (`GenerationConfig`).

        A special id that `config` has got since, or another of which it has got, is taken over from there, unless it
        was not the configuration's before: `model.config.eos_token_id = 102` behind construction acts.
        """
        ids, own = special_ids(self.config), self._generation_config
        for name, value in ids.items():
            if value != self._noted_ids[name] == getattr(own, name):
                setattr(own, name, value)
        self._noted_ids = ids
        return own

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        config = GenerationConfig.of_argument(value)
        if config is None:
            raise ConfigError("generation_config must be a GenerationConfig or a dict of options, got None")
        self._generation_config, self._noted_ids = config, special_ids(self.config)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Parameters, each counted once however many names it has; those in 4 bits too, without their scales.

        Args:
            only_trainable: only those with `requires_grad`. exclude_embeddings: without tables of embeddings.
        """
        left_out = {id(p) for m in self.modules() if isinstance(m, Int4Linear) for p in (m.scale, m.zero)}
        if exclude_embeddings:
            left_out |= {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        counted = [p for p in self.parameters() if id(p) not in left_out and (p.requires_grad or not only_trainable)]
        return sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in counted)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers."""
        held = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(t.numel() * t.element_size() for t in held)

    def can_generate(self) -> bool:
        """Whether there is a `generate`."""
        return hasattr(self, "generate")

    @property
    def base_model(self) -> Any:
        """The stack without its head; the model itself where it has none."""
        return self

    @property
    def quantization(self) -> Int4Config | None:
        """The format of the weights in 4 bits; None where there are none.

        Raises:
            UnsupportedError: there are weights in different formats.
        """
        found = {module.config for module in self.modules() if isinstance(module, Int4Linear)}
        if len(found) > 1:
            raise UnsupportedError(
                f"one model has weights in one format, these are in {len(found)}: {sorted(map(str, found))}"
            )
        return next(iter(found), None)

    def dequantize(self) -> Any:
        """Make every weight in 4 bits a float again, in place: the value that it stands for.

        Returns:
            The model.
        """
        for path, module in list(self.named_modules()):
            if isinstance(module, Int4Linear):
                self.set_submodule(path, module.to_linear())
        self.tie_weights()
        return self

    def requires_grad_(self, requires_grad: bool = True):
        if requires_grad and self.quantization is not None:
            raise UnsupportedError("weights in 4 bits have no gradient; dequantize() makes them floats to train")
        return super().requires_grad_(requires_grad)

    def tie_weights(self) -> None:
        """Make names that share a weight by configuration hold the same Parameter."""

    @torch.no_grad()
    def initialize(self, std: float, modules: Iterable[nn.Module]) -> None:
        """N(0, std) for Linear and Embedding weights, 0 for biases and the padding row, 1 and 0 for LayerNorm.

        Parameters on the meta device are passed over: there is nothing to fill, and asking costs as much as filling.
        """
        for module in modules:
            if any(p.is_meta for p in module.parameters(recurse=False)):
                continue
            if isinstance(module, nn.PReLU):
                module.weight.fill_(0.25)
            if isinstance(module, XIELU):
                module.reset()
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0.0, std)
                if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                    module.weight[module.padding_idx].zero_()
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
            bias = getattr(module, "bias", None)
            if isinstance(bias, nn.Parameter):
                bias.zero_()

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Keep only the layers' inputs in training and compute the rest again on the way back, to save memory.

        Args:
            gradient_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`; use_reentrant is False by default.
        """
        options = {} if gradient_checkpointing_kwargs is None else gradient_checkpointing_kwargs
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            raise ConfigError(f"gradient_checkpointing_kwargs must be a dict of options, got {quoted(options)}")
        self._recompute({"use_reentrant": False, **options})

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything again."""
        self._recompute(None)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any stack recomputes its layers."""
        return any(m.recompute is not None for m in self.modules() if isinstance(m, Stack))

    def set_attn_implementation(self, attn_implementation: Any) -> None:
        """Accepted, as of `from_pretrained`: operators are chosen call by call, and attention weights are real ones."""
        supported_options({"attn_implementation": attn_implementation})

    # The names that these have in transformers from 5.23 on.
    activation_checkpointing_disable = gradient_checkpointing_disable
    is_activation_checkpointing = is_gradient_checkpointing

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """`gradient_checkpointing_enable`; UnsupportedError for other than every layer, or inputs held elsewhere."""
        if every_n_layers != 1 or offload:
            raise UnsupportedError(
                f"every_n_layers={every_n_layers}, offload={offload}: each layer recomputes, in place"
            )
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def enable_input_require_grads(self) -> None:
        """Make what the tables of embeddings return need a gradient, for adapters under gradient checkpointing."""
        self.disable_input_require_grads()
        tables = {id(m): m for m in self.modules() if isinstance(m, PretrainedModel)}
        found = {id(m.get_input_embeddings()): m.get_input_embeddings() for m in tables.values()}
        self._require_grads_hooks = [t.register_forward_hook(_needs_gradient) for t in found.values()]

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        for hook in getattr(self, "_require_grads_hooks", ()):
            hook.remove()
        self._require_grads_hooks = []

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of embeddings of the input's tokens."""
        raise NotImplementedError

    def _recompute(self, options: dict[str, Any] | None) -> None:
        for module in self.modules():
            if isinstance(module, Stack):
                module.recompute = options

    @classmethod
    @path_aliases
    @torch.inference_mode(False)  # the weights outlive the call: later ones may want gradients or version counters
    def from_pretrained(
        cls,
        path_or_id: str | os.PathLike | None,
        *,
        config: Any = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | int | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        fold_embeddings: bool = False,
        quantization_config: Any = None,
        use_safetensors: bool | None = None,
        variant: str | None = None,
        state_dict: dict[str, torch.Tensor] | None = None,
        key_mapping: dict[str, str] | None = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        generation_config: GenerationConfig | None = None,
        **overrides: Any,
    ):
        """Load a model, in evaluation mode.

        Args:
            path_or_id: a directory, a hub id, or "demo" for the model that ships with the package. None where `config`
                and `state_dict` say all.
            config: a configuration object, ours or transformers', to use in place of the checkpoint's, or the place of
                one.
            dtype: torch.float32, float16, bfloat16 or float64 (or its name); "auto" or None takes the one that
                config.json names, else the one the weights are stored in. torch_dtype is its older name.
            device: "cpu", "cuda", "cuda:1" or a CUDA index; None is the CPU. device_map says the same in transformers'
                words: "auto" is the first GPU where there is one, a table must name one device.
            revision, cache_dir, token, local_files_only, force_download, subfolder: as in
                `huggingface_hub.hf_hub_download`.
            fold_embeddings: for a bert-generation half that is loaded from a BERT or RoBERTa: add the first row of its
                token types to the positions, and drop RoBERTa's rows for padding, so that the embeddings are those
                the weights were trained with. transformers drops the token types.
            quantization_config: an `Int4Config`, or a `BitsAndBytesConfig` of ours or of transformers, to hold the
                weights of linear layers in 4 bits. They are rounded one by one: never are all of them in memory as
                floats. A checkpoint whose weights are in 4 bits already needs none. load_in_4bit=True is short for one.
            use_safetensors: True reads nothing else, False only pickles.
            variant: part of the files' names: "fp16" reads `model.fp16.safetensors`.
            state_dict: weights to use in place of the files'.
            key_mapping: regular expression -> replacement, for the names of weights in the file.
            ignore_mismatched_sizes: initialise weights at random that have another shape in the file.
            output_loading_info: return the model and a dict of sets: missing_keys, unexpected_keys, mismatched_keys
                (name, shape in the file, shape here), error_msgs.
            generation_config: how the model generates, in place of the file's.
            overrides: options of the configuration to replace, arguments of the class, and gradient_checkpointing.
                Arguments of transformers that change nothing here are accepted, see `bertgen.arguments`.

        Raises:
            CheckpointError: files that are missing, corrupt, or do not fit the configuration.
            ConfigError: an unknown option or dtype. BackendError: a device that is not there.
            UnsupportedError: an argument of transformers that would change something, and is not supported.
        """
        overrides, hub = split_hub_options(
            dict(overrides, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
        )
        target = resolve_device(_placed(device, overrides.pop("device_map", None)))
        dtype = value_or_alias(dtype, overrides, "torch_dtype")
        short = {name: overrides.pop(name) for name in ("load_in_4bit", "load_in_8bit") if name in overrides}
        if any(short.values()):
            if quantization_config is not None:
                raise ConfigError(f"{' and '.join(short)} is short for a quantization_config; give one of them")
            quantization_config = BitsAndBytesConfig(**short)
        built = {name: overrides.pop(name) for name in cls.arguments if name in overrides}
        recompute = overrides.pop("gradient_checkpointing", None)
        recompute = None if recompute is None else check_flag(recompute, "gradient_checkpointing")
        fold_embeddings = check_flag(fold_embeddings, "fold_embeddings")
        check_mapping(state_dict, "state_dict", torch.Tensor)
        check_mapping(key_mapping, "key_mapping", str)
        check_name(variant, "variant")
        use_safetensors = None if use_safetensors is None else check_flag(use_safetensors, "use_safetensors")
        ignore_mismatched_sizes = check_flag(ignore_mismatched_sizes, "ignore_mismatched_sizes")
        output_loading_info = check_flag(output_loading_info, "output_loading_info")
        if config is not None and not isinstance(config, (str, os.PathLike)):
            config = cls.config_class.of_argument(config)
        if config is None or isinstance(config, (str, os.PathLike)):
            config = cls.config_class.from_pretrained(path_or_id if config is None else config, hub=hub, **overrides)
        elif overrides:
            raise ConfigError(f"options {sorted(overrides)} were given together with a config object; set them on it")
        wanted = None if quantization_config is None else int4_config(quantization_config)
        stored = config.extra.get("quantization_config")
        if wanted is not None and stored is not None:
            raise ConfigError(
                f"{path_or_id} is quantized already ({int4_config(stored).format}), quantization_config again"
            )
        if state_dict is not None:
            state = dict(state_dict)
        elif path_or_id is None:
            raise ConfigError("from_pretrained needs a directory or a hub id, or a config and a state_dict")
        else:
            state = checkpoint.load_state(path_or_id, use_safetensors=use_safetensors, variant=variant, hub=hub)
        for pattern, replacement in (key_mapping or {}).items():
            state = rename_tensors(state, partial(_substituted, pattern, replacement))
        if stored is not None:
            method, stored = stored, int4_config(stored)
            if method.get("quant_method") == "bitsandbytes":
                state = from_bitsandbytes(state, stored.format)
        if fold_embeddings:
            state, rows = fold_token_types(state, _first_position(path_or_id, hub))
            config.max_position_embeddings = rows
        chosen = _resolve_dtype(dtype, config, state)
        if not ignore_mismatched_sizes:
            _check_size(path_or_id, cls, config, state)
        with outlined():
            model = cls(config, **built)
        model.name_or_path = "" if path_or_id is None else str(path_or_id)
        found = model._load(path_or_id, state, target, chosen, stored, wanted, ignore_mismatched_sizes)
        options = None
        if generation_config is not None:
            model.generation_config = generation_config
        elif path_or_id is not None:
            options = resolve_file(path_or_id, "generation_config.json", hub, required=False)
        if options is not None:
            model.generation_config = GenerationConfig.from_model_files(options, config)
        if recompute is not None:
            switch = model.gradient_checkpointing_enable if recompute else model.gradient_checkpointing_disable
            switch()
        model.eval()
        return (model, found) if output_loading_info else model

    def _load(
        self,
        path_or_id: str | os.PathLike | None,
        state: dict[str, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
        stored: Int4Config | None,
        wanted: Int4Config | None,
        ignore_mismatched_sizes: bool = False,
    ) -> dict[str, set[Any]]:
        """Give the parameters (on the meta device) the tensors of a checkpoint, and initialise those it lacks.

        Args:
            state: as it lies in the file.
            stored: the format that linear layers are in there; wanted: the one to round them to.
            ignore_mismatched_sizes: initialise weights of another shape, too.

        Returns:
            What did not go from the one to the other, by transformers' names.
        """
        own, lean = self.state_dict(), bool(stored or wanted)
        values = sum(tensor.numel() for tensor in state.values())
        state = self._mapped(state, set(own))
        for name, tensor in state.items():
            if name in own and own[name].is_floating_point() and tensor.dtype not in STORED:
                raise CheckpointError(f"{path_or_id}: {name} holds {tensor.dtype}, which is no kind of weight")
            if name in own and (f"{name}_scale" in state or f"{name}_scale_inv" in state):
                raise UnsupportedError(
                    f"{path_or_id}: {name} is {tensor.dtype} with a scale beside it; of quantized weights those in 4 "
                    "bits of bertgen and bitsandbytes can be loaded"
                )
        state = {name: t for name, t in state.items() if t.is_floating_point() or _is_packed(name)}
        rounded = {f"{path}.weight" for path in linear_layers(self, wanted)} if wanted else set()
        placed: dict[tuple, dict[str, torch.Tensor]] = {}  # by where it lies, as one tensor may have several names
        loaded: dict[str, torch.Tensor] = {}
        others: dict[str, tuple[Any, ...]] = {}  # of another shape than the configuration's
        for name, tensor in state.items():
            if name in own and tensor.shape != own[name].shape:
                if ignore_mismatched_sizes:
                    others[name] = (name, tensor.shape, own[name].shape)
                    continue
                raise CheckpointError(
                    f"{path_or_id}: {name} has shape {tuple(tensor.shape)}, the configuration asks for "
                    f"{tuple(own[name].shape)}"
                )
            where = tensor.data_ptr(), tensor.shape, tensor.dtype, name in rounded
            if where not in placed:
                floating = tensor.is_floating_point()
                new = tensor.to(device, dtype if floating else tensor.dtype, copy=lean)
                if floating and not _is_finite(new):
                    beyond = f" in {str(dtype).removeprefix('torch.')}" if _is_finite(tensor) else ""
                    raise CheckpointError(f"{path_or_id}: {name} holds values that are not finite{beyond}")
                placed[where] = _rounded(name, new, wanted) if wanted and name in rounded else {"": new}
                if lean:
                    memory.release(tensor)
            loaded.update(
                (name.removesuffix("weight") + part if part else name, t) for part, t in placed[where].items()
            )
        self._install(path_or_id, loaded, wanted or stored)
        self.load_state_dict({k: t for k, t in loaded.items() if k in own}, strict=False, assign=True)
        self.tie_weights()
        missing = [name for name, p in self.named_parameters() if p.is_meta]
        if len(missing) == len(list(self.parameters())):
            raise CheckpointError(f"{path_or_id} holds no weight of a {type(self).__name__}: {sorted(state)[:3]} ...")
        for name, parameter in self.named_parameters():
            if parameter.is_meta and name not in others and parameter.numel() > values:
                raise CheckpointError(
                    f"{path_or_id}: {name} is missing, and the configuration gives it the shape "
                    f"{tuple(parameter.shape)}: more values than the whole checkpoint has"
                )
        self.initialize_missing(like=torch.empty(0, dtype=dtype, device=device))
        missing = [name for name in missing if name not in others]
        unused = sorted(set(loaded) - set(own))
        for names, fate in (
            (missing, "missing, initialised at random"),
            (sorted(others), "of another shape in the file, initialised at random"),
            (unused, "not used"),
        ):
            if names:
                logger.warning("%s: weights %s: %s", path_or_id, fate, _summary(names))
        return dict(
            missing_keys=set(missing),
            unexpected_keys=set(unused),
            mismatched_keys=set(others.values()),
            error_msgs=set(),
        )

    def _install(
        self, path_or_id: str | os.PathLike, state: dict[str, torch.Tensor], config: Int4Config | None
    ) -> None:
        """Put a layer with 4-bit weights in the place of each Linear for which there are such, and take them out."""
        modules = dict(self.named_modules())
        for path in [name.removesuffix(".packed") for name in state if _is_packed(name)]:
            linear = modules.get(path)
            if not isinstance(linear, nn.Linear):
                continue  # it will be named as not used
            if config is None:
                raise CheckpointError(f"{path_or_id}: {path} is quantized, but config.json has no quantization_config")
            packed, scale, zero = (state.pop(f"{path}.{part}", None) for part in ("packed", "scale", "zero"))
            if scale is None:
                raise CheckpointError(f"{path_or_id}: {path}.scale is missing beside {path}.packed")
            reason = why_not_int4_weight(linear.out_features, linear.in_features, packed, scale, zero, config)
            if reason is not None:
                raise CheckpointError(f"{path_or_id}: {path}: {reason}")
            self.set_submodule(path, Int4Linear(packed, scale, zero, linear.bias, config))

    def initialize_missing(self, like: torch.Tensor) -> None:
        """Give parameters that are still on the meta device initial values, with the dtype and device of `like`."""
        for module in self.modules():
            held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            lacking = [(name, t) for name, t in held if t.is_meta]
            kept = {name: t.clone() for name, t in held if not t.is_meta}
            for name, t in lacking:
                new = torch.empty(t.shape, dtype=like.dtype, device=like.device)
                setattr(module, name, nn.Parameter(new) if isinstance(t, nn.Parameter) else new)
            if lacking:
                self.initialize(self._initializer_range, [module])
                for name, value in kept.items():
                    getattr(module, name).data.copy_(value)
        self.tie_weights()

    def _mapped(self, state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors under this model's names. Extended by the layouts a class accepts."""
        state = {name: tensor for name, tensor in state.items() if not name.endswith("embeddings.position_ids")}
        return rename_tensors(state, _newer_name)

    @property
    def _initializer_range(self) -> float:
        return self.config.initializer_range

    @directory_aliases
    def save_pretrained(
        self,
        directory: str | os.PathLike,
        *,
        safe_serialization: bool = True,
        max_shard_size: int | str = "5GB",
        deduplicate: bool = False,
        stored_dtype: torch.dtype | str | None = None,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        variant: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write config.json, generation_config.json and the weights; transformers loads them with the same logits.

        Weights in 4 bits are written as they are, which transformers loads after `bertgen.register_with_transformers()`
        (docs/quantization.md has the layout). The files appear together, when all are written.

        Args:
            directory: made where it does not exist; other files in it stay.
            safe_serialization: safetensors; False writes a pickle.
            max_shard_size: bytes, or text such as "5GB"; larger models are split, with an index.
            deduplicate: write weights that encoder and decoder share once. transformers 5 cannot load that.
            stored_dtype: of the tensors in the file; config.json names the model's own, which loading restores.
            is_main_process: False writes nothing: of several processes one writes.
            state_dict: weights to write in place of the model's own, as `accelerator.get_state_dict` gathers them.
            variant: part of the files' names: "fp16" writes `model.fp16.safetensors`.
            push_to_hub: only False.
            options: other arguments of transformers, which change nothing: save_function, token, save_peft_format,
                save_original_format.

        Raises:
            ConfigError: an unknown option, or a `state_dict` without some weight. UnsupportedError: push_to_hub.
        """
        if unknown := options.keys() - {"save_function", "token", "save_peft_format", "save_original_format"}:
            raise ConfigError(f"save_pretrained has no option {', '.join(map(repr, sorted(unknown)))}")
        if check_flag(push_to_hub, "push_to_hub"):
            raise UnsupportedError("push_to_hub=True: huggingface_hub uploads what was saved (hf upload)")
        check_mapping(state_dict, "state_dict", torch.Tensor)
        check_name(variant, "variant")
        if not check_flag(is_main_process, "is_main_process"):
            return
        safe_serialization = check_flag(safe_serialization, "safe_serialization")
        config = self.saved_config()
        tensors, aliases = self._saved_state(check_flag(deduplicate, "deduplicate"))
        if state_dict is not None:
            if missing := tensors.keys() - state_dict.keys():
                raise ConfigError(f"state_dict has no {_summary(sorted(missing))}")
            tensors = {name: state_dict[name] for name in tensors}
        if stored_dtype is not None:
            stored = resolve_dtype(stored_dtype)
            tensors = {k: t.to(stored) if t.is_floating_point() else t for k, t in tensors.items()}
        quantization = self.quantization
        if aliases and deduplicate and quantization is None:
            logger.warning("weights that encoder and decoder share were written once: transformers 5 cannot load them")
        with checkpoint.new_directory(directory) as path:
            values = {**config, "architectures": [type(self).__name__]}
            values["dtype"] = str(self.dtype).removeprefix("torch.")
            values.pop("quantization_config", None)
            if quantization is not None:
                values["quantization_config"] = quantization.to_dict()
            checkpoint.write_json(path / "config.json", values)
            options = self.generation_config.to_dict()
            # An id that is left out is that of config.json (`GenerationConfig.from_model_files`).
            none = {name: None for name, value in special_ids(self.config).items() if value is not None}
            checkpoint.write_json(path / "generation_config.json", none | options)
            checkpoint.save_state(
                path, tensors, safe_serialization=safe_serialization, max_shard_size=max_shard_size, aliases=aliases,
                variant=variant,
            )  # fmt: skip

    def saved_config(self) -> dict[str, Any]:
        """Content of config.json with which the weights that are saved load again.

        Raises:
            ConfigError: the weights are not those that the configuration describes.
        """
        return self.config.to_dict()

    def _saved_state(self, deduplicate: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Tensors to write and, for names left out because an equal one is written, {left out: written}."""
        return self.state_dict(), {}


def weights_digest(model: PretrainedModel) -> str:
    """The digest of a model's names, shapes, dtypes, values and configuration."""

    def one(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.digest()

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing lets other threads run
        parts = pool.map(one, model.state_dict().items())
        return hashlib.sha256(b"".join(parts) + json.dumps(model.config.to_dict(), sort_keys=True).encode()).hexdigest()


def _needs_gradient(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    output.requires_grad_(True)


def _is_packed(name: str) -> bool:
    return name.endswith(".packed")


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are, found without a second tensor of its size."""
    return tensor.numel() == 0 or all(bool(end.isfinite()) for end in tensor.aminmax())


def _newer_name(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _substituted(pattern: str, replacement: str, name: str) -> str:
    try:
        return re.sub(pattern, replacement, name)
    except (re.error, IndexError) as error:
        raise ConfigError(f"key_mapping: {pattern!r} -> {replacement!r} is no regular expression: {error}") from error


def linear_layers(model: PretrainedModel, config: Int4Config) -> list[str]:
    """Names of the layers that a configuration rounds.

    Raises:
        ConfigError: `skip` names no module.
    """
    names = dict(model.named_modules())
    for skipped in config.skip:
        if not any(_is_within(name, skipped) for name in names):
            raise ConfigError(f"skip names {skipped!r}, and no module of a {type(model).__name__} is called so")
    heads = {id(m.decoder) for m in model.modules() if isinstance(m, LMHead)}
    return [
        name
        for name, module in names.items()
        if type(module) is nn.Linear
        and (config.head or id(module) not in heads)
        and not any(_is_within(name, skipped) for skipped in config.skip)
    ]


def _is_within(name: str, part: str) -> bool:
    """Whether a module is, or is in, one of a name; parts of names go from dot to dot."""
    return f".{part}." in f".{name}."


def _rounded(name: str, weight: torch.Tensor, config: Int4Config) -> dict[str, torch.Tensor]:
    try:
        packed, scale, zero = quantize(weight, config)
    except InputError as error:
        raise InputError(f"{name}: {error} (skip= leaves modules as they are)") from None
    return {"packed": packed, "scale": scale} | ({} if zero is None else {"zero": zero})


def _summary(names: list[str]) -> str:
    """Names of weights, those of all layers as one."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return ", ".join(same[0] if len(same) == 1 else f"{kind} ({len(same)})" for kind, same in kinds.items())


def _placed(device: Any, device_map: Any) -> Any:
    """The device that transformers' `device_map` means, where it is given.

    Raises:
        ConfigError: `device` is given as well. UnsupportedError: a model in parts.
    """
    if device_map is None:
        return device
    if device is not None:
        raise ConfigError(f"device={device!r} and device_map={device_map!r} say the same; give one of them")
    if isinstance(device_map, dict):
        places = set(map(str, device_map.values()))
        if len(places) != 1 or places == {"disk"}:
            raise UnsupportedError(f"device_map={device_map!r}: a model is on one device as a whole, and not on disk")
        device_map = next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    return device_map


def resolve_device(device: torch.device | str | int | None) -> torch.device:
    """The device of a name or CUDA index; BackendError where this machine does not have it."""
    if device is None:
        return torch.device("cpu")
    if isinstance(device, str) and device.lstrip("-").isdigit():
        device = int(device)
    if isinstance(device, int) and not isinstance(device, bool):
        if device < 0:  # the convention of pipelines: -1 is the CPU
            return torch.device("cpu")
    try:
        found = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BackendError(f"device {quoted(device)} is not a device; this machine has {_devices()}") from error
    if found.type == "meta":
        raise BackendError("device 'meta' holds no values: a model cannot run there")
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise BackendError(f"device {str(found)!r} was asked for, this machine has {count} CUDA devices")
    elif found.type != "cpu":
        try:
            torch.empty(0, dtype=torch.uint8, device=found)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            problem = f"device {str(found)!r} cannot be used ({str(error).splitlines()[0]})"
            raise BackendError(f"{problem}; this machine has {_devices()}") from error
    return found


def _devices() -> str:
    gpus = [f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *gpus])


def _first_position(path_or_id: str | os.PathLike, hub: dict[str, Any]) -> int:
    """The position at which the checkpoint's texts begin, whatever kind of model will hold its weights."""
    values = read_json(resolve_file(path_or_id, "config.json", hub))
    if values.get("model_type") not in ("bert", "roberta"):
        raise ConfigError(f"fold_embeddings is for a BERT or RoBERTa; {path_or_id} is {values.get('model_type')!r}")
    return half_config(values).first_position


def _check_size(path_or_id: str | os.PathLike, cls: type, config: Any, state: dict[str, torch.Tensor]) -> None:
    """CheckpointError where a configuration asks for more or wider layers than a checkpoint has, before any is made."""
    found = count_layers(state)
    widest = max((side for tensor in state.values() for side in tensor.shape), default=0)
    for half in (config, getattr(config, "encoder", config), getattr(config, "decoder", config)):
        asked = getattr(half, "num_hidden_layers", 0)
        if asked > 0 == found:
            raise CheckpointError(f"{path_or_id} holds no weight of a {cls.__name__}: {sorted(state)[:3]} ...")
        if asked > found:
            raise CheckpointError(
                f"{path_or_id}: the configuration asks for {asked} layers, the weights are of {found}"
            )
        if (width := getattr(half, "hidden_size", 0)) > widest:
            raise CheckpointError(f"{path_or_id}: hidden_size is {width}, no weight has a side of more than {widest}")


def _resolve_dtype(dtype: torch.dtype | str | None, config: Any, state: dict[str, torch.Tensor]) -> torch.dtype:
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        dtype = config.extra.get("dtype") or config.extra.get("torch_dtype")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            return next((t.dtype for t in state.values() if t.dtype in _DTYPES.values()), torch.float32)
    return resolve_dtype(dtype)


def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype of weights that a name or torch's own object means; ConfigError for any other."""
    name = dtype if isinstance(dtype, str) else quoted(dtype)
    found = _DTYPES.get(name.removeprefix("torch."))
    if found is None:
        raise ConfigError(f"dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    return found
