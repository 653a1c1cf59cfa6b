"""
Answer the prompts of a command, many to a call: what fails for one prompt does not lose the others, and no result
depends on how many prompts share a call.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_itp.cli.records import finite, record_of
from hf_itp.errors import ArgumentError, ItpError
from hf_itp.pools.schema import Row

if TYPE_CHECKING:
    from hf_itp.policies.policy import Policy
    from hf_itp.pools.journal import Journal
    from hf_itp.rewards.base import Prompt

# With this many failures and no success it is the command that is wrong, not a prompt.
_HOPELESS = 3
# Seconds between two lines of progress where nobody watches, as in the log of a night.
_SECONDS_IN_A_LOG = 30
_PREFIX = "input_"

Answer = Row | Exception


class Answers:
    """
    The answers to a list of prompts.

    Args:
        policy ([`Policy`]): Draws.
        prompts (`list`): What it is asked, all texts or all chats.
        columns (`dict[str, list]`): Further columns of the prompts' rows, which the records repeat.
        reward_columns (`dict[str, list]`): Those that go to the reward.
        template_arguments (`list[dict]`): Arguments of the chat template, for each prompt.
        seed (`int`): Seed of the draw. A prompt that comes again is drawn for again.
        all_candidates (`bool`): Whether records hold every candidate.
        arguments (`dict`): Keywords of `generate`.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]],
        reward_columns: Mapping[str, Sequence[Any]],
        template_arguments: Sequence[Mapping[str, Any]],
        seed: int,
        all_candidates: bool,
        arguments: Mapping[str, Any],
    ):
        from hf_itp.prompts import prompt_fingerprint

        self._policy, self._prompts, self._reward_columns = policy, prompts, reward_columns
        self._template_arguments = template_arguments
        self._columns = echoed(columns)
        self._seed, self._all_candidates, self._arguments = seed, all_candidates, dict(arguments)
        seen: Counter[str] = Counter()
        self._repeats = []
        for prompt, arguments in zip(prompts, template_arguments, strict=True):
            asked = prompt_fingerprint(prompt) + json.dumps(arguments, sort_keys=True, default=str)
            self._repeats.append(seen[asked])
            seen[asked] += 1

    def __len__(self) -> int:
        return len(self._prompts)

    def of_all(self, per_call: int, done: Collection[int] = ()) -> Iterator[dict[int, Answer]]:
        """
        Return the records of the prompts that are not `done`, by their number, call by call: the exception where one
        failed. A call that was done in part is made again as a whole, so that its rounding is the same.

        Raises:
            `Exception`: The first failure, if nothing but failures has come.
        """
        failed: dict[int, Answer] = {}
        most, any_good = min(_HOPELESS, len(self) - len(done)), False
        for start in range(0, len(self), per_call):
            places = range(start, min(start + per_call, len(self)))
            if all(place in done for place in places):
                continue
            found = self._drawn(places)
            answers = {place: found[place] for place in places if place not in done}
            any_good = any_good or any(not isinstance(answer, Exception) for answer in answers.values())
            failed |= answers
            if any_good:
                yield failed
                failed = {}
            elif len(failed) >= most:
                first = next(iter(failed.values()))
                assert isinstance(first, Exception)
                raise first
        if failed:
            yield failed

    def failure(self, place: int, error: Exception) -> Row:
        """Return the record of a prompt that failed."""
        message = str(error) if isinstance(error, ItpError) else f"{type(error).__name__}: {error}"
        return {**self._row(place), "prompt": self._prompts[place], "error": message}

    def _row(self, place: int) -> Row:
        return {name: column[place] for name, column in self._columns.items()}

    def _drawn(self, places: Sequence[int]) -> dict[int, Answer]:
        # Prompts of one call that are equal would have other streams of random numbers than in calls of their own.
        found: dict[int, Answer] = {}
        for repeat in sorted({self._repeats[place] for place in places}):
            found |= self._drawn_at_once([place for place in places if self._repeats[place] == repeat], repeat)
        return found

    def _drawn_at_once(self, places: Sequence[int], repeat: int) -> dict[int, Answer]:
        from hf_itp.sampling.streams import derived_seed
        from hf_itp.sampling.text import ResponseReader

        columns = {name: [column[place] for place in places] for name, column in self._reward_columns.items()}
        try:
            output = self._policy.generate(
                [self._prompts[place] for place in places],
                chat_template_kwargs=[self._template_arguments[place] for place in places],
                seed=self._seed if repeat == 0 else derived_seed(self._seed, f"repeat {repeat}"),
                **self._arguments,
                reward_kwargs=columns or None,
            )
            records: dict[int, Answer] = {}
            for row, place in enumerate(places):
                read = ResponseReader(self._policy.tokenizer, output.prompt_ids[row])
                record = record_of(output, row, self._prompts[place], read, all_candidates=self._all_candidates)
                records[place] = self._row(place) | record
            return records
        except Exception as error:
            if len(places) == 1:
                return {places[0]: error}
        # One of them failed: each by itself, outside of the `except` block, which would keep its tensors.
        return {place: found for one in places for place, found in self._drawn_at_once([one], repeat).items()}


