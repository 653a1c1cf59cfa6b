"""
Write tiny checkpoints with the class name, configuration, weight names and code of families on the Hub.

Their rewards follow the formula of their authors' code, one response at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.rewards.classifiers import (
    decoder_reward,
    encoder_reward,
    encoder_tokenizer,
    ids_of,
    plain_tokenizer,
    saved,
    saved_adapter,
    tiny_classifier,
)
from tests.tiny import tiny_model, tiny_tokenizer

Reference = Callable[[str, str], float]


class Family(NamedTuple):
    """
    Options to pass with the folder, and the authors' formula for the reward of a prompt and response.

    `folder` is set if the checkpoint is not in the folder that was asked for.
    """

    options: dict[str, Any]
    reference: Reference
    folder: Path | None = None


def chat_text(prompt: str, response: str) -> str:
    """Write by hand what the tiny tokenizer's chat template writes."""
    return f"<s> user {prompt} </s> <s> assistant {response} </s>"


def config_of(model: PreTrainedModel, **entries: Any) -> dict[str, Any]:
    """Return the configuration of a base model, which says nothing of labels, with further entries."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in ("id2label", "label2id")}
    config.pop("problem_type", None)
    return json.loads(json.dumps(config, default=str)) | entries


def write(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerFast | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write a checkpoint file by file, as its authors' library would."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    return folder


def body_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights below the head."""
    prefix = model.base_model_prefix + "."
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}


