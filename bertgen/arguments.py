"""Arguments of transformers' `from_pretrained`, old ones too: what each of them means here."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .errors import UnsupportedError

logger = logging.getLogger(__name__)

# Arguments that change nothing here, and why.
IGNORED = {
    **dict.fromkeys(
        ("low_cpu_mem_usage", "_fast_init", "disable_mmap"), "weights are always read one by one, into no second model"
    ),
    **dict.fromkeys(("offload_folder", "offload_state_dict", "offload_buffers"), "a model is on one device as a whole"),
    **dict.fromkeys(
        ("attn_implementation", "experts_implementation", "use_kernels", "kernel_config", "allow_all_kernels"),
        "operators are chosen call by call (BERTGEN_BACKEND)",
    ),
    **dict.fromkeys(("trust_remote_code", "code_revision"), "code of a repository is never run"),
    "weights_only": "pickles are read without running code, always",
    **dict.fromkeys(("resume_download", "mirror"), "huggingface_hub knows no such option any more"),
    **dict.fromkeys(
        ("user_agent", "tqdm_class", "_from_auto", "_from_pipeline", "_commit_hash"), "it is about the download only"
    ),
    **dict.fromkeys(("from_tf", "from_flax"), "weights of PyTorch are what is looked for"),
}
# Arguments that ask for something which is not done here, unless they are off, and why not.
REFUSED = {
    **dict.fromkeys(
        ("tp_plan", "tp_size", "device_mesh", "distributed_config", "max_memory"),
        "a model is on one device as a whole; device_map= or device= says on which",
    ),
    "gguf_file": "weights are read from safetensors and pickles",
    "proxies": "huggingface_hub takes them from the environment (HTTPS_PROXY)",
    **dict.fromkeys(("adapter_kwargs", "adapter_name"), "adapters are loaded by peft, into a model that is there"),
    "fusion_config": "layers are fused as they run",
}
_OFF: tuple[Any, ...] = (None, False, "", "default", {}, ())


_Function = TypeVar("_Function", bound=Callable[..., Any])


def also_called(own: str, *names: str) -> Callable[[_Function], _Function]:
    """Let callers give the argument `own` by other names, those that transformers has for it."""

    def decorated(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            for name in names:
                if name in named and own not in named:
                    named[own] = named.pop(name)
            return function(*arguments, **named)

        return cast("_Function", call)

    return decorated


# A model's place as transformers calls it, and the folder to save into.
by_its_place = also_called("path_or_id", "pretrained_model_name_or_path", "pretrained_model_name")
into_its_folder = also_called("directory", "save_directory")


def settled(options: dict[str, Any]) -> dict[str, Any]:
    """`options` without the arguments of transformers that change nothing; each is noted once, at debug level.

    Raises:
        UnsupportedError: an argument of transformers that would change something, and is not supported.
    """
    kept: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("from_tf", "from_flax") and value:
            raise UnsupportedError(f"{name}={value!r}: {IGNORED[name]}")
        if name in IGNORED:
            _note(name)
        elif name not in REFUSED:
            kept[name] = value
        elif not any(type(value) is type(off) and value == off for off in _OFF):
            raise UnsupportedError(f"{name}={value!r} is not supported: {REFUSED[name]}")
    return kept


def older(options: dict[str, Any], name: str, value: Any) -> Any:
    """What an argument is, given as `value` or in `options` under its older name, which is taken out of them."""
    former = options.pop(name, None)
    return former if value is None else value


@functools.cache
def _note(name: str) -> None:
    logger.debug("%s changes nothing: %s", name, IGNORED[name])
