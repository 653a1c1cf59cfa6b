"""
The decoding method behind `strategy=`: draw candidates, score them, select, return what `generate` returns.

A [`StrategyDecoding`] is a callable of the form transformers' `custom_generate` hook takes, and carries the whole
request. Knows nothing of how `generate` is patched.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from hf_itp.checks import check_choice, check_count, check_indices, check_law, check_num_return_sequences
from hf_itp.distributed.sharding import SHARDS, Sharding
from hf_itp.errors import ArgumentError, ItpWarning, StrategyError
from hf_itp.generation.candidates import CandidatePools
from hf_itp.generation.columns import check_reward_kwargs
from hf_itp.generation.early_rejection import EarlyRejection, check_early_rejection
from hf_itp.generation.keywords import Keywords
from hf_itp.generation.output import StrategyOutput
from hf_itp.generation.prompt_rows import warn_of_other_rows
from hf_itp.generation.rejecting_pools import RejectingPools
from hf_itp.policies.checks import check_generation_config, check_model, check_model_kwargs, policy_tokenizer
from hf_itp.prompts import check_prompts, decoded_prompts
from hf_itp.rewards import RewardFunction, as_reward_function
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.resolve import checked_reward
from hf_itp.sampling import CandidateSampler
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.row_calls import RowCalls, rows_are_independent
from hf_itp.sampling.settings import without_default_top_k
from hf_itp.sampling.streams import PromptKey, falls_within, fresh_seed, prompt_keys, selection_generator
from hf_itp.strategies import Strategy, get_strategy


@dataclass
class StrategyDecoding(Keywords):
    """
    One request: which strategy selects among how many candidates, by which reward, for which prompts.

    Give it to `generate` as `custom_generate=StrategyDecoding(...)`, or let `generate(strategy=...)` build it.

    Args:
        strategy ([`Strategy`] or `str`): What selects, or its name.
        reward ([`RewardFunction`]): What scores, or anything else that `generate` takes as `reward_model`. A model
            given by name is loaded at the first call, to where the policy is.
        num_return_sequences (`int`, *optional*, defaults to 1): Responses returned per prompt, all different draws.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The policy's; loaded from where the policy came from if
            absent.
        streamer (`BaseStreamer`, *optional*): Gets the winner once it is known: one prompt, one returned response.
        input_prompts (`list[list[int]]`, *optional*): Tokens of the prompts, for encoder-decoders, whose decoding loop
            sees only the decoder's.
        keep_top_k_50 (`bool`, *optional*, defaults to `False`): transformers sets `top_k=50` where nobody did, and a
            decoding method cannot tell. `False` takes 50 for that default and removes it, with a warning.

    and, by name, every keyword of `generate` (see [`Keywords`]).

    Examples:

    ```python
    >>> from hf_itp import StrategyDecoding, get_strategy
    >>> from hf_itp.rewards import as_reward_function
    >>> def brevity(prompts, completions, **kwargs):
    ...     return [-float(len(completion)) for completion in completions]
    >>> decoding = StrategyDecoding(get_strategy("best_of_n"), as_reward_function(brevity), num_candidates=4)

    ```

    and then `policy.generate(**inputs, do_sample=True, custom_generate=decoding)`.
    """

    strategy: Strategy
    reward: RewardFunction
    num_return_sequences: int = 1
    tokenizer: PreTrainedTokenizerBase | None = None
    streamer: BaseStreamer | None = field(default=None, repr=False)
    input_prompts: list[list[int]] | None = field(default=None, repr=False)
    keep_top_k_50: bool = False

    _hf_itp_decoding = True  # By this `patching` tells it from other callables, without importing anything.

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
        if self.reward_kwargs is not None:
            self.reward_kwargs = check_reward_kwargs(self.reward_kwargs)
        if self.shard is not None and self.early_rejection is not None:
            raise ArgumentError(
                "`shard` cannot be combined with early_rejection, which needs all candidates of a call in one "
                f"process, but is {self.shard!r}. Leave one of them out."
            )
        if self.early_rejection is not None:
            self.early_rejection = check_early_rejection(
                self.early_rejection, self.strategy.name, self.num_candidates, self.batch_size
            )

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor | StrategyOutput:
        """Called by `generate` in place of its own decoding loop, with everything it has prepared."""
        check_model(model)
        check_generation_config(generation_config, self.num_candidates)
        check_model_kwargs(model, model_kwargs)
        if self.streamer is not None and len(input_ids) * self.num_return_sequences != 1:
            raise ArgumentError(
                f"`streamer` takes one response, but {len(input_ids) * self.num_return_sequences} are to be returned. "
                "Pass one prompt with num_return_sequences=1, or leave `streamer` out."
            )
        tokenizer = policy_tokenizer(model) if self.tokenizer is None else self.tokenizer
        token_prompts, prompts = self._prompts(model, input_ids, model_kwargs.get("attention_mask"), tokenizer)
        columns = {} if self.reward_kwargs is None else check_reward_kwargs(self.reward_kwargs, len(prompts))
        self.reward = as_reward_function(self.reward, device=model.device)
        # Before the first forward pass, so that what cannot be scored is not drawn.
        self.reward.check(prompts, **columns)
        # An encoder-decoder goes on from its decoder's tokens.
        mask = None if model.config.is_encoder_decoder else model_kwargs.get("attention_mask")
        continued = unpadded(input_ids, mask) if input_ids.shape[1] > 0 else [[] for _ in prompts]
        if not self.keep_top_k_50:
            logits_processor = without_default_top_k(model, logits_processor)
        sharding = Sharding(
            self.shard, model, len(input_ids), rows_are_independent(logits_processor, stopping_criteria)
        )
        RowCalls(logits_processor, stopping_criteria, len(input_ids), len(input_ids) * self.num_candidates).check(
            batch_size=self.batch_size,
            draws_again=self.strategy.num_extra_candidates(self.num_candidates, self.num_return_sequences) > 0,
            reviewed=self.early_rejection is not None,
            processes=sharding.num_processes,
        )
        own_seed = fresh_seed() if self.seed is None else self.seed
        seed = sharding.agree(own_seed, self._request(token_prompts, generation_config))
        keys = prompt_keys(seed, token_prompts)

        started = time.perf_counter()
        sampler = sharding.sampler(
            CandidateSampler,
            model=model,
            input_ids=input_ids,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            generation_config=generation_config,
            model_kwargs=model_kwargs,
            prompt_keys=keys,
            batch_size=self.batch_size,
            progress=self.progress,
        )
        pools = self._pools(sampler, tokenizer, prompts, columns, keys, sharding, continued)
        pools.seconds["prefill"] = time.perf_counter() - started
        pools.extend(range(len(prompts)), self.num_candidates)
        selected = self._select(pools, keys)
        first_pool = torch.stack([pools.comparable_rewards(row)[: self.num_candidates] for row in range(len(prompts))])
        if (advice := self.strategy.advice(first_pool)) is not None:
            warnings.warn(advice, ItpWarning, stacklevel=2)

        winners = pools.winners(selected)
        sequences = _sequences(input_ids, winners, generation_config)
        output: torch.Tensor | StrategyOutput = sequences
        if generation_config.return_dict_in_generate:
            output = self._output(sequences, pools, first_pool, selected, sampler)
        if self.streamer is not None:
            _stream(self.streamer, input_ids, winners[0][0])
        return output

    def _request(self, token_prompts: list, generation_config: GenerationConfig) -> dict[str, Any]:
        """What has to be the same in all processes that share a call."""
        settings = ("max_length", "temperature", "top_k", "top_p", "min_p", "return_dict_in_generate")
        return {
            "input_ids": token_prompts,
            "strategy": (self.strategy.name, self.strategy.settings()),
            "reward_model": self.reward.name,
            "reward_kwargs": json.dumps(self.reward_kwargs, default=str),
            **{
                name: getattr(self, name)
                for name in ("num_candidates", "num_return_sequences", "seed", "batch_size", "shard")
            },
            **{name: getattr(generation_config, name) for name in settings},
        }

    def _pools(
        self,
        sampler: CandidateSampler,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence],
        keys: Sequence[PromptKey],
        sharding: Sharding,
        continued: list[list[int]],
    ) -> CandidatePools:
        if isinstance(self.early_rejection, EarlyRejection):
            return RejectingPools(
                sampler,
                self.reward,
                tokenizer,
                prompts,
                sharding,
                columns,
                token_prompts=continued,
                early_rejection=self.early_rejection,
                keep=self.num_return_sequences,
                audited=[falls_within(key, self.early_rejection.audit) for key in keys],
            )
        return CandidatePools(sampler, self.reward, tokenizer, prompts, sharding, columns, token_prompts=continued)

    def _prompts(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        tokenizer: PreTrainedTokenizerBase,
    ) -> tuple[list, list[Prompt]]:
        """What identifies each prompt's stream of random numbers, and what the reward sees."""
        num_rows = len(input_ids)
        if self.prompts is not None:
            check_prompts(self.prompts, num_rows)
        in_tokens = True
        if self.input_prompts is not None:
            token_prompts: list = self.input_prompts
        elif not model.config.is_encoder_decoder and input_ids.shape[1] > 0:
            token_prompts = unpadded(input_ids, attention_mask)
        elif self.prompts is not None:
            # The decoder's tokens are no prompt: all rows start alike.
            token_prompts = [json.dumps(prompt, default=str) for prompt in self.prompts]
            in_tokens = False
        else:
            raise ArgumentError(
                "`prompts` has to be given where the input is not token ids, but is None. Pass one string or chat per "
                "input row."
            )
        if self.prompts is not None and in_tokens:
            warn_of_other_rows(self.prompts, token_prompts, tokenizer)
        prompts = self.prompts if self.prompts is not None else decoded_prompts(token_prompts, tokenizer)
        return token_prompts, list(prompts)

    def _select(self, pools: CandidatePools, keys: list[PromptKey]) -> torch.Tensor:
        """Indices of the winners `(B, k)`, drawing further candidates where the strategy asks for them."""
        extra = self.strategy.num_extra_candidates(self.num_candidates, self.num_return_sequences)
        selected: list[torch.Tensor | None] = [None] * len(keys)
        waiting = list(range(len(keys)))
        while True:
            started = time.perf_counter()
            for row in waiting:
                selected[row] = self._decide(row, pools.comparable_rewards(row), selection_generator(keys[row]))
            pools.seconds["selection"] += time.perf_counter() - started
            waiting = [row for row in waiting if selected[row] is None]
            if not waiting:
                return torch.stack([indices for indices in selected if indices is not None])
            # A quarter of the pool at a time: most prompts accept early, and a batch of one is slow.
            drawn = len(pools.rewards[waiting[0]]) - self.num_candidates
            if drawn >= extra:
                raise StrategyError(
                    f"Strategy {self.strategy.name!r} must decide on {drawn} candidates beyond the first "
                    f"{self.num_candidates}, as its `num_extra_candidates` says, but for prompt {waiting[0]} asked "
                    "for more. Correct its `decide`."
                )
            pools.extend(waiting, min(extra - drawn, math.ceil(self.num_candidates / 4)))

    def _decide(self, row: int, rewards: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
        """What the strategy decides for one prompt, checked: it may be another package's."""
        try:
            indices = self.strategy.decide(rewards, self.num_candidates, self.num_return_sequences, generator)
        except StrategyError as error:
            raise StrategyError(f"Prompt {row} cannot be selected for. {error}") from error
        if indices is None:
            return None
        return check_indices(indices, self.num_return_sequences, len(rewards), self.strategy.name, row)

    def _output(
        self,
        sequences: torch.Tensor,
        pools: CandidatePools,
        first_pool: torch.Tensor,
        selected: torch.Tensor,
        sampler: CandidateSampler,
    ) -> StrategyOutput:
        one_pool = self.strategy.num_extra_candidates(self.num_candidates, self.num_return_sequences) == 0
        table = pools.reward_table()
        candidates = pools.candidates()
        return StrategyOutput(
            sequences=sequences,
            rewards=table.gather(1, selected),
            candidates=candidates,
            candidate_rewards=table,
            probabilities=(
                check_law(self.strategy.probabilities(first_pool), first_pool, self.strategy.name)
                if one_pool
                else None
            ),
            selected=selected,
            diagnostics={
                "path": sampler.path,
                "path_reason": sampler.path_reason,
                "num_tokens": _lengths(candidates),
                "seconds": dict(pools.seconds),
                **self.strategy.diagnostics(first_pool),
                **self.strategy.selection_diagnostics(selected, self.num_candidates),
                **pools.diagnostics(selected),
            },
        )


def _sequences(
    input_ids: torch.Tensor, winners: list[list[torch.Tensor]], generation_config: GenerationConfig
) -> torch.Tensor:
    pad = generation_config._pad_token_tensor
    rows = [
        torch.cat([input_ids[row], response.to(input_ids.device)])
        for row, responses in enumerate(winners)
        for response in responses
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else int(pad))


def _lengths(candidates: list[list[torch.Tensor]]) -> torch.Tensor:
    """Length of every response `(B, P)`, 0 where none was drawn."""
    lengths = [torch.tensor([len(response) for response in pool], dtype=torch.long) for pool in candidates]
    return torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True, padding_value=0)


def _stream(streamer: BaseStreamer, input_ids: torch.Tensor, response: torch.Tensor) -> None:
    streamer.put(input_ids.cpu())
    for token in response:
        streamer.put(token[None])
    streamer.end()
