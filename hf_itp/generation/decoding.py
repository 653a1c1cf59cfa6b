"""
The decoding method behind `strategy=`: draw candidates, score them, select, return what `generate` returns.

A [`StrategyDecoding`] holds one request and is called through transformers' `custom_generate` hook. Knows nothing of
how `generate` is patched.
"""

from __future__ import annotations

import functools
import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from hf_itp.checks import check_choice, check_count, check_num_return_sequences
from hf_itp.distributed.processes import launched_processes
from hf_itp.distributed.sharding import SHARDS, ShardedSource, Sharding
from hf_itp.errors import ArgumentError, ItpWarning
from hf_itp.generation.advice import ADVISER
from hf_itp.generation.candidates import CandidatePools, CandidateSource
from hf_itp.generation.columns import check_reward_kwargs
from hf_itp.generation.early_rejection import EarlyRejection, check_early_rejection
from hf_itp.generation.keywords import Keywords
from hf_itp.generation.output import StrategyOutput
from hf_itp.generation.prompt_rows import warn_of_other_rows
from hf_itp.generation.reviewer import Reviewer
from hf_itp.generation.selection import Selection
from hf_itp.generation.streaming import ended_on_failure, stream
from hf_itp.policies.checks import check_generation_config, check_model, check_model_kwargs, policy_tokenizer
from hf_itp.prompts import check_prompts, decoded_prompts
from hf_itp.rewards import RewardFunction, as_reward_function
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.logs import RewardLog
from hf_itp.rewards.resolve import checked_reward
from hf_itp.sampling import CandidateSampler
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.row_calls import RowCalls
from hf_itp.sampling.settings import without_default_top_k
from hf_itp.sampling.streams import PromptKey, falls_within, fresh_seed, prompt_keys
from hf_itp.sampling.text import ResponseReader
from hf_itp.sampling.thinking import check_reward_view, reward_readers
from hf_itp.strategies import Strategy, get_strategy


