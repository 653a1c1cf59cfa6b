"""
Give `GenerationMixin.generate` the `strategy=` keyword, by one wrapper at class level that can be removed again.

Imports neither torch nor transformers: the wrapper is installed when transformers' generation code is imported, and
what it needs is imported when a strategy is first used.
"""

from __future__ import annotations

import functools
import inspect
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from typing import Any

from hf_itp.errors import ArgumentError, ItpError, ItpWarning
from hf_itp.generation.keywords import KEYWORDS, documentation
from hf_itp.generation.pipelines import PIPELINE_MODULE, unwrap_pipeline, wrap_pipeline
from hf_itp.models.import_hook import ImportHook
from hf_itp.models.origins import record_origins, stop_recording

_GENERATION_MODULE = "transformers.generation.utils"

_wrapping = threading.RLock()
_wrapped: Any = None
"""Class that was wrapped last."""


def enable() -> None:
    """
    Give every model's `generate` the `strategy=` keyword. `import hf_itp` does it, unless `HF_ITP_DISABLE=1`.

    Calling it twice changes nothing. Models made before and after both know the keyword.
    """
    record_origins()
    for hook in _hooks:
        hook.install()
    _wrap(_generation_mixin())
    _wrap_pipeline_if_loaded()


def disable() -> None:
    """
    Restore transformers' own `generate`, and the methods wrapped to record where a model was loaded from.

    Raises:
        `ItpError`: If another package has wrapped `generate` since: undoing ours would undo theirs.
    """
    mixin = _generation_mixin()
    stop_recording()
    if _wraps_ours(mixin.generate) and not _is_ours(mixin.generate):
        raise ItpError(
            "`GenerationMixin.generate` was wrapped by another package after `hf_itp.enable()`, so restoring it would "
            "also undo that wrapper. Undo the other wrapper first."
        )
    # Otherwise a reload of the module would install the wrapper again.
    for hook in _hooks:
        hook.remove()
    if (pipelines := sys.modules.get(PIPELINE_MODULE)) is not None:
        unwrap_pipeline(pipelines.TextGenerationPipeline)
    if _is_ours(mixin.generate):
        mixin.generate = mixin.generate._hf_itp_original


def enable_with_transformers() -> None:
    """Enable now if transformers' generation code is imported, otherwise as soon as it is."""
    record_origins()
    for hook in _hooks:
        hook.install()
    _wrap_if_loaded()
    _wrap_pipeline_if_loaded()


def _generation_mixin() -> Any:
    from transformers import GenerationMixin

    return GenerationMixin


def _wrap(mixin: Any) -> None:
    global _wrapped
    with _wrapping:
        if not _is_ours(mixin.generate):
            mixin.generate = _with_strategy(mixin.generate)
        _wrapped = mixin


def _wrap_if_loaded() -> None:
    # The class is complete once the module has its name, even while the rest of the module still runs. Wrap each class
    # only once: what others put over our wrapper later stays.
    mixin = getattr(sys.modules.get(_GENERATION_MODULE), "GenerationMixin", None)
    if mixin is not None and mixin is not _wrapped:
        _wrap(mixin)


# Another package's finder may come before the hook and find the generation module itself: the next look-up of any
# other module notices it.
_hook = ImportHook([_GENERATION_MODULE], lambda module: _wrap(module.GenerationMixin), on_other=_wrap_if_loaded)


def _wrap_pipeline_if_loaded() -> None:
    kind = getattr(sys.modules.get(PIPELINE_MODULE), "TextGenerationPipeline", None)
    if kind is not None:
        wrap_pipeline(kind)


_hooks = [_hook, ImportHook([PIPELINE_MODULE], lambda module: wrap_pipeline(module.TextGenerationPipeline))]


def _is_ours(generate: Callable) -> bool:
    # `functools.wraps` copies attributes, so a wrapper around ours carries the mark as well: compare the identity.
    return getattr(generate, "_hf_itp_wrapper", None) == id(generate)


def _wraps_ours(generate: Callable | None) -> bool:
    while generate is not None:
        if _is_ours(generate):
            return True
        generate = getattr(generate, "__wrapped__", None)
    return False


def _with_strategy(original: Callable) -> Callable:
    @functools.wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        decoding = kwargs.get("custom_generate")
        if kwargs.get("strategy") is None and not hasattr(decoding, "_hf_itp_decoding"):
            _warn_of_ignored_strategy(kwargs.get("generation_config"))
            if not KEYWORDS.keys().isdisjoint(kwargs):
                kwargs = _without_keywords(self, kwargs)
            return original(self, *args, **kwargs)
        from hf_itp.generation import request
        from hf_itp.generation.streaming import ended_on_failure

        arguments = inspect.signature(original).bind_partial(self, *args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        del arguments["self"]
        streamer = getattr(decoding, "streamer", None)
        with ended_on_failure(arguments.get("streamer") if streamer is None else streamer):
            if kwargs.get("strategy") is None:
                return original(self, **request.arguments_beside_decoding(self, arguments))
            return original(self, **request.arguments_for_original(self, arguments))

    generate._hf_itp_original = original  # type: ignore[attr-defined]
    generate._hf_itp_wrapper = id(generate)  # type: ignore[attr-defined]
    generate.__doc__ = _extended_documentation(original.__doc__)
    generate.__signature__ = _extended_signature(original)  # type: ignore[attr-defined]
    return generate


def _without_keywords(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """
    Return the arguments of a call that has no strategy, except our keywords that are `None`.

    Raises:
        `ArgumentError`: If a keyword of ours has a value that only a strategy could use.
    """
    arguments = dict(arguments)
    arguments.pop("strategy", None)
    if arguments.get("custom_generate") is not None:
        return arguments  # which may have keywords of its own
    for name in KEYWORDS:
        if name not in arguments or _is_known_without_strategy(model, name):
            continue
        if arguments.pop(name) is not None:
            raise ArgumentError(
                f"`{name}` must come with `strategy`, got none: `generate` would draw one plain response and ignore "
                f'`{name}`. Pass strategy="pessimism" or another of `hf_itp.list_strategies()`, or remove `{name}`.'
            )
    return arguments


def _is_known_without_strategy(model: Any, name: str) -> bool:
    """Return whether the model or transformers itself has a keyword of that name."""
    from transformers import GenerationConfig

    if hasattr(GenerationConfig(), name):
        return True
    try:
        model._validate_model_kwargs({name: True})
    except ValueError:
        return False
    return True


def _warn_of_ignored_strategy(config: Any) -> None:
    if hasattr(config, "strategy"):
        warnings.warn(
            "`strategy` in `generation_config` is ignored, so these are plain samples. Pass strategy=... to "
            "`generate`.",
            ItpWarning,
            stacklevel=3,
        )


def _extended_signature(original: Callable) -> inspect.Signature:
    signature = inspect.signature(original)
    known = list(signature.parameters.values())
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=keyword.annotation)
        for name, keyword in KEYWORDS.items()
    ]
    return signature.replace(parameters=[*known[:-1], *added, known[-1]])


def _extended_documentation(own: str | None) -> str | None:
    # Python run with -OO has no docstrings.
    if own is None:
        return None
    before, own_kwargs, after = own.partition("kwargs (`dict[str, Any]`, *optional*):")
    indent = before[before.rfind("\n") + 1 :]
    return before.rstrip(" ") + "\n" + textwrap.indent(documentation(), indent) + indent + own_kwargs + after