def echoed(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """
    Return columns of the input under the names that they have in the output: `input_NAME` where we have a column NAME.

    Raises:
        `ArgumentError`: If the input has that name as well.

    Examples:

    ```python
    >>> echoed({"id": [1], "rewards": [2]})
    {'id': [1], 'input_rewards': [2]}

    ```
    """
    named = {f"{_PREFIX}{name}" if name in OWN else name: column for name, column in columns.items()}
    if len(named) < len(columns):
        taken = next(name for name in columns if name in OWN and f"{_PREFIX}{name}" in columns)
        raise ArgumentError(
            f"`--file` must not have both of the columns `{taken}` and `{_PREFIX}{taken}`, got both: the output has a "
            f"`{taken}` of its own, so the input's is written as `{_PREFIX}{taken}`. Rename one of them."
        )
    return named


OWN = frozenset(
    {"index", "prompt", "responses", "rewards", "probabilities", "finish_reasons", "num_tokens", "diagnostics",
     "candidates", "error"}
)  # fmt: skip
"""Names of our own columns."""


def write_all(answers: Answers, per_call: int, write: Callable[[Row], None], bar: bool) -> None:
    """
    Write each record as soon as it is ready.

    Raises:
        `ItpError`: In the end, if a prompt failed.
    """
    failures = 0
    with _progress(len(answers), 0, bar) as progress:
        for found in answers.of_all(per_call):
            for place, answer in found.items():
                failures += isinstance(answer, Exception)
                write(answers.failure(place, answer) if isinstance(answer, Exception) else answer)
            progress.update(len(found))
    _report(failures, len(answers), "Its record has an `error`. Correct or remove it.")


def write_file(
    answers: Answers, per_call: int, file: Path, settings: dict[str, Any], *, overwrite: bool, bar: bool
) -> None:
    """
    Append the records to a file of JSON lines as they are ready; go on where an earlier run with the same settings
    stopped. In the end the file has the bytes that one run would have written.

    Raises:
        `ArgumentError`: If the file holds results of other settings, or something else.
        `ItpError`: In the end, if a prompt failed.
    """
    journal = open_journal(file, settings, overwrite=overwrite)
    rows = journal.rows()
    # A prompt that failed is tried again.
    done = {place for place, row in rows.items() if "error" not in row}
    failures = 0
    with _progress(len(answers), len(done), bar) as progress:
        for found in answers.of_all(per_call, done):
            written = []
            for place, answer in found.items():
                failed = isinstance(answer, Exception)
                failures += failed
                row = answers.failure(place, answer) if isinstance(answer, Exception) else _lasting(answer)
                written.append({"index": place, **finite(row)})
            journal.append(written)
            progress.update(len(found))
    if len(done) < len(answers):
        journal.finish()
    _report(failures, len(answers), f"See `error` in {file}. Run the command again to try them again.")


def open_journal(file: Path, settings: dict[str, Any], *, overwrite: bool) -> Journal:
    """Return the journal of an output file, empty where it is new or `overwrite` is set."""
    from hf_itp.pools.journal import Journal

    beside = file.with_name(f"{file.name}.settings.json")
    if overwrite or not file.exists():  # a run that failed at once has left its settings only
        for path in (file, beside):
            path.unlink(missing_ok=True)
    elif not beside.exists():
        raise ArgumentError(
            f"`--output` must be a file that `hf-itp generate` has begun, or none, got {file} without "
            f"{beside.name}, which would say how. Name another file, or add --overwrite to replace it."
        )
    return Journal(
        file,
        settings,
        beside,
        place=f"`--output` must hold results of the same prompts and settings or none, got {file}",
        remedy="Give the same ones to go on, name another file, or add --overwrite to begin anew.",
    )


def _lasting(record: Row) -> Row:
    """Return a record without what is another number in each run."""
    return {**record, "diagnostics": {name: v for name, v in record["diagnostics"].items() if name != "seconds"}}


def _progress(total: int, done: int, shown: bool) -> Any:
    from tqdm import tqdm

    watched = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        unit=" prompts",
        disable=not shown,
        file=sys.stderr,
        mininterval=0.1 if watched else _SECONDS_IN_A_LOG,
        maxinterval=10 if watched else _SECONDS_IN_A_LOG,
    )


def _report(failures: int, total: int, remedy: str) -> None:
    if failures:
        raise ItpError(f"{failures} of {total} prompts failed. {remedy}")
