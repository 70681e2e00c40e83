"""PretrainedModel: base of the models."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn

from .. import checkpoint
from ..arguments import directory_aliases, path_aliases, supported_options, value_or_alias
from ..config import BitsAndBytesConfig, GenerationConfig, Int4Config, int4_config, special_ids
from ..config.validators import check_flag, check_mapping, check_name
from ..errors import ConfigError, UnsupportedError, quoted
from ..hub import resolve_file, split_hub_options
from ..layers.linear import Int4Linear
from ..layers.meta_init import init_empty_weights
from ..layers.stack import Stack
from ..quantization.bitsandbytes import from_bitsandbytes
from .devices import device_of_map, resolve_device
from .dtypes import checkpoint_dtype, resolve_dtype
from .initialization import initialize_meta_parameters, initialize_modules
from .loading import check_size, current_name, first_position, load_weights, rename_keys, summarize_names
from .state_dict import fold_token_types, rename_tensors

logger = logging.getLogger(__name__)


class PretrainedModel(nn.Module):
    """Base of the models: `from_pretrained`, `save_pretrained`, tied weights, device and dtype."""

    config_class: ClassVar[Any]
    arguments: ClassVar[tuple[str, ...]] = ()  # of the constructor, besides the configuration
    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True
    name_or_path: str = ""  # where the model was loaded from

    config: Any
    _generation_config: GenerationConfig
    _require_grads_hooks: list[Any]
    _copied_ids: dict[str, Any]  # special ids of `config` when they were last copied to `_generation_config`

    @property
    def generation_config(self) -> Any:
        """How the model generates (`GenerationConfig`).

        A special id that was set on `config` after construction (`model.config.eos_token_id = 102`) is copied, unless
        this configuration had another id than `config` before.
        """
        ids, generation_config = special_ids(self.config), self._generation_config
        for name, value in ids.items():
            if value != self._copied_ids[name] == getattr(generation_config, name):
                setattr(generation_config, name, value)
        self._copied_ids = ids
        return generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        config = GenerationConfig.of_argument(value)
        if config is None:
            raise ConfigError("generation_config must be a GenerationConfig or a dict of options, got None")
        self._generation_config, self._copied_ids = config, special_ids(self.config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled model; in pickles of earlier commits `_copied_ids` has the name `_noted_ids`."""
        if "_noted_ids" in state:
            state = {name: value for name, value in state.items() if name != "_noted_ids"} | {
                "_copied_ids": state["_noted_ids"]
            }
        super().__setstate__(state)

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the parameters."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Number of parameters. Tied weights count once; weights in 4 bits count, their scales do not.

        Args:
            only_trainable: only those with `requires_grad`. exclude_embeddings: without embedding tables.
        """
        excluded = {id(p) for m in self.modules() if isinstance(m, Int4Linear) for p in (m.scale, m.zero)}
        if exclude_embeddings:
            excluded |= {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        counted = [p for p in self.parameters() if id(p) not in excluded and (p.requires_grad or not only_trainable)]
        return sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in counted)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters and, with `return_buffers`, of the buffers."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(t.numel() * t.element_size() for t in tensors)

    def can_generate(self) -> bool:
        """Whether there is a `generate`."""
        return hasattr(self, "generate")

    @property
    def base_model(self) -> Any:
        """The stack without its head; the model itself where it has none."""
        return self

    @property
    def quantization(self) -> Int4Config | None:
        """The format of the weights in 4 bits; None without such weights.

        Raises:
            UnsupportedError: the weights have different formats.
        """
        formats = {module.config for module in self.modules() if isinstance(module, Int4Linear)}
        if len(formats) > 1:
            raise UnsupportedError(
                f"one model has weights in one format, these are in {len(formats)}: {sorted(map(str, formats))}"
            )
        return next(iter(formats), None)

    def dequantize(self) -> Any:
        """Turn weights in 4 bits into floats of the same values, in place.

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
        """Make tied names hold the same Parameter, as the configuration ties them."""

    def initialize(self, std: float, modules: Iterable[nn.Module]) -> None:
        """Set the parameters of modules to initial values, see `initialize_modules`."""
        initialize_modules(modules, std)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Save memory in training: keep the inputs of layers only, and recompute the rest in the backward pass.

        Args:
            gradient_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`; use_reentrant is False by default.
        """
        options = {} if gradient_checkpointing_kwargs is None else gradient_checkpointing_kwargs
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            raise ConfigError(f"gradient_checkpointing_kwargs must be a dict of options, got {quoted(options)}")
        self._set_recompute({"use_reentrant": False, **options})

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        self._set_recompute(None)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any stack recomputes its layers."""
        return any(m.recompute is not None for m in self.modules() if isinstance(m, Stack))

    def set_attn_implementation(self, attn_implementation: Any) -> None:
        """Check and ignore the argument, as `from_pretrained`: each call chooses its operators."""
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
        """`gradient_checkpointing_enable`; UnsupportedError for other values of every_n_layers and offload."""
        if every_n_layers != 1 or offload:
            raise UnsupportedError(f"every_n_layers={every_n_layers}, offload={offload}: supported are 1 and False")
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def enable_input_require_grads(self) -> None:
        """Let the outputs of embedding tables require a gradient, for adapters with gradient checkpointing."""
        self.disable_input_require_grads()
        models = [m for m in self.modules() if isinstance(m, PretrainedModel)]
        tables = {id(m.get_input_embeddings()): m.get_input_embeddings() for m in models}
        self._require_grads_hooks = [t.register_forward_hook(_require_output_grad) for t in tables.values()]

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        for hook in getattr(self, "_require_grads_hooks", ()):
            hook.remove()
        self._require_grads_hooks = []

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding table of the input tokens."""
        raise NotImplementedError

    def _set_recompute(self, options: dict[str, Any] | None) -> None:
        for module in self.modules():
            if isinstance(module, Stack):
                module.recompute = options

    @classmethod
    @path_aliases
    @torch.inference_mode(False)  # parameters made in inference mode could not be trained
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
            path_or_id: a directory, a hub id, or "demo" for the model that ships with the package. None with `config`
                and `state_dict`.
            config: a configuration object of bertgen or transformers, or the directory, hub id or file of one; in place
                of the checkpoint's.
            dtype: torch.float32, float16, bfloat16 or float64 (or its name). "auto" and None take the one of
                config.json, else that of the stored weights. torch_dtype is its older name.
            device: "cpu", "cuda", "cuda:1" or a CUDA index; None is the CPU. device_map is transformers' name: "auto"
                is the first GPU, else the CPU; a dict must have one device only.
            revision, cache_dir, token, local_files_only, force_download, subfolder: as in
                `huggingface_hub.hf_hub_download`.
            fold_embeddings: for a bert-generation half that is loaded from a BERT or RoBERTa: add the first row of its
                token types to the positions, and drop RoBERTa's rows for padding, so that the embeddings are those
                the weights were trained with. transformers drops the token types.
            quantization_config: an `Int4Config`, or a `BitsAndBytesConfig` of ours or of transformers, to hold the
                weights of linear layers in 4 bits. They are quantized one by one, to save memory. Not for a checkpoint
                with weights in 4 bits. load_in_4bit=True is short for one.
            use_safetensors: True reads safetensors only, False pickles only.
            variant: part of the files' names: "fp16" reads `model.fp16.safetensors`.
            state_dict: weights to use in place of the files'.
            key_mapping: regular expression -> replacement, for the names of weights in the file.
            ignore_mismatched_sizes: weights with another shape in the file are initialised at random.
            output_loading_info: return the model and a dict of sets: missing_keys, unexpected_keys, mismatched_keys
                (name, shape in the file, shape here), error_msgs.
            generation_config: in place of the file's.
            overrides: options of the configuration, arguments of the class, and gradient_checkpointing. Arguments of
                transformers without an effect here are accepted, see `bertgen.arguments`.

        Raises:
            CheckpointError: files that are missing, corrupt, or do not fit the configuration.
            ConfigError: an unknown option or dtype. BackendError: a device that is not there.
            UnsupportedError: an argument of transformers that has an effect there and is not supported.
        """
        overrides, hub = split_hub_options(
            dict(overrides, revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
        )
        target = resolve_device(device_of_map(device, overrides.pop("device_map", None)))
        dtype = value_or_alias(dtype, overrides, "torch_dtype")
        load_in = {name: overrides.pop(name) for name in ("load_in_4bit", "load_in_8bit") if name in overrides}
        if any(load_in.values()):
            if quantization_config is not None:
                raise ConfigError(f"{' and '.join(load_in)} is short for a quantization_config: pass one of them")
            quantization_config = BitsAndBytesConfig(**load_in)
        arguments = {name: overrides.pop(name) for name in cls.arguments if name in overrides}
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
            raise ConfigError(f"options {sorted(overrides)} were passed together with a config object: set them on it")
        requested_format = None if quantization_config is None else int4_config(quantization_config)
        stored = config.extra.get("quantization_config")
        stored_format = None if stored is None else int4_config(stored)
        if requested_format is not None and stored_format is not None:
            raise ConfigError(
                f"{path_or_id} is quantized already ({stored_format.format}): quantization_config must be None"
            )
        if state_dict is not None:
            state = dict(state_dict)
        elif path_or_id is None:
            raise ConfigError("from_pretrained needs a directory or a hub id, or a config and a state_dict")
        else:
            state = checkpoint.load_state(path_or_id, use_safetensors=use_safetensors, variant=variant, hub=hub)
        state = rename_keys(state, key_mapping)
        if stored_format is not None and stored.get("quant_method") == "bitsandbytes":
            state = from_bitsandbytes(state, stored_format.format)
        if fold_embeddings:
            state, rows = fold_token_types(state, first_position(path_or_id, hub))
            config.max_position_embeddings = rows
        resolved_dtype = checkpoint_dtype(dtype, config, state)
        if not ignore_mismatched_sizes:
            check_size(path_or_id, cls, config, state)
        with init_empty_weights():
            model = cls(config, **arguments)
        model.name_or_path = "" if path_or_id is None else str(path_or_id)
        values = sum(tensor.numel() for tensor in state.values())
        loading_info = load_weights(
            model, path_or_id, model._mapped(state, set(model.state_dict())), values, target, resolved_dtype,
            stored_format, requested_format, ignore_mismatched_sizes,
        )  # fmt: skip
        file = None
        if generation_config is not None:
            model.generation_config = generation_config
        elif path_or_id is not None:
            file = resolve_file(path_or_id, "generation_config.json", hub, required=False)
        if file is not None:
            model.generation_config = GenerationConfig.from_model_files(file, config)
        if recompute is not None:
            switch = model.gradient_checkpointing_enable if recompute else model.gradient_checkpointing_disable
            switch()
        model.eval()
        return (model, loading_info) if output_loading_info else model

    def initialize_missing(self, like: torch.Tensor) -> None:
        """Initialize parameters on the meta device, with the dtype and device of `like`."""
        for module in self.modules():
            initialize_meta_parameters(module, self._initializer_range, like)
        self.tie_weights()

    def _mapped(self, state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
        """The tensors of a checkpoint under the names of this model, `own`; subclasses add their layouts."""
        state = {name: tensor for name, tensor in state.items() if not name.endswith("embeddings.position_ids")}
        return rename_tensors(state, current_name)

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

        Weights in 4 bits are written as they are; transformers loads them after
        `bertgen.register_with_transformers()` (docs/quantization.md has the layout). The files appear together, when
        all are written.

        Args:
            directory: created if needed; other files in it stay.
            safe_serialization: safetensors; False writes a pickle.
            max_shard_size: bytes, or text such as "5GB"; larger models are split, with an index.
            deduplicate: write weights that encoder and decoder share once. transformers 5 cannot load such files.
            stored_dtype: of the tensors in the file; config.json has the model's dtype, which loading restores.
            is_main_process: False writes nothing, for all but one of several processes.
            state_dict: weights to write in place of the model's own, as `accelerator.get_state_dict` gathers them.
            variant: part of the files' names: "fp16" writes `model.fp16.safetensors`.
            push_to_hub: only False.
            options: other arguments of transformers, without an effect: save_function, token, save_peft_format,
                save_original_format.

        Raises:
            ConfigError: an unknown option, or a `state_dict` without some weight. UnsupportedError: push_to_hub.
        """
        if unknown := options.keys() - {"save_function", "token", "save_peft_format", "save_original_format"}:
            raise ConfigError(f"save_pretrained has no option {', '.join(map(repr, sorted(unknown)))}")
        if check_flag(push_to_hub, "push_to_hub"):
            raise UnsupportedError("push_to_hub=True: upload the saved directory with huggingface_hub (hf upload)")
        check_mapping(state_dict, "state_dict", torch.Tensor)
        check_name(variant, "variant")
        if not check_flag(is_main_process, "is_main_process"):
            return
        safe_serialization = check_flag(safe_serialization, "safe_serialization")
        config = self.saved_config()
        tensors, aliases = self._saved_state(check_flag(deduplicate, "deduplicate"))
        if state_dict is not None:
            if missing := tensors.keys() - state_dict.keys():
                raise ConfigError(f"state_dict has no {summarize_names(sorted(missing))}")
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
            # Without null a missing id would be that of config.json (`GenerationConfig.from_model_files`).
            none = {name: None for name, value in special_ids(self.config).items() if value is not None}
            checkpoint.write_json(path / "generation_config.json", none | options)
            checkpoint.save_state(
                path, tensors, safe_serialization=safe_serialization, max_shard_size=max_shard_size, aliases=aliases,
                variant=variant,
            )  # fmt: skip

    def saved_config(self) -> dict[str, Any]:
        """Content of config.json that describes the saved weights.

        Raises:
            ConfigError: the weights do not have the sizes of the configuration.
        """
        return self.config.to_dict()

    def _saved_state(self, deduplicate: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """The tensors to write, and the names that are not written as they share a tensor: {name: written name}."""
        return self.state_dict(), {}


def _require_output_grad(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
    output.requires_grad_(True)
