"""
The keywords that `hf_itp` adds to `generate`, each written once: types, default, documentation, command-line help.

The signature and docstring of `generate`, the fields of [`~hf_itp.StrategyDecoding`], the help of the command line and
the page `docs/keywords.md` follow from [`KEYWORDS`]. Imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import re
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
    The documentation of one keyword.

    Args:
        types (`str`): The types it takes, in Markdown.
        text (`str`): What it does, in full sentences.
        default (`Any`, *optional*): Its value unless given.
        help (`str`, *optional*): One line for the command line; without it there is no such option.
    """

    types: str
    text: str
    default: Any = None
    help: str = ""

    @property
    def annotation(self) -> str:
        """The types as the signature of `generate` shows them."""
        return self.types.replace("`", "")


def _keyword(types: str, text: str, default: Any = None, help: str = "") -> Any:
    return dataclasses.field(default=default, metadata={"keyword": Keyword(types, text, default, help)})


@dataclass(kw_only=True)
class Keywords:
    """Every keyword except `strategy` and `reward_model`, as `generate` takes them."""

    num_candidates: int = _keyword(
        "`int`",
        "Responses drawn per prompt, of which `num_return_sequences` are returned.",
        default=16,
        help="Responses drawn per prompt (N).",
    )
    prompts: Sequence[Prompt] | None = _keyword(
        "`list[str]` or `list[list[dict]]`",
        "The prompts as the reward sees them: one text or chat per input row. Defaults to the decoded input.",
    )
    reward_kwargs: Mapping[str, Sequence] | None = _keyword(
        "`dict[str, list]`",
        "Data columns for the reward, by name, with one entry per input row. A function "
        '`f(prompts, completions, solution, **kwargs)` gets `reward_kwargs={"solution": [...]}`.',
    )
    reward_view: str = _keyword(
        "`str`",
        'What the reward reads of a response: `"full"` is all of it; `"final"` is what a reasoning model says after '
        "its thinking. With the latter a response cut off while thinking has no reward, so it is never selected.",
        default="full",
        help="What the reward reads of a response: full, or final, without a reasoning model's thinking.",
    )
    seed: int | None = _keyword(
        "`int`",
        "The same seed gives the same candidates for a prompt, whatever else is in the batch. Defaults to one drawn "
        "from torch's global generator.",
        help="The same seed gives the same candidates for a prompt.",
    )
    batch_size: int | None = _keyword(
        "`int`",
        "Maximum candidates decoded at once. Defaults to what fits in half of the free memory.",
        help="Maximum candidates decoded at once. Default: what fits in memory.",
    )
    progress: bool | None = _keyword(
        "`bool`", "Show progress bars. By default only on calls longer than 5 seconds, in a terminal."
    )
    early_rejection: float | EarlyRejection | None = _keyword(  # noqa: RUF009
        "`float` or [`~hf_itp.EarlyRejection`]",
        'For `"best_of_n"`: stop this share of a prompt\'s candidates every 32 tokens, those with the lowest rewards '
        "so far. Saves tokens, but no longer follows best-of-n's law: `EarlyRejection(audit=...)` measures how often "
        "the winner differs.",
        help="For best_of_n: stop this share of the unfinished candidates every 32 tokens, e.g. 0.5.",
    )
    shard: str | None = _keyword(
        "`str`",
        'Under `accelerate launch`: `"candidates"` splits each prompt\'s candidates over the processes, `"prompts"` '
        "the batch. Every process passes the whole batch and gets all winners.",
    )


KEYWORDS: dict[str, Keyword] = {
    "strategy": Keyword(
        "`str` or [`~hf_itp.Strategy`]",
        "What selects the responses to return: a registered name (`hf_itp.list_strategies()`), a strategy object, or "
        '`"auto"` for what the checkpoint recommends. A strategy\'s own fields (`beta`, ...) are keywords too. '
        "Without `strategy`, transformers' own `generate` runs unchanged.",
        help="What selects the responses to return; hf-itp strategies lists them.",
    ),
    "reward_model": Keyword(
        "`str`, `PreTrainedModel`, [`~hf_itp.RewardFunction`], `Callable` or a list of these",
        "What scores the candidates: a Hub id or folder, a model, or `f(prompts, completions, **kwargs)` returning "
        "one float per completion. A list is an ensemble.",
        help="Reward model that scores: Hub id, local folder, or 'embedded'.",
    ),
    **{field.name: field.metadata["keyword"] for field in dataclasses.fields(Keywords)},
}
"""Every keyword by name, in the order of the documentation."""


def documentation() -> str:
    """Return the keywords as a group of arguments for the docstring of `generate`."""
    entries = ["> Parameters that `hf_itp` adds: draw candidates, score them, select\n"]
    for name, keyword in KEYWORDS.items():
        default = "" if keyword.default is None else f", defaults to {keyword.default!r}"
        text = textwrap.fill(keyword.text, width=115, initial_indent="    ", subsequent_indent="    ")
        entries.append(f"{name} ({keyword.types}, *optional*{default}):\n{text}")
    return "\n".join(entries) + "\n"


def page() -> str:
    """Return the page `docs/keywords.md`, which `make docs` writes."""
    rows = []
    for name, keyword in KEYWORDS.items():
        types, default = _LINK.sub(r"`\1`", keyword.types), "" if keyword.default is None else f"`{keyword.default}`"
        rows.append(f"| `{name}` | {types} | {default} | {keyword.text} |")
    return "\n".join([_PAGE, *rows, ""])


_LINK = re.compile(r"\[`~([\w.]+)`\]")  # of transformers' own documentation
_PAGE = """\
# Keywords of `generate`

<!-- Written by `make docs` from hf_itp/generation/keywords.py. -->

What `hf_itp` adds to `generate`. `num_return_sequences`, `max_new_tokens`, `temperature` and all others are
transformers' own. See also [which reward models load](reward_models.md), [how candidates are drawn](drawing.md) and
[many processes](distributed.md).

| keyword | type | default | meaning |
|---|---|---|---|"""
