"""
The decoding method behind `strategy=`: draw candidates, score them, select, return what `generate` returns.

A [`StrategyDecoding`] holds one request and is called through transformers' `custom_generate` hook. Knows nothing of
how `generate` is patched.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from hf_itp.checks import check_choice, check_count, check_indices, check_law, check_num_return_sequences
from hf_itp.distributed.processes import launched_processes
from hf_itp.distributed.sharding import SHARDS, ShardedSource, Sharding
from hf_itp.errors import ArgumentError, ItpWarning, StrategyError
from hf_itp.generation.candidates import CandidatePools, CandidateSource
from hf_itp.generation.columns import check_reward_kwargs
from hf_itp.generation.early_rejection import EarlyRejection, check_early_rejection
from hf_itp.generation.keywords import Keywords
from hf_itp.generation.output import StrategyOutput
from hf_itp.generation.prompt_rows import warn_of_other_rows
from hf_itp.generation.reviewer import Reviewer
from hf_itp.policies.checks import check_generation_config, check_model, check_model_kwargs, policy_tokenizer
from hf_itp.prompts import check_prompts, decoded_prompts
from hf_itp.rewards import RewardFunction, as_reward_function
from hf_itp.rewards.base import Prompt
from hf_itp.rewards.resolve import checked_reward
from hf_itp.sampling import CandidateSampler
from hf_itp.sampling.call import DecodingCall
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.row_calls import RowCalls
from hf_itp.sampling.settings import without_default_top_k
from hf_itp.sampling.streams import PromptKey, falls_within, fresh_seed, prompt_keys, selection_generator
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

    It also takes every keyword of `generate` by name ([`Keywords`]).

    Examples:

    ```python
    >>> from hf_itp import StrategyDecoding, get_strategy
    >>> from hf_itp.rewards import as_reward_function
    >>> def brevity(prompts, completions, **kwargs):
    ...     return [-float(len(completion)) for completion in completions]
    >>> decoding = StrategyDecoding(get_strategy("best_of_n"), as_reward_function(brevity), num_candidates=4)

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
        if self.reward_kwargs is not None:
            self.reward_kwargs = check_reward_kwargs(self.reward_kwargs)
        if self.shard is not None and self.early_rejection is not None:
            raise ArgumentError(
                f"`shard` must be absent with `early_rejection`, got {self.shard!r}: all candidates of a call must be "
                "in one process. Leave one of them out."
            )
        if self.early_rejection is not None:
            self.early_rejection = check_early_rejection(
                self.early_rejection, self.strategy.name, self.num_candidates, self.batch_size
            )

    def __call__(
        self, model: PreTrainedModel, input_ids: torch.Tensor, **prepared: Any
    ) -> torch.Tensor | StrategyOutput:
        """Decode in place of `generate`'s own loop, which hands over everything it has prepared."""
        # Check what is asked for, before the first forward pass.
        call = DecodingCall.of(model, input_ids, **prepared)
        self._check(call)
        tokenizer = policy_tokenizer(model) if self.tokenizer is None else self.tokenizer
        token_prompts, prompts = self._prompts(call, tokenizer)
        columns = {} if self.reward_kwargs is None else check_reward_kwargs(self.reward_kwargs, len(prompts))
        self.reward = as_reward_function(self.reward, device=model.device)
        self.reward.check(prompts, **columns)
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
        first_pool = torch.stack([pools.comparable_rewards(row) for row in range(len(call))])

        # Normalize: the law of the first winner given the pool.
        law = self._law(first_pool) if self.strategy.takes_law else None

        # Accept: pick the winners by that law, or from proposals that are drawn until enough are accepted.
        selected = self._select(pools, law, extra, keys)
        if (advice := self.strategy.advice(first_pool)) is not None:
            warnings.warn(advice, ItpWarning, stacklevel=2)
        winners = pools.responses(selected.tolist())

        # Return them as `generate` does.
        output: Any = _sequences(call, winners)
        if call.generation_config.return_dict_in_generate:
            if law is None and extra == 0:
                law = self._law(first_pool)
            output = self._output(output, pools, first_pool, law, selected, source.sampler)
        if self.streamer is not None:
            _stream(self.streamer, input_ids, winners[0][0])
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
                for name in ("num_candidates", "num_return_sequences", "seed", "batch_size", "shard")
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
        # An encoder-decoder continues its decoder's tokens.
        continued = unpadded(call.input_ids, call.attention_mask) if call.input_ids.shape[1] > 0 else [[]] * len(call)
        return CandidateSource(
            call if sharding is None else sharding.part(call),
            self.reward,
            tokenizer,
            [prompts[row] for row in rows],
            {name: [column[row] for row in rows] for name, column in columns.items()},
            [continued[row] for row in rows],
            overlaps=sharding is None,
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

    def _law(self, first_pool: torch.Tensor) -> torch.Tensor:
        return check_law(self.strategy.probabilities(first_pool), first_pool, self.strategy.name)

    def _select(
        self, pools: CandidatePools, law: torch.Tensor | None, extra: int, keys: list[PromptKey]
    ) -> torch.Tensor:
        """Return the indices of the winners `(B, k)`; draw up to `extra` further candidates as the strategy asks."""
        selected: list[torch.Tensor | None] = [None] * len(keys)
        waiting = list(range(len(keys)))
        while True:
            started = time.perf_counter()
            for row in waiting:
                known = () if law is None else (law[row],)
                selected[row] = self._decide(row, pools.comparable_rewards(row), keys[row], *known)
            pools.seconds["selection"] += time.perf_counter() - started
            waiting = [row for row in waiting if selected[row] is None]
            if not waiting:
                return torch.stack([indices for indices in selected if indices is not None])
            # A quarter of the pool at a time: most prompts accept early, and a batch of one is slow.
            drawn = len(pools.rewards[waiting[0]]) - self.num_candidates
            if drawn >= extra:
                raise StrategyError(
                    f"Strategy {self.strategy.name!r} must decide on {drawn} candidates beyond the first "
                    f"{self.num_candidates}, as its `num_extra_candidates` says, got a call for more for prompt "
                    f"{waiting[0]}. Correct its `decide`."
                )
            pools.extend(waiting, min(extra - drawn, math.ceil(self.num_candidates / 4)))

    def _decide(self, row: int, rewards: torch.Tensor, key: PromptKey, *law: torch.Tensor) -> torch.Tensor | None:
        """Return what the strategy decides for one prompt, checked: it may be another package's."""
        generator = selection_generator(key)
        try:
            indices = self.strategy.decide(rewards, self.num_candidates, self.num_return_sequences, generator, *law)
        except StrategyError as error:
            raise StrategyError(f"No response to prompt {row} can be selected. {error}") from error
        if indices is None:
            return None
        return check_indices(indices, self.num_return_sequences, len(rewards), self.strategy.name, row)

    def _output(
        self,
        sequences: torch.Tensor,
        pools: CandidatePools,
        first_pool: torch.Tensor,
        law: torch.Tensor | None,
        selected: torch.Tensor,
        sampler: CandidateSampler,
    ) -> StrategyOutput:
        table, candidates = pools.reward_table(), pools.responses()
        rewards = table.gather(1, selected)
        known = (law,) if self.strategy.takes_law else ()
        diagnostics = {
            "path": sampler.path,
            "path_reason": sampler.path_reason,
            "num_tokens": _lengths(candidates),
            "seconds": dict(pools.seconds),
            **self.strategy.diagnostics(first_pool, *known),
            **self.strategy.selection_diagnostics(selected, self.num_candidates),
            **pools.diagnostics(rewards[:, 0]),
        }
        return StrategyOutput(
            sequences=sequences, rewards=rewards, candidates=candidates, candidate_rewards=table, probabilities=law,
            selected=selected, diagnostics=diagnostics,
        )  # fmt: skip


def _sequences(call: DecodingCall, winners: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return prompt and response of each winner, padded on the right."""
    pad = call.generation_config._pad_token_tensor
    rows = [
        torch.cat([call.input_ids[row], response.to(call.input_ids.device)])
        for row, responses in enumerate(winners)
        for response in responses
    ]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else int(pad))


def _lengths(candidates: list[list[torch.Tensor]]) -> torch.Tensor:
    """Return the length of every response `(B, P)`, 0 where none was drawn."""
    lengths = [torch.tensor([len(response) for response in pool], dtype=torch.long) for pool in candidates]
    return torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True, padding_value=0)


def _stream(streamer: BaseStreamer, input_ids: torch.Tensor, response: torch.Tensor) -> None:
    streamer.put(input_ids.cpu())
    for token in response:
        streamer.put(token[None])
    streamer.end()
