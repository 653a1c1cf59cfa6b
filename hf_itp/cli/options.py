"""Options that more than one command takes, each with its help: that of the keyword if `generate` has it too."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from hf_itp.generation.keywords import KEYWORDS

# One per panel of the help.
models = partial(typer.Option, rich_help_panel="Models")
drawing = partial(typer.Option, rich_help_panel="Drawing candidates")
selecting = partial(typer.Option, rich_help_panel="Selecting")
output = partial(typer.Option, rich_help_panel="Output")

RECOMMENDED = "Default: what the policy recommends"
NUM_CANDIDATES: int = KEYWORDS["num_candidates"].default
REWARD_MODEL_HELP = f"{KEYWORDS['reward_model'].help} Repeat for an ensemble (their mean)."
TEMPERATURE_HELP = "Divides the logits: below 1 favors likely tokens."
BETA_HELP = "Pessimism's strength, in units of the reward: near 0 is best-of-n, very large is plain sampling."

Model = Annotated[
    str,
    models("--model", "-m", help="Policy that draws: Hub id, local folder, or 'embedded' (SmolLM2-135M-Instruct)."),
]
RewardModels = Annotated[list[str], models("--reward-model", "-r", help=REWARD_MODEL_HELP)]
Device = Annotated[str | None, models(help="Where both models run, e.g. cuda:0. Default: a GPU if there is one.")]
Plain = Annotated[
    bool, typer.Option("--plain", help="Continue text prompts as plain text, without the policy's chat template.")
]
NumCandidates = Annotated[int, drawing("--num-candidates", "-n", min=1, help=KEYWORDS["num_candidates"].help)]
MaxNewTokens = Annotated[int, drawing(min=1, help="Maximum length of a response, in tokens.")]
Temperature = Annotated[float | None, drawing(help=f"{TEMPERATURE_HELP} Default: the checkpoint's, else 1.")]
Seed = Annotated[int, drawing(min=0, help=KEYWORDS["seed"].help)]
BatchSize = Annotated[int | None, drawing(min=1, help=KEYWORDS["batch_size"].help)]
Beta = Annotated[float | None, selecting(help=BETA_HELP)]
Fields = Annotated[
    list[str] | None, selecting("--set", metavar="NAME=VALUE", help="Any field of the strategy; repeat for more.")
]
Quiet = Annotated[bool, output("--quiet", "-q", help="No progress on stderr.")]
Debug = Annotated[bool, output("--debug", help="Show the traceback of an error.")]
