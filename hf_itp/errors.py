"""
What can go wrong, each kind also a subclass of the builtin a caller would expect to catch.

A message has four parts in order: the argument in backticks and its rule, the value received, the consequence where it
is not obvious, and the remedy as an imperative.
"""


class ItpError(Exception):
    """Base class of every error `hf_itp` raises on purpose."""


class ArgumentError(ItpError, ValueError):
    """An argument breaks its rule."""


class ArgumentTypeError(ItpError, TypeError):
    """An argument has a type nothing can be done with."""


class RewardError(ItpError, ValueError):
    """A reward function returned what cannot be ranked: the wrong number of rewards, a NaN, an infinity."""


class RewardModelError(ItpError, ValueError):
    """A checkpoint cannot serve as a reward model as it is."""


class DistributionError(ItpError, RuntimeError):
    """
    What a token is to be drawn from is no distribution: NaN, infinite, or nothing is left in it.

    Args:
        message (`str`): What is wrong.
        row (`int`, *optional*): Which row of the batch it is.
    """

    def __init__(self, message: str, row: int | None = None):
        super().__init__(message)
        self.row = row


class StrategyError(ItpError, ValueError):
    """A strategy returned what nothing can be selected by: a law that is none, an index that is no candidate's."""


class UnsupportedModelError(ItpError, NotImplementedError):
    """The policy decodes in a way no strategy can drive."""


class ProcessError(ItpError, RuntimeError):
    """Another process of the launch failed or is gone, and this one cannot go on without it."""


class MissingDependencyError(ItpError, ImportError):
    """An optional package is needed for what was asked."""


class LoadError(ItpError, OSError):
    """A model, tokenizer or artefact could not be found or read."""


class HubError(ItpError, OSError):
    """The Hub refused what was sent, or could not be reached."""


class ItpWarning(UserWarning):
    """Results may not be what the caller expects."""
