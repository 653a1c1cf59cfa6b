"""
The keywords that a strategy adds to `generate`, each once: its type, its default and what it does.

From the fields of [`Keywords`] follow the signature and the documentation of `generate`, the fields of
[`StrategyDecoding`], the help of the command line and the table in `docs/keywords.md`. Imports neither torch nor
transformers.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_itp.generation.early_rejection import EarlyRejection
    from hf_itp.rewards.base import Prompt


@dataclass(frozen=True)
class Keyword:
    """
    One keyword as its documentation shows it.

    Args:
        types (`str`): The types it takes, in Markdown.
        text (`str`): What it does, in full sentences.
        default (`Any`, *optional*): What holds where nobody passes it.
        help (`str`, *optional*): What it does, in one line of the command line.
    """

    types: str
    text: str
    default: Any = None
    help: str = ""

    @property
    def annotation(self) -> str:
        return self.types.replace("`", "")

    def documented(self, name: str) -> str:
        """The entry of a docstring."""
        default = "" if self.default is None else f", defaults to {self.default!r}"
        text = textwrap.fill(self.text, width=115, initial_indent="    ", subsequent_indent="    ")
        return f"{name} ({self.types}, *optional*{default}):\n{text}\n"


def _keyword(types: str, text: str, default: Any = None, help: str = "") -> Any:
    keyword = Keyword(types, text, default, help)
    return dataclasses.field(default=default, metadata={"keyword": keyword})


@dataclass(kw_only=True)
class Keywords:
    """Every keyword but `strategy` and `reward_model`, as `generate` takes them."""

    num_candidates: int = _keyword(
        "`int`",
        "Responses drawn per prompt. `num_return_sequences` of them are returned.",
        default=16,
        help="Responses drawn per prompt (N).",
    )
    prompts: Sequence[Prompt] | None = _keyword(
        "`list[str]` or `list[list[dict]]`",
        "What the reward is to see, one text or chat per input row. Defaults to the decoded input.",
    )
    reward_kwargs: Mapping[str, Sequence] | None = _keyword(
        "`dict[str, list]`",
        "Columns of the data for the reward, by name, each with one entry per input row: a function "
        '`f(prompts, completions, solution, **kwargs)` gets `reward_kwargs={"solution": [...]}`.',
    )
    seed: int | None = _keyword(
        "`int`",
        "Makes the candidates of a prompt a function of it, whatever else is in the batch. Without it one is taken "
        "from torch's global generator.",
        help="The same seed gives the same candidates for a prompt.",
    )
    batch_size: int | None = _keyword(
        "`int`",
        "Most candidates decoded at once, the others following as these end. Defaults to what half of the free memory "
        "holds.",
        help="Most candidates decoded at once. Default: what memory allows, one prompt at a time.",
    )
    progress: bool | None = _keyword("`bool`", "Progress bars always or never. Defaults to long calls.")
    early_rejection: float | EarlyRejection | None = _keyword(  # noqa: RUF009
        "`float` or [`~hf_itp.EarlyRejection`]",
        'For `"best_of_n"`: the share of a prompt\'s candidates that is given up every 32 tokens, those of lowest '
        "reward so far. No longer best-of-n's law; `EarlyRejection(audit=True)` says how often the winner differs.",
        help="best_of_n: score unfinished responses and stop this share of them, such as 0.5.",
    )
    shard: str | None = _keyword(
        "`str`",
        'Under `accelerate launch`: `"candidates"` splits each prompt\'s candidates over the processes, `"prompts"` '
        "the batch. Every process passes the whole batch and gets all winners.",
    )


KEYWORDS: dict[str, Keyword] = {
    "strategy": Keyword(
        "`str` or [`~hf_itp.Strategy`]",
        'Name of a registered strategy (`"best_of_n"`, `"pessimism"`, ...; see `hf_itp.list_strategies()`), a '
        'strategy object, or `"auto"` for what the checkpoint recommends. Its own fields (`beta`, ...) are keywords '
        "too. Without it `generate` is transformers' own, untouched.",
        help="What picks; see hf-itp strategies. Default: what the policy recommends (auto), else pessimism.",
    ),
    "reward_model": Keyword(
        "`str`, `PreTrainedModel`, [`~hf_itp.RewardFunction`], `Callable` or a list of these",
        "What scores the candidates: a Hub id or folder, a model, or `f(prompts, completions, **kwargs)` returning "
        "one float per completion. A list is an ensemble.",
        help="Reward model that scores: Hub id, local folder, or 'embedded'. Several form an ensemble (their mean).",
    ),
    **{field.name: field.metadata["keyword"] for field in dataclasses.fields(Keywords)},
}
"""Every keyword by name, in the order of the documentation."""


def documentation() -> str:
    """The keywords as part of the docstring of `generate`."""
    entries = "".join(keyword.documented(name) for name, keyword in KEYWORDS.items())
    return f"\n> Parameters that `hf_itp` adds: draw candidates, score them, select\n\n{entries}"
