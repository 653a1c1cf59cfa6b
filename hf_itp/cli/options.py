"""The options that more than one command takes, each with its help."""

from __future__ import annotations

from typing import Annotated

import typer

MODELS = "Models"
DRAWING = "Drawing candidates"
SELECTING = "Selecting among them"
OUTPUT = "Output"
TEMPERATURE_HELP = "Divides the logits: below 1 the policy keeps closer to its likeliest words."
REWARD_MODEL_HELP = (
    "Reward model that scores: Hub id, local folder, or 'embedded'. Several form an ensemble (their mean)."
)
NUM_CANDIDATES_HELP = "Responses drawn per prompt (N)."
BETA_HELP = "Pessimism's strength, in units of the reward: near 0 is best-of-n, very large is plain sampling."

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Policy that draws: Hub id, local folder, or 'embedded' (SmolLM2-135M-Instruct).",
        rich_help_panel=MODELS,
    ),
]
RewardModels = Annotated[
    list[str],
    typer.Option(
        "--reward-model",
        "-r",
        help=REWARD_MODEL_HELP,
        rich_help_panel=MODELS,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where both run, e.g. cuda:0. Default: a GPU if there is one.", rich_help_panel=MODELS),
]
NumCandidates = Annotated[
    int,
    typer.Option("--num-candidates", "-n", min=1, help=NUM_CANDIDATES_HELP, rich_help_panel=DRAWING),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest response, in tokens.", rich_help_panel=DRAWING)]
Seed = Annotated[
    int, typer.Option(min=0, help="The same seed gives the same candidates for a prompt.", rich_help_panel=DRAWING)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]