def random_weights(seed: int, **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Draw normal weights by name, with `__` for a dot."""
    generator = torch.Generator().manual_seed(seed)
    return {name.replace("__", "."): torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@torch.no_grad()
def last_hidden(model: PreTrainedModel, text: str) -> torch.Tensor:
    """Return the body's last hidden states `(L, D)` of one text."""
    return model.base_model(torch.tensor([ids_of(text)])).last_hidden_state[0]


# transformers rebuilds the tokenizers of Qwen2 checkpoints from merges, of which the tests' tokenizer has none.
_QWEN2: dict[str, Any] = {"tokenizer": tiny_tokenizer()}


def decoder(architecture: str) -> Callable[[Path], Family]:
    def build(folder: Path) -> Family:
        model = tiny_classifier(architecture, attn_implementation=None)  # what its release loads it with
        saved(folder, model, tiny_tokenizer())
        options = _QWEN2 if architecture == "qwen2" else {}
        return Family(options, lambda prompt, response: decoder_reward(model, chat_text(prompt, response)))

    return build


def encoder(architecture: str) -> Callable[[Path], Family]:
    def build(folder: Path) -> Family:
        model = tiny_classifier(architecture)
        tokenizer = encoder_tokenizer(architecture)
        saved(folder, model, tokenizer)
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": tokenizer.model_input_names}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
        return Family({}, lambda prompt, response: encoder_reward(model, prompt, response))

    return build


def plain_text(folder: Path) -> Family:
    """Write what TRL's `RewardTrainer` trains without a template: every text ends in the end token."""
    model = tiny_classifier("llama")
    saved(folder, model, plain_tokenizer())
    return Family(
        {"append_eos": True},
        # A response right after the prompt is not a word the tokenizer knows.
        lambda prompt, response: decoder_reward(
            model, f"<s> {prompt} {response} </s>".replace(f"{prompt.split()[-1]} {response.split()[0]}", "<unk>")
        ),
    )


def multi_label(folder: Path) -> Family:
    model = tiny_classifier("llama", num_labels=3, id2label={0: "help", 1: "truth", 2: "style"})
    saved(folder, model, tiny_tokenizer())
    return Family(
        {"label": "truth"}, lambda prompt, response: decoder_reward(model, chat_text(prompt, response), label=1)
    )


def adapter(folder: Path) -> Family:
    merged = saved_adapter(folder, "SEQ_CLS")
    return Family(
        {"num_labels": 1},
        lambda prompt, response: decoder_reward(merged, chat_text(prompt, response)),
        folder / "adapter",
    )


def open_rlhf(head: str, **entries: Any) -> Callable[[Path], Family]:
    """Give the base model's configuration the class `RewardModel` and a head without a bias."""

    def build(folder: Path) -> Family:
        model = tiny_classifier("llama")
        config = config_of(model, architectures=["RewardModel"], normalize_reward=False, **entries)
        write(folder, config, body_weights(model) | {f"{head}.weight": model.score.weight})
        mean, std = entries.get("mean", 0.0), entries.get("std", 1.0)
        return Family({}, lambda prompt, response: (decoder_reward(model, chat_text(prompt, response)) - mean) / std)

    return build


def pythia(folder: Path) -> Family:
    model = tiny_classifier("gpt_neox")
    head = random_weights(0, out_proj__weight=(1, 32), out_proj__bias=(1,))
    config = config_of(model, architectures=["GPTNeoXRewardModel"], model_type="gpt_neox_reward_model", pooling="last")
    write(folder, config, body_weights(model) | head)

    def reference(prompt: str, response: str) -> float:
        hidden = last_hidden(model, chat_text(prompt, response))[-1]
        return float(head["out_proj.weight"][0] @ hidden + head["out_proj.bias"][0])

    return Family({}, reference)


# Code for an older transformers, which would not even import: nothing here may run it.
_OLD_CODE = {"modeling_qwen2_rm.py": "raise ImportError", "configuration_qwen2_rm.py": "raise ImportError"}


def _qwen_head(labels: int) -> tuple[dict[str, torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]:
    head = random_weights(
        1, score__0__weight=(32, 32), score__0__bias=(32,), score__2__weight=(labels, 32), score__2__bias=(labels,)
    )
    head = {name: tensor / 6 if tensor.dim() == 2 else tensor for name, tensor in head.items()}

    def apply(hidden: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(hidden @ head["score.0.weight"].T + head["score.0.bias"])
        return inner @ head["score.2.weight"].T + head["score.2.bias"]

    return head, apply


def _qwen_config(model: PreTrainedModel, name: str) -> dict[str, Any]:
    auto_map = {"AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig", "AutoModel": f"modeling_qwen2_rm.{name}"}
    return config_of(model, architectures=[name], auto_map=auto_map)


def qwen_reward(folder: Path) -> Family:
    model, (head, apply) = tiny_classifier("qwen2"), _qwen_head(1)
    write(folder, _qwen_config(model, "Qwen2ForRewardModel"), body_weights(model) | head, files=_OLD_CODE)
    return Family(_QWEN2, lambda prompt, response: float(apply(last_hidden(model, chat_text(prompt, response))[-1])))


def product(probabilities: list[float]) -> float:
    result = 1.0
    for probability in probabilities:
        result *= probability
    return result


def qwen_process(folder: Path) -> Family:
    """Read at `<extra_0>` behind each step, in the assistant's turn, by the softmax of the second label."""
    model, (head, apply) = tiny_classifier("qwen2", vocab_size=65), _qwen_head(2)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra_0>"], special_tokens=True)
    config = _qwen_config(model, "Qwen2ForProcessRewardModel")
    write(folder, config, body_weights(model) | head, tokenizer, _OLD_CODE)

    @torch.no_grad()
    def reference(prompt: str, response: str) -> float:
        content = "".join(f" {step} <extra_0> " for step in response.split("\n\n"))
        ids = [64 if word == "<extra_0>" else ids_of(word)[0] for word in chat_text(prompt, content).split()]
        hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0]
        return product([float(apply(hidden[i]).softmax(-1)[1]) for i, token in enumerate(ids) if token == 64])

    return Family({"tokenizer": tokenizer, "aggregate": "product"}, reference)


def trl_process(folder: Path) -> Family:
    """Write a token classifier of transformers, read at the last token of prompt, step, mark, step, mark, ..."""
    model = tiny_classifier("qwen2", num_labels=2, of_tokens=True)
    saved(folder, model, tiny_tokenizer())

    @torch.no_grad()
    def reference(prompt: str, response: str) -> float:
        ids, found = ids_of(f"<s> {prompt}"), []
        for step in response.split("\n\n"):
            ids += ids_of(f"{step} then")
            found.append(float(model(torch.tensor([ids])).logits[0, -1].softmax(-1)[1]))
        return min(found)

    return Family(_QWEN2 | {"step_token": "then"}, reference)


def math_shepherd(folder: Path) -> Family:
    """Read `question step mark\\nstep mark`, good against bad at each mark."""
    model = tiny_model("mistral", entropy=3.5)
    saved(folder, model, plain_tokenizer())
    mark, good, bad = ids_of("out yes no")

    @torch.no_grad()
    def reference(prompt: str, response: str) -> float:
        ids = ids_of(f"<s> {prompt} " + " ".join(f"{step} out" for step in response.split("\n\n")))
        scores = model(torch.tensor([ids])).logits[0][:, [good, bad]].softmax(-1)[:, 0]
        return min(float(score) for score, token in zip(scores, ids, strict=True) if token == mark)

    return Family({"step_token": " out", "good_token": "yes", "bad_token": "no"}, reference)


def rlhflow_process(folder: Path) -> Family:
    """Make each step a turn of the user; the answer is predicted three tokens before the end of each conversation."""
    model = tiny_model("llama")
    saved(folder, model, tiny_tokenizer())
    _, good, bad = ids_of("out yes no")

    @torch.no_grad()
    def reference(prompt: str, response: str) -> float:
        text, found = "", []
        for position, step in enumerate(response.split("\n\n")):
            text += f" <s> user {prompt if position == 0 else ''} {step} </s> <s> assistant yes </s>"
            logits = model(torch.tensor([ids_of(text)])).logits[0, -3, [good, bad]]
            found.append(float(logits.softmax(-1)[0]))
        return found[-1]

    return Family({"good_token": "yes", "bad_token": "no", "aggregate": "last"}, reference)


_ARMO = """
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class CustomOutput(ModelOutput):
    rewards: torch.FloatTensor = None
    gating_output: torch.FloatTensor = None
    score: torch.FloatTensor = None


class LlamaForRewardModelWithGating(LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, 5, bias=False)
        self.gating = nn.Linear(config.hidden_size, 5, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        # The last position, padding or not: a batch padded on the right would be read at its padding.
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, -1]
        rewards, gating = self.regression_layer(hidden), self.gating(hidden).softmax(-1)
        return CustomOutput(rewards=rewards, gating_output=gating, score=(rewards * gating).sum(-1))
"""


def armo(folder: Path) -> Family:
    model = tiny_classifier("llama")
    heads = random_weights(2, regression_layer__weight=(5, 32), gating__weight=(5, 32))
    name = "LlamaForRewardModelWithGating"
    config = config_of(
        model, architectures=[name], auto_map={"AutoModelForSequenceClassification": f"modeling_custom.{name}"}
    )
    write(folder, config, body_weights(model) | heads, files={"modeling_custom.py": _ARMO})

    def reference(prompt: str, response: str) -> float:
        hidden = last_hidden(model, chat_text(prompt, response))[-1]
        gating = (heads["gating.weight"] @ hidden).softmax(-1)
        return float((heads["regression_layer.weight"] @ hidden) @ gating)

    return Family({"trust_remote_code": True}, reference)


_INTERNLM_CONFIG = """
from transformers import LlamaConfig


class InternLM2Config(LlamaConfig):
    model_type = "internlm2"
"""
_INTERNLM = """
import torch
from torch import nn
from transformers import LlamaModel, LlamaPreTrainedModel

from .configuration_internlm2 import InternLM2Config


class InternLM2ForRewardModel(LlamaPreTrainedModel):
    config_class = InternLM2Config

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.reward_token_id = config.reward_token_id
        self.post_init()

    @torch.no_grad()
    def get_score(self, tokenizer, conversation):
        ids = tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]
        ids = torch.tensor([[*ids, self.reward_token_id]], device=self.device)
        return self.v_head(self.model(input_ids=ids).last_hidden_state[0, -1]).item()
"""


def internlm(folder: Path) -> Family:
    model = tiny_classifier("llama")
    head = random_weights(3, v_head__weight=(1, 32))
    config = config_of(
        model,
        architectures=["InternLM2ForRewardModel"],
        model_type="internlm2",
        reward_token_id=3,
        auto_map={
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
        },
    )
    files = {"configuration_internlm2.py": _INTERNLM_CONFIG, "modeling_internlm2.py": _INTERNLM}
    write(folder, config, body_weights(model) | head, files=files)

    def reference(prompt: str, response: str) -> float:
        return float(head["v_head.weight"][0] @ last_hidden(model, chat_text(prompt, response) + " <unk>")[-1])

    return Family({"trust_remote_code": True}, reference)
