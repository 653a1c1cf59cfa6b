"""
The package's errors, each also a subclass of the builtin a caller expects to catch.

A message has four parts in order: the argument in backticks and its rule ("must"), the value received ("got"), the
consequence where it is not obvious, and the remedy as an imperative.
"""

from typing import Any


class ItpError(Exception):
    """Base class of every error `hf_itp` raises on purpose."""


class ArgumentError(ItpError, ValueError):
    """An argument breaks its rule."""


class ArgumentTypeError(ItpError, TypeError):
    """An argument has a type that cannot be used."""


class NumberError(ArgumentError, ArgumentTypeError):
    """An argument is not a number, or a float where an integer is needed: both a `ValueError` and a `TypeError`."""


class RewardError(ItpError, ValueError):
    """A reward function returned rewards that cannot be ranked: too few, too many, NaN or infinite."""


class ScoringError(RewardError):
    """
    Responses were drawn but could not be scored, or too few of them have a reward.

    Nothing that was drawn is lost: score it again and let a strategy select.

    Args:
        message (`str`): What is wrong.
        candidates (`list[list[torch.LongTensor]]`, *optional*): For each prompt the token ids of every response drawn,
            in order. With `early_rejection` some are only the first tokens of a response; with `shard` they are those
            of the process that failed.
    """

    def __init__(self, message: str, candidates: list[list[Any]] | None = None):
        super().__init__(message)
        self.candidates = candidates or []

    @classmethod
    def of(cls, error: Exception, reward: str, candidates: list[list[Any]]) -> "ScoringError":
        """Return the error for a reward of that name that failed with another error."""
        if isinstance(error, ItpError):
            return cls(f"{error} `error.candidates` holds what was drawn.", candidates)
        return cls(
            f"Reward `{reward}` must score what was drawn, got {type(error).__name__}: {error}. Score "
            "`error.candidates` again, or pass hf_itp.rewards.retried(...), which asks again by itself.",
            candidates,
        )


class RewardModelError(ItpError, ValueError):
    """A checkpoint cannot be used as a reward model."""


class DistributionError(ItpError, RuntimeError):
    """
    The next-token logits are not a distribution: NaN, infinite, or every token is excluded.

    Args:
        message (`str`): What is wrong.
        row (`int`, *optional*): The row of the batch.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


class StrategyError(ItpError, ValueError):
    """A strategy returned probabilities or indices that select nothing."""


class UnsupportedModelError(ItpError, NotImplementedError):
    """The policy decodes in a way that no strategy supports."""


class ProcessError(ItpError, RuntimeError):
    """Another process of the launch failed or ended, so this one cannot continue."""


class MissingDependencyError(ItpError, ImportError):
    """A feature needs an optional package that is not installed."""


class LoadError(ItpError, OSError):
    """A model, tokenizer or artefact cannot be found or read."""


class HubError(ItpError, OSError):
    """The Hub refused the request or cannot be reached."""


class ItpWarning(UserWarning):
    """Results may differ from what the caller expects."""
