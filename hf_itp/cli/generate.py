"""`hf-itp generate`: prompts in, aligned responses out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_itp.cli import options
from hf_itp.cli.fields import parse_fields
from hf_itp.cli.models import EMBEDDED, load_reward_models, loading_bars, recommendation
from hf_itp.cli.prompts import read_prompts, with_system
from hf_itp.cli.records import record_of, to_json

if TYPE_CHECKING:
    from hf_itp.rewards.base import Prompt


class Dtype(StrEnum):
    """What the policy computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts; without any, --file or stdin.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="Prompts from a file: .jsonl (or .jsonl.gz) with `prompt` or `messages` a line, any other file one "
            "prompt a line; - is stdin.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message put before every prompt.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue the prompts as plain text, without the policy's chat template.")
    ] = False,
    model: options.Model = EMBEDDED,
    reward_model: Annotated[
        list[str] | None,
        typer.Option(
            "--reward-model",
            "-r",
            help=f"{options.REWARD_MODEL_HELP} Default: what the policy recommends, else 'embedded'.",
            rich_help_panel=options.MODELS,
        ),
    ] = None,
    reward_label: Annotated[
        str | None,
        typer.Option(help="Which of a reward model's labels is the reward.", rich_help_panel=options.MODELS),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="The policy's data type; auto is the checkpoint's.", rich_help_panel=options.MODELS)
    ] = Dtype.auto,
    device: options.Device = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code", help="Run code that a model repository brings.", rich_help_panel=options.MODELS
        ),
    ] = False,
    num_candidates: Annotated[
        int | None,
        typer.Option(
            "--num-candidates",
            "-n",
            min=1,
            help=f"{options.NUM_CANDIDATES_HELP} Default: what the policy recommends, else 16.",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: Annotated[
        float | None,
        typer.Option(
            help=f"{options.TEMPERATURE_HELP} Default, as for the next three: the checkpoint's, else off.",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Smallest set of tokens with this much probability.", rich_help_panel=options.DRAWING),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Only the k most probable tokens; 0 is off.", rich_help_panel=options.DRAWING),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            help="Only tokens at least this probable, relative to the best.", rich_help_panel=options.DRAWING
        ),
    ] = None,
    seed: options.Seed = 0,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most candidates decoded at once. Default: what memory allows, one prompt at a time.",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    early_rejection: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="best_of_n: score unfinished responses and stop this share of them, such as 0.5.",
            rich_help_panel=options.DRAWING,
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            "-s",
            help="What picks; see hf-itp strategies. Default: what the policy recommends (auto), else pessimism.",
            rich_help_panel=options.SELECTING,
        ),
    ] = None,
    beta: Annotated[float | None, typer.Option(help=options.BETA_HELP, rich_help_panel=options.SELECTING)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any field of the strategy.", rich_help_panel=options.SELECTING
        ),
    ] = None,
    num_return_sequences: Annotated[
        int,
        typer.Option(
            "--num-return-sequences", "-k", min=1, help="Responses per prompt.", rich_help_panel=options.SELECTING
        ),
    ] = 1,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object per prompt and line.", rich_help_panel=options.OUTPUT)
    ] = False,
    all_candidates: Annotated[
        bool,
        typer.Option("--all-candidates", help="With --json, every candidate too.", rich_help_panel=options.OUTPUT),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=options.OUTPUT)
    ] = False,
    debug: options.Debug = False,
) -> None:
    """
    Draw candidates for each prompt, score them, and write what the strategy picks.

    Each result is written as soon as it is there. The same seed gives a
    prompt the same candidates, alone or among others.

    [bold]Examples[/bold]

      hf-itp generate "How do I keep a sourdough starter alive?"
      hf-itp generate -s best_of_n -n 32 "Name three rivers in France."
      hf-itp generate -m org/policy "Why is the moon bright?"
      hf-itp generate -m org/policy -r org/reward-model --beta 0.5 -f prompts.txt
      hf-itp generate --json --all-candidates -f chats.jsonl > answers.jsonl
      hf-itp generate --set pool=fresh "Why is the moon bright?"
      printf 'What is kevlar?\\nWhat is felt?\\n' | hf-itp generate
    """
    if num_candidates is not None and num_return_sequences > num_candidates:
        raise typer.BadParameter(
            f"{num_return_sequences} responses cannot be returned of {num_candidates} candidates.",
            param_hint="'--num-return-sequences'",
        )
    if all_candidates and not json:
        raise typer.BadParameter("Only JSON has room for them. Add --json.", param_hint="'--all-candidates'")
    if system is not None and plain:
        raise typer.BadParameter("Plain text has no system message. Leave --plain out.", param_hint="'--system'")
    if reward_label is not None and not reward_model:
        raise typer.BadParameter("Say of which reward model. Add --reward-model.", param_hint="'--reward-label'")
    fields = parse_fields(set_ or [], beta=beta)
    given_prompts = read_prompts(prompts or [], file)

    # What can be refused without the models is refused before they are loaded.
    from hf_itp import Policy, get_strategy
    from hf_itp.generation.recommendation import recommended_with_fields
    from hf_itp.policies.policy import as_conversations

    if strategy is None and model == EMBEDDED:
        strategy = "pessimism"
    if strategy not in (None, "auto"):
        get_strategy(str(strategy), **fields)
    with loading_bars(shown=not quiet):
        policy = Policy.from_pretrained(model, device, dtype.value, trust_remote_code)
        conversations = as_conversations(given_prompts, policy.tokenizer, plain=plain)
        if system is not None:
            conversations = with_system(conversations, system)
        strategy = strategy or ("auto" if recommendation(policy.model) else "pessimism")
        asked: dict[str, Any] = {"num_candidates": num_candidates}
        if strategy == "auto":
            # The fields are the strategy's, also where sampling has a keyword of the same name.
            chosen = recommended_with_fields(policy.model, asked, fields)
            if not quiet:
                print(f"Decoding as {model} recommends: {recommendation(policy.model)}", file=sys.stderr)
        else:
            chosen = {**asked, "strategy": get_strategy(strategy, **fields)}
            reward_model = reward_model or [EMBEDDED]
        num_candidates = chosen["num_candidates"] = chosen.get("num_candidates") or 16
        if reward_model:
            chosen["reward_model"] = load_reward_models(
                reward_model, device=policy.model.device, label=reward_label, trust_remote_code=trust_remote_code
            )
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}

    # A bar of prompts, where results go elsewhere and so do not show the progress; else the sampler's own bars.
    bar = not quiet and len(conversations) > 1 and sys.stderr.isatty() and not sys.stdout.isatty()
    # As many prompts at once as fill a batch: without one named, a prompt's result is not to wait for another's.
    at_once = max(1, (batch_size or 1) // num_candidates)
    for batch in _batches(conversations, at_once, bar):
        output = policy.generate(
            batch,
            **chosen,
            num_return_sequences=num_return_sequences,
            seed=seed,
            batch_size=batch_size,
            early_rejection=early_rejection,
            max_new_tokens=max_new_tokens,
            progress=False if quiet or bar else None,
            **{name: value for name, value in sampling.items() if value is not None},
        )
        for row, prompt in enumerate(batch):
            record = record_of(output, row, prompt, policy.text_of(prompt), all_candidates=all_candidates)
            _write(record, as_json=json, headings=len(conversations) * num_return_sequences > 1)


def _batches(prompts: Sequence[Prompt], size: int, bar: bool) -> Iterator[Sequence[Prompt]]:
    from tqdm import tqdm

    with tqdm(total=len(prompts), unit="prompt", disable=not bar, file=sys.stderr) as progress:
        for start in range(0, len(prompts), size):
            yield prompts[start : start + size]
            progress.update(min(size, len(prompts) - start))


def _write(record: dict[str, Any], *, as_json: bool, headings: bool) -> None:
    if as_json:
        print(to_json(record, encoding=sys.stdout.encoding), flush=True)
        return
    heading = _heading(record["prompt"])
    for response, reward in zip(record["responses"], record["rewards"], strict=True):
        if headings:
            print(f"### {heading}  (reward {reward:.3f})\n")
        print(response, flush=True)
        if headings:
            print(flush=True)


def _heading(prompt: Prompt) -> str:
    """The prompt in one line: of a chat its last message, of that its texts, or its role where it has none."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    content = prompt[-1].get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    texts = [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
    return " ".join(" ".join(texts).split()) or str(prompt[-1]["role"])
