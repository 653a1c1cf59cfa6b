"""`hf-itp generate`: prompts in, aligned responses out."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_itp.cli import options, template
from hf_itp.cli.answers import Answers, write_all, write_file
from hf_itp.cli.fields import parse_fields
from hf_itp.cli.models import EMBEDDED, EMBEDDED_TEMPERATURE, load_reward_models, loading_bars, recommendation
from hf_itp.cli.prompts import read_rows, reward_columns, with_system
from hf_itp.cli.records import to_json
from hf_itp.cli.settings import settings_of
from hf_itp.generation.keywords import KEYWORDS

if TYPE_CHECKING:
    from hf_itp.rewards.base import Prompt

# With results in a file, enough for a batch and little to lose by a kill.
_RESPONSES_PER_CALL = 64


class Dtype(StrEnum):
    """Data type that the policy computes in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def generate(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts. Default: --file, else stdin.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="File of prompts: .jsonl (or .jsonl.gz) with a `prompt` or `messages` per line, its `tools`, "
            "`documents` and `chat_template_kwargs` if any, and other columns that go to the reward; any other file "
            "one prompt per line; - is stdin.",
        ),
    ] = None,
    prompt_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of a .jsonl file that holds its prompts, e.g. question.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message to put before every prompt.")] = None,
    plain: options.Plain = False,
    model: options.Model = EMBEDDED,
    reward_model: Annotated[
        list[str] | None,
        options.models(
            "--reward-model",
            "-r",
            help=f"{options.REWARD_MODEL_HELP} {options.RECOMMENDED}, else 'embedded'.",
        ),
    ] = None,
    reward_label: Annotated[
        str | None, options.models(help="Label of the reward model that is the reward, by name or index.")
    ] = None,
    dtype: Annotated[Dtype, options.models(help="Data type of the policy; auto is the checkpoint's.")] = Dtype.auto,
    device: options.Device = None,
    trust_remote_code: Annotated[
        bool, options.models("--trust-remote-code", help="Run code that a model repository brings.")
    ] = False,
    num_candidates: Annotated[
        int | None,
        options.drawing(
            "--num-candidates",
            "-n",
            min=1,
            help=f"{KEYWORDS['num_candidates'].help} {options.RECOMMENDED}, else {options.NUM_CANDIDATES}.",
        ),
    ] = None,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: Annotated[
        float | None,
        options.drawing(
            help=f"{options.TEMPERATURE_HELP} Default: the checkpoint's, else 1; "
            f"{EMBEDDED_TEMPERATURE} for 'embedded'."
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        options.drawing(help="Keep the most likely tokens up to this probability. Default: the checkpoint's, else 1."),
    ] = None,
    top_k: Annotated[
        int | None,
        options.drawing(help="Keep the k most likely tokens; 0 keeps all. Default: the checkpoint's, else 0."),
    ] = None,
    min_p: Annotated[
        float | None,
        options.drawing(help="Keep tokens this likely relative to the likeliest. Default: the checkpoint's, else 0."),
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    prompts_per_call: Annotated[
        int | None,
        options.drawing(
            min=1,
            help="Prompts that are drawn for together; changes only speed. Default: as many as fill --batch-size, or "
            f"{_RESPONSES_PER_CALL} candidates with --output; else 1.",
        ),
    ] = None,
    tools: template.Tools = None,
    documents: template.Documents = None,
    chat_template_kwargs: template.ChatTemplateKwargs = None,
    early_rejection: Annotated[
        float | None, options.drawing(metavar="SHARE", help=KEYWORDS["early_rejection"].help)
    ] = None,
    strategy: Annotated[
        str | None,
        options.selecting(
            "--strategy",
            "-s",
            help=f"{KEYWORDS['strategy'].help} {options.RECOMMENDED} (auto), else pessimism.",
        ),
    ] = None,
    reward_view: Annotated[
        str | None,
        options.selecting(help=f"{KEYWORDS['reward_view'].help} {options.RECOMMENDED}, else full."),
    ] = None,
    beta: options.Beta = None,
    set_: options.Fields = None,
    num_return_sequences: Annotated[
        int, options.selecting("--num-return-sequences", "-k", min=1, help="Responses to return per prompt.")
    ] = 1,
    json: Annotated[bool, options.output("--json", help="Write one JSON object per prompt and line.")] = False,
    all_candidates: Annotated[
        bool, options.output("--all-candidates", help="Include every candidate. Needs --json or --output.")
    ] = False,
    output: Annotated[
        Path | None,
        options.output(
            "--output",
            "-o",
            help="File of JSON lines to write to. The same command goes on with one that was interrupted.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, options.output("--overwrite", help="Replace what --output names instead of going on with it.")
    ] = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """
    Draw candidates for each prompt, score them, and write those the strategy selects.

    Each result is written as soon as it is ready. The same seed gives a
    prompt the same candidates, by itself or among others; a prompt that
    comes again is drawn for again. JSON repeats the other columns of a row.

    [bold]Examples[/bold]

      hf-itp generate "How do I keep a sourdough starter alive?"
      hf-itp generate -s best_of_n -n 32 "Name three rivers in France."
      hf-itp generate -m org/policy "Why is the moon bright?"
      hf-itp generate -m org/policy -r org/reward-model --beta 0.5 -f prompts.txt
      hf-itp generate --json --all-candidates -f chats.jsonl > answers.jsonl
      hf-itp generate -s best_of_n -r verify.py:check -f sums.jsonl
      hf-itp generate -f questions.jsonl --prompt-field question -o answers.jsonl
      hf-itp generate --set pool=fresh "Why is the moon bright?"
      hf-itp generate -m org/reasoner --reward-view final "Is 97 prime?"
      hf-itp generate -m org/policy --tools tools.json "How warm is it in Paris?"
      printf 'What is kevlar?\\nWhat is felt?\\n' | hf-itp generate
    """
    if num_candidates is not None and num_return_sequences > num_candidates:
        raise typer.BadParameter(
            f"must be at most --num-candidates ({num_candidates}), got {num_return_sequences}. Draw more candidates.",
            param_hint="'--num-return-sequences'",
        )
    if output is None and overwrite:
        raise typer.BadParameter("must come with the file to replace. Add --output.", param_hint="'--overwrite'")
    if output is not None and output.suffix == ".gz":
        raise typer.BadParameter(
            "must be plain JSON lines, which can be appended to. Name e.g. answers.jsonl.", param_hint="'--output'"
        )
    if all_candidates and not json and output is None:
        raise typer.BadParameter(
            "must come with --json, since only JSON holds all candidates. Add --json.", param_hint="'--all-candidates'"
        )
    if system is not None and plain:
        raise typer.BadParameter(
            "must come without --plain, since plain text has no system message. Leave --plain out.",
            param_hint="'--system'",
        )
    if reward_label is not None and not reward_model:
        raise typer.BadParameter(
            "must come with the reward model that has the label. Add --reward-model.", param_hint="'--reward-label'"
        )
    fields = parse_fields(set_ or [], beta=beta)
    given_prompts, columns = read_rows(prompts or [], file, prompt_field)

    # Refuse before loading what can be refused without the models.
    from hf_itp import Policy, get_strategy
    from hf_itp.generation.recommendation import recommended_with_fields
    from hf_itp.policies.chat_template import arguments_of_prompts, check_template_takes
    from hf_itp.policies.policy import as_conversations
    from hf_itp.sampling.thinking import check_reward_view

    of_prompts = arguments_of_prompts(
        given_prompts, **template.template_keywords(tools, documents, chat_template_kwargs, columns)
    )
    if reward_view is not None:
        check_reward_view(reward_view)
    if strategy is None and model == EMBEDDED:
        strategy = "pessimism"
    if strategy not in (None, "auto"):
        get_strategy(str(strategy), **fields)
    with loading_bars(shown=not quiet):
        policy = Policy.from_pretrained(model, device, dtype.value, trust_remote_code)
        conversations = as_conversations(given_prompts, policy.tokenizer, plain=plain)
        if system is not None:
            conversations = with_system(conversations, system)
        check_template_takes(policy.tokenizer, conversations, of_prompts)
        strategy = strategy or ("auto" if recommendation(policy.model) else "pessimism")
        asked: dict[str, Any] = {"num_candidates": num_candidates, "reward_view": reward_view}
        if strategy == "auto":
            # A field is the strategy's even if sampling has a keyword of the same name.
            chosen = recommended_with_fields(policy.model, asked, fields)
            if not quiet:
                print(f"Decoding as {model} recommends: {recommendation(policy.model)}", file=sys.stderr)
        else:
            chosen = {**asked, "strategy": get_strategy(strategy, **fields)}
            chosen = {name: value for name, value in chosen.items() if value is not None}
            reward_model = reward_model or [EMBEDDED]
        num_candidates = chosen["num_candidates"] = chosen.get("num_candidates") or options.NUM_CANDIDATES
        if reward_model:
            chosen["reward_model"] = load_reward_models(
                reward_model, device=policy.model.device, label=reward_label, trust_remote_code=trust_remote_code
            )
    if temperature is None and model == EMBEDDED:
        temperature = EMBEDDED_TEMPERATURE
        if not quiet:
            print(
                f"Drawing at temperature {temperature}, which suits the embedded policy. Choose another with "
                "--temperature.",
                file=sys.stderr,
            )
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    chosen |= {name: value for name, value in sampling.items() if value is not None}
    chosen |= {"early_rejection": early_rejection, "max_new_tokens": max_new_tokens}
    chosen |= {"num_return_sequences": num_return_sequences}
    # With results in a file, a bar counts prompts. On a terminal the sampler shows its own bars.
    to_pipe = len(conversations) > 1 and sys.stderr.isatty() and not sys.stdout.isatty()
    bar = not quiet and (output is not None or to_pipe)
    answers = Answers(
        policy,
        conversations,
        columns,
        reward_columns(columns),
        of_prompts,
        seed,
        all_candidates,
        {**chosen, "batch_size": batch_size, "progress": False if quiet or bar else None},
    )
    if prompts_per_call is None:
        # Without a batch size or a file no prompt waits for another.
        at_once = batch_size or (1 if output is None else _RESPONSES_PER_CALL)
        prompts_per_call = max(1, at_once // num_candidates)
    if output is not None:
        settings = settings_of(
            policy, conversations, columns, chosen, seed=seed, all_candidates=all_candidates,
            chat_template_kwargs=[dict(arguments) for arguments in of_prompts],
        )  # fmt: skip
        write_file(answers, prompts_per_call, output, settings, overwrite=overwrite, bar=bar)
        return
    headings = len(conversations) * num_return_sequences > 1
    write_all(answers, prompts_per_call, lambda record: _write(record, as_json=json, headings=headings), bar)


def _write(record: dict[str, Any], *, as_json: bool, headings: bool) -> None:
    if as_json:
        print(to_json(record, encoding=sys.stdout.encoding), flush=True)
        return
    heading = _heading(record["prompt"])
    if "error" in record:
        print(f"No response to {heading!r:.60}: {record['error']}", file=sys.stderr)
        return
    for response, reward in zip(record["responses"], record["rewards"], strict=True):
        if headings:
            print(f"### {heading}  (reward {reward:.3f})\n")
        print(response, flush=True)
        if headings:
            print(flush=True)


def _heading(prompt: Prompt) -> str:
    """Return the prompt in one line: of a chat the texts of its last message, or its role if it has none."""
    if isinstance(prompt, str):
        return " ".join(prompt.split())
    content = prompt[-1].get("content")
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    texts = [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
    return " ".join(" ".join(texts).split()) or str(prompt[-1]["role"])