@dataclass
class StrategyDecoding(Keywords):
    """
    Hold one request: which strategy selects among how many candidates, by which reward, for which prompts.

    Give it to `generate` as `custom_generate=StrategyDecoding(...)`, or let `generate(strategy=...)` build it.

    Args:
        strategy ([`Strategy`] or `str`): The strategy, or its name.
        reward ([`RewardFunction`]): The reward, or anything else that `generate` takes as `reward_model`. A model
            given by name is loaded at the first call, to the policy's device.
        num_return_sequences (`int`, *optional*, defaults to 1): Responses returned per prompt, all different draws.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The policy's. By default loaded from where the policy came
            from.
        streamer (`BaseStreamer`, *optional*): Gets the winner once it is known. Only for one prompt and one returned
            response.
        input_prompts (`list[list[int]]`, *optional*): Tokens of the prompts of an encoder-decoder, whose decoding loop
            sees only the decoder's.
        keep_top_k_50 (`bool`, *optional*, defaults to `False`): Keep a `top_k` of 50. transformers sets it if
            nobody did. A decoding method cannot tell the two apart, so `False` removes it, with a warning.

    It also takes every keyword of `generate` by name ([`Keywords`]), and the fields of a strategy given by name.

    Examples:

    ```python
    >>> from hf_itp import StrategyDecoding
    >>> def brevity(prompts, completions, **kwargs):
    ...     return [-float(len(completion)) for completion in completions]
    >>> decoding = StrategyDecoding("pessimism", brevity, beta=0.5, num_candidates=4)

    ```

    Then call `policy.generate(**inputs, do_sample=True, custom_generate=decoding)`.
    """

    strategy: Strategy
    reward: RewardFunction
    num_return_sequences: int = 1
    tokenizer: PreTrainedTokenizerBase | None = None
    streamer: BaseStreamer | None = field(default=None, repr=False)
    input_prompts: list[list[int]] | None = field(default=None, repr=False)
    keep_top_k_50: bool = False

    _hf_itp_decoding = True  # `patching` knows it by this mark, without importing anything.

    def __post_init__(self) -> None:
        self.strategy = get_strategy(self.strategy)
        self.reward = checked_reward(self.reward)
        self.num_candidates = check_count("num_candidates", self.num_candidates, 1, "Draw at least one candidate.")
        self.num_return_sequences = check_num_return_sequences(self.num_return_sequences, self.num_candidates)
        if self.batch_size is not None:
            remedy = "Leave it out to let the free memory decide."
            self.batch_size = check_count("batch_size", self.batch_size, 1, remedy)
        if self.seed is not None:
            self.seed = check_count("seed", self.seed, 0, "Pass e.g. seed=0.")
        if self.shard is not None:
            check_choice("shard", self.shard, SHARDS)
        if self.prompts is not None:
            self.prompts = check_prompts(self.prompts)
        check_reward_view(self.reward_view)
        if self.reward_kwargs is not None:
            self.reward_kwargs = check_reward_kwargs(self.reward_kwargs)
        if self.shard is not None and self.early_rejection is not None:
            raise ArgumentError(
                f"`shard` must be absent with `early_rejection`, got {self.shard!r}: all candidates of a call must be "
                "in one process. Leave one of them out."
            )
        if self.early_rejection is not None:
            self.early_rejection = check_early_rejection(
                self.early_rejection, self.strategy.name, self.num_candidates, self.batch_size, self.reward_view
            )

    def __call__(
        self, model: PreTrainedModel, input_ids: torch.Tensor, **prepared: Any
    ) -> torch.Tensor | StrategyOutput:
        """Decode in place of `generate`'s own loop, which hands over everything it has prepared."""
        with ended_on_failure(self.streamer):
            return self._decoded(model, input_ids, prepared)

    def _decoded(
        self, model: PreTrainedModel, input_ids: torch.Tensor, prepared: dict[str, Any]
    ) -> torch.Tensor | StrategyOutput:
        # Check what is asked for, before the first forward pass.
        call = DecodingCall.of(model, input_ids, **prepared)
        self._check(call)
        tokenizer = policy_tokenizer(model) if self.tokenizer is None else self.tokenizer
        token_prompts, prompts = self._prompts(call, tokenizer)
        columns = {} if self.reward_kwargs is None else check_reward_kwargs(self.reward_kwargs, len(prompts))
        self.reward = as_reward_function(self.reward, device=model.device)
        self.reward.check(prompts, **columns, **RewardLog().loggers([]))
        if not self.keep_top_k_50:
            call = replace(call, logits_processor=without_default_top_k(model, call.logits_processor))
        sharding = None if self.shard is None else Sharding(launched_processes(), self.shard, call)
        extra = self.strategy.num_extra_candidates(self.num_candidates, self.num_return_sequences)
        RowCalls(call.logits_processor, call.stopping_criteria, len(call), len(call) * self.num_candidates).check(
            batch_size=self.batch_size,
            draws_again=extra > 0,
            reviewed=self.early_rejection is not None,
            processes=1 if sharding is None else sharding.processes.size,
        )

        # Give each prompt its stream of random numbers.
        seed = fresh_seed() if self.seed is None else self.seed
        if sharding is not None:
            seed = sharding.agree(seed, self._request(token_prompts, call.generation_config))
        keys = prompt_keys(seed, token_prompts)
        call = replace(call, prompt_keys=keys, batch_size=self.batch_size, progress=self.progress)

        # Draw N candidates per prompt and score them.
        source = self._source(call, tokenizer, prompts, columns, sharding)
        pools = CandidatePools(
            source if sharding is None else ShardedSource(source, sharding),
            len(call),
            self._reviewer(source, keys),
        )
        pools.extend(range(len(call)), self.num_candidates)

        # Normalize: the law of the first winner given the pool.
        selection = Selection(
            self.strategy, self.reward.name, pools, self.num_candidates, self.num_return_sequences, keys
        )

        # Accept: pick the winners by that law, or from proposals that are drawn until enough are accepted.
        selected = selection.winners()
        if (advice := ADVISER.listen(self.strategy, self.reward.name, selection.whole_pools)) is not None:
            warnings.warn(advice, ItpWarning, stacklevel=2)
        winners = pools.responses(selected.tolist())

        # Return them as `generate` does.
        output: Any = _sequences(call, winners)
        if call.generation_config.return_dict_in_generate:
            output = self._output(output, pools, selection, selected, source.sampler, call, tokenizer)
        if self.streamer is not None:
            stream(self.streamer, input_ids, winners[0][0])
        return output

    def _check(self, call: DecodingCall) -> None:
        check_model(call.model)
        check_generation_config(call.generation_config, self.num_candidates)
        check_model_kwargs(call.model, call.model_kwargs)
        if self.streamer is not None and len(call) * self.num_return_sequences != 1:
            raise ArgumentError(
                f"`streamer` must be given for one response, got {len(call) * self.num_return_sequences} to return. "
                "Pass one prompt with num_return_sequences=1, or leave `streamer` out."
            )

    def _request(self, token_prompts: list, generation_config: GenerationConfig) -> dict[str, Any]:
        """Return what must be the same in all processes that share a call."""
        settings = ("max_length", "temperature", "top_k", "top_p", "min_p", "return_dict_in_generate")
        return {
            "input_ids": token_prompts,
            "strategy": (self.strategy.name, self.strategy.settings()),
            "reward_model": self.reward.name,
            "reward_kwargs": json.dumps(self.reward_kwargs, default=str),
            **{
                name: getattr(self, name)
                for name in ("num_candidates", "num_return_sequences", "seed", "batch_size", "shard", "reward_view")
            },
            **{name: getattr(generation_config, name) for name in settings},
        }

    def _source(
        self,
        call: DecodingCall,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence],
        sharding: Sharding | None,
    ) -> CandidateSource:
        """Return what draws and scores for the prompts of this process."""
        rows = range(len(call)) if sharding is None else sharding.rows
        continued = call.continued
        return CandidateSource(
            call if sharding is None else sharding.part(call),
            self.reward,
            [prompts[row] for row in rows],
            {name: [column[row] for row in rows] for name, column in columns.items()},
            reward_readers(tokenizer, [continued[row] for row in rows], self.reward_view),
            overlaps=sharding is None,
            places=rows,
            num_prompts=len(call),
        )

    def _reviewer(self, source: CandidateSource, keys: list[PromptKey]) -> Reviewer | None:
        if not isinstance(self.early_rejection, EarlyRejection):
            return None
        audited = [falls_within(key, self.early_rejection.audit) for key in keys]
        return Reviewer(source, self.early_rejection, self.num_return_sequences, audited)

    def _prompts(self, call: DecodingCall, tokenizer: PreTrainedTokenizerBase) -> tuple[list, list[Prompt]]:
        """Return what identifies each prompt's stream of random numbers, and what the reward sees."""
        if self.prompts is not None:
            check_prompts(self.prompts, len(call))
        in_tokens = True
        if self.input_prompts is not None:
            token_prompts: list = self.input_prompts
        elif not call.model.config.is_encoder_decoder and call.input_ids.shape[1] > 0:
            token_prompts = unpadded(call.input_ids, call.attention_mask)
        elif self.prompts is not None:
            # The decoder's tokens are no prompt: all rows start alike.
            token_prompts = [json.dumps(prompt, default=str) for prompt in self.prompts]
            in_tokens = False
        else:
            raise ArgumentError(
                "`prompts` must be given where the input is not token ids, got None. Pass one string or chat per "
                "input row."
            )
        if self.prompts is not None and in_tokens:
            warn_of_other_rows(self.prompts, token_prompts, tokenizer)
        prompts = self.prompts if self.prompts is not None else decoded_prompts(token_prompts, tokenizer)
        return token_prompts, list(prompts)

    def _output(
        self,
        sequences: torch.Tensor,
        pools: CandidatePools,
        selection: Selection,
        selected: torch.Tensor,
        sampler: CandidateSampler,
        call: DecodingCall,
        tokenizer: PreTrainedTokenizerBase,
    ) -> StrategyOutput:
        table, candidates, law = pools.reward_table(), pools.responses(), selection.known_law()
        rewards = table.gather(1, selected)
        diagnostics = {
            "path": sampler.path,
            "path_reason": sampler.path_reason,
            "num_tokens": _lengths(candidates),
            "seconds": dict(pools.seconds),
            **selection.diagnostics(),
            **pools.diagnostics(rewards[:, 0]),
        }
        return StrategyOutput(
            sequences=sequences, rewards=rewards, candidates=candidates, candidate_rewards=table, probabilities=law,
            selected=selected, diagnostics=diagnostics, finish_reasons=pools.finish_reasons(),
            texts=_texts(tokenizer, call.continued, candidates, selected), prompt_ids=call.continued,
        )  # fmt: skip


