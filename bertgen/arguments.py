"""Arguments of transformers' `from_pretrained`, of older versions too, and their effect in bertgen."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .errors import UnsupportedError

logger = logging.getLogger(__name__)

# Arguments without an effect -> the reason.
IGNORED = {
    **dict.fromkeys(
        ("low_cpu_mem_usage", "_fast_init", "disable_mmap"), "weights are always read one by one, into one model"
    ),
    **dict.fromkeys(("offload_folder", "offload_state_dict", "offload_buffers"), "a model is on one device as a whole"),
    **dict.fromkeys(
        ("attn_implementation", "experts_implementation", "use_kernels", "kernel_config", "allow_all_kernels"),
        "operators are chosen in each call (BERTGEN_BACKEND)",
    ),
    **dict.fromkeys(("trust_remote_code", "code_revision"), "code of a repository is never run"),
    "weights_only": "pickles are always read without running code",
    **dict.fromkeys(("resume_download", "mirror"), "huggingface_hub no longer has this option"),
    **dict.fromkeys(
        ("user_agent", "tqdm_class", "_from_auto", "_from_pipeline", "_commit_hash"), "it affects the download only"
    ),
    **dict.fromkeys(("from_tf", "from_flax"), "only weights of PyTorch are read"),
}
# Arguments that raise an error unless they are switched off -> the reason, or what to use instead.
UNSUPPORTED = {
    **dict.fromkeys(
        ("tp_plan", "tp_size", "device_mesh", "distributed_config", "max_memory"),
        "a model is on one device as a whole; device_map= or device= sets it",
    ),
    "gguf_file": "weights are read from safetensors and pickles",
    "proxies": "huggingface_hub takes them from the environment (HTTPS_PROXY)",
    **dict.fromkeys(("adapter_kwargs", "adapter_name"), "peft loads adapters into a loaded model"),
    "fusion_config": "layers are fused as they run",
}
_OFF_VALUES: tuple[Any, ...] = (None, False, "", "default", {}, ())


_Function = TypeVar("_Function", bound=Callable[..., Any])


def with_aliases(name: str, *aliases: str) -> Callable[[_Function], _Function]:
    """Decorator: the argument `name` may also be passed by the names it has in transformers."""

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for alias in aliases:
                if alias in kwargs and name not in kwargs:
                    kwargs[name] = kwargs.pop(alias)
            return function(*args, **kwargs)

        return cast("_Function", call)

    return decorate


# Decorators for transformers' names of the path of a model and of the directory to save it into.
path_aliases = with_aliases("path_or_id", "pretrained_model_name_or_path", "pretrained_model_name")
directory_aliases = with_aliases("directory", "save_directory")
# The decorator for the name that a cache has in transformers from 5.24 on.
cache_alias = with_aliases("past_key_values", "cache")


def supported_options(options: dict[str, Any]) -> dict[str, Any]:
    """`options` without the arguments of transformers that have no effect; each is logged once, at debug level.

    Raises:
        UnsupportedError: an argument of transformers that would have an effect and is not supported.
    """
    supported: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("from_tf", "from_flax") and value:
            raise UnsupportedError(f"{name}={value!r}: {IGNORED[name]}")
        if name in IGNORED:
            _log_ignored(name)
        elif name not in UNSUPPORTED:
            supported[name] = value
        elif not any(type(value) is type(off) and value == off for off in _OFF_VALUES):
            raise UnsupportedError(f"{name}={value!r} is not supported: {UNSUPPORTED[name]}")
    return supported


def value_or_alias(value: Any, options: dict[str, Any], alias: str) -> Any:
    """`value`, or if it is None the option `alias`, which is removed from `options`."""
    aliased = options.pop(alias, None)
    return aliased if value is None else value


@functools.cache
def _log_ignored(name: str) -> None:
    logger.debug("%s changes nothing: %s", name, IGNORED[name])