def _with_fields_of_strategy(init: Any) -> Any:
    """Let the constructor take the fields of a strategy given by name beside its own arguments."""
    own = inspect.signature(init).parameters

    @functools.wraps(init)
    def __init__(self: StrategyDecoding, strategy: str | Strategy, *args: Any, **arguments: Any) -> None:
        fields = {name: arguments.pop(name) for name in [*arguments] if name not in own}
        init(self, get_strategy(strategy, **fields), *args, **arguments)

    return __init__


StrategyDecoding.__init__ = _with_fields_of_strategy(StrategyDecoding.__init__)  # type: ignore[method-assign]


def _sequences(call: DecodingCall, winners: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return prompt and response of each winner, padded on the right."""
    pad = call.generation_config._pad_token_tensor
    rows = [
        torch.cat([call.input_ids[row], response.to(call.input_ids.device)])
        for row, responses in enumerate(winners)
        for response in responses
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else int(pad))


def _texts(
    tokenizer: PreTrainedTokenizerBase,
    continued: list[list[int]],
    candidates: list[list[torch.Tensor]],
    selected: torch.Tensor,
) -> list[list[str]]:
    """Return the text of each winner."""
    texts = []
    for ids, pool, indices in zip(continued, candidates, selected.tolist(), strict=True):
        read = ResponseReader(tokenizer, ids)
        texts.append([read(pool[index].tolist()) for index in indices])
    return texts


def _lengths(candidates: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return the length of every response `(B, P)`, 0 where none was drawn."""
    lengths = [torch.tensor([len(response) for response in pool], dtype=torch.long) for pool in candidates]
    return torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True, padding_value=0)
