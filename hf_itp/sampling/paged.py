"""
Candidates by transformers' own continuous batching: requests join and leave a running batch, over pages of cache.

It draws what our own loop draws: every candidate from the stream of its own key, so a seed means the same on both.
Knows nothing of rewards or strategies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from hf_itp.errors import ItpError, UnsupportedModelError
from hf_itp.sampling.padding import unpadded
from hf_itp.sampling.paged_support import attention_for_pages, check_pages_can_serve, page_budget
from hf_itp.sampling.progress import responses_bar
from hf_itp.sampling.shared_prefix import same_logits
from hf_itp.sampling.shared_prefix.view import model_view
from hf_itp.sampling.streams import PromptKey, candidate_key
from hf_itp.sampling.token_sampler import TokenSampler

# How often to look whether the thread that decodes still lives; results come as soon as they are there.
_POLL_SECONDS = 1.0
# Models whose passes over pages agreed with their own, and under which attention.
_verified: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


@dataclass
class PagedSampler:
    """
    Draws candidates for the prompts of one call of `generate` with `model.init_continuous_batching`.

    Takes what [`CandidateSampler`] takes. The model itself is not touched: the batches run on a view of it.

    Raises:
        `UnsupportedModelError`: If continuous batching cannot run the model as it is.
        `ArgumentError`: If it would drop something that was asked for.
    """

    model: Any
    input_ids: torch.Tensor
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: GenerationConfig
    model_kwargs: dict[str, Any]
    prompt_keys: list[PromptKey]
    batch_size: int | None = None
    progress: bool | None = None

    path = "paged"

    def __post_init__(self) -> None:
        self._token_sampler = TokenSampler(self.logits_processor, bool(self.generation_config.do_sample))
        check_pages_can_serve(
            self.model, self.input_ids, self.model_kwargs, self._token_sampler, self.stopping_criteria
        )
        self._prompts = unpadded(self.input_ids, self.model_kwargs.get("attention_mask"))
        self._max_new_tokens = self.generation_config.max_length - self.input_ids.shape[1]
        if _verified.get(self.model) != self.model.config._attn_implementation:
            self._try_two_steps()
            _verified[self.model] = self.model.config._attn_implementation

    def draw(self, candidates: list[tuple[int, int]]) -> list[torch.Tensor]:
        """
        One response per pair of a prompt (its row) and the index of a candidate.

        Args:
            candidates (`list[tuple[int, int]]`): Pairs of prompt and candidate index.

        Returns:
            `list[torch.LongTensor]`: Tokens of each response on the CPU, its end token included, without padding.

        Raises:
            `ItpError`: If a request fails; continuous batching itself would log it and return fewer.
        """
        requests = _requests(candidates, self._prompts)
        place = {name: place for request in requests for name, place in request.places.items()}
        keys = [candidate_key(self.prompt_keys[prompt], index) for prompt, index in candidates]
        streams = {name: (keys[at], len(self._prompts[candidates[at][0]])) for name, at in place.items()}
        processor = _RowStreams(self._token_sampler, streams)
        config = GenerationConfig(
            max_new_tokens=self._max_new_tokens,
            eos_token_id=_end_tokens(self.generation_config),
            # The draw is in the scores already.
            do_sample=False,
        )
        with responses_bar(len(candidates), self.progress) as bar:
            return self._run(requests, candidates, processor, config, bar.update)

    def _try_two_steps(self) -> None:
        """
        The first prompt and one token after it: the model's own pass has to agree. No list of what attention over
        pages leaves out is complete.
        """
        prompt = self._prompts[0]
        processor = _RowStreams(self._token_sampler, {"trial": (0, len(prompt))}, keeps_scores=True)
        config = GenerationConfig(max_new_tokens=2, eos_token_id=[-1], do_sample=False)
        [response] = self._run([_Request(0, "trial", {"trial": 0})], [(0, 0)], processor, config)
        whole = torch.tensor([[*prompt, int(response[0])]], device=self.input_ids.device)
        last = {"logits_to_keep": 2} if self.model._supports_logits_to_keep() else {}
        own = self.model(input_ids=whole, use_cache=False, return_dict=True, **last).logits[0, -2:]
        if not same_logits(torch.cat(processor.scores), own):
            raise UnsupportedModelError(
                f"engine='paged' cannot run {type(self.model).__name__}: over pages its logits are not the model's "
                "own. Pass engine='native'."
            )

    def _run(
        self,
        requests: list[_Request],
        candidates: list[tuple[int, int]],
        processor: _RowStreams,
        config: GenerationConfig,
        on_finished: Callable[[int], Any] = lambda count: None,
    ) -> list[torch.Tensor]:
        place = {name: place for request in requests for name, place in request.places.items()}
        lengths = [len(self._prompts[prompt]) + config.max_new_tokens for prompt, _ in candidates]
        responses: dict[int, torch.Tensor] = {}
        with self._manager(processor, config, lengths) as manager:
            for request in requests:
                manager.num_return_sequences = len(request.places)
                manager.add_request(self._prompts[request.prompt], request.name)
            while len(responses) < len(candidates):
                result = manager.get_result(timeout=_POLL_SECONDS)
                if result is None:
                    if not manager.is_running():
                        raise _failure(manager.background_thread_status.fatal_error)
                    continue
                if result.error is not None:
                    raise _failure(result.error, candidates[place[result.request_id]])
                responses[place[result.request_id]] = torch.tensor(result.generated_tokens, dtype=torch.long)
                on_finished(1)
        return [responses[at] for at in range(len(candidates))]

    @contextmanager
    def _manager(
        self, processor: _RowStreams, config: GenerationConfig, lengths: list[int]
    ) -> Iterator[ContinuousBatchingManager]:
        view = model_view(self.model, attention_for_pages(self.model))
        # One the caller keeps on the model was made for other requests.
        vars(view).pop("_cached_continuous_batching_manager", None)
        manager = view.init_continuous_batching(
            generation_config=config,
            continuous_batching_config=ContinuousBatchingConfig(
                **page_budget(view, lengths),
                max_requests_per_batch=self.batch_size or len(lengths),
                # A recorded pass, or one begun before the last has ended, cannot look up whose turn it is.
                use_cuda_graph=False,
                use_async_batching=False,
                auto_switch_to_flash=False,
            ),
        )
        manager.logit_processor = processor
        # It would seed torch's global generator, which nothing here reads. Remove when it takes a generator.
        manager.distributed_helper.set_tp_seed = lambda seed, device: None
        manager.start()
        try:
            yield manager
        finally:
            manager.stop(hard_stop=True)
            manager.destroy()


class _RowStreams(ContinuousBatchingLogitsProcessorList):
    """
    Leaves one token possible for each row: the one drawn from the stream of the row's own key.

    Args:
        token_sampler ([`TokenSampler`]): Draws.
        streams (`dict[str, tuple[int, int]]`): Key and length of the prompt by name of the request.
        keeps_scores (`bool`, *optional*, defaults to `False`): Keep every pass's logits `(R, V)` in `scores`.
    """

    def __init__(self, token_sampler: TokenSampler, streams: dict[str, tuple[int, int]], keeps_scores: bool = False):
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._token_sampler, self._streams = token_sampler, streams
        self._rows: list[tuple[int, int]] = []
        self._keeps_scores = keeps_scores
        self.scores: list[torch.Tensor] = []

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: torch.Tensor) -> torch.Tensor:
        """Told which requests the next pass runs, in the order of its rows."""
        self._rows = []
        for request in requests_in_batch:
            if request.has_new_token:
                key, prompt_length = self._streams[request.state.request_id]
                # Not its count of generated tokens, which starts anew when a request loses its pages.
                self._rows.append((key, request.state.position_offset - prompt_length))
        return arg_storage

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, logits_processor_args: Any) -> torch.Tensor:
        if self._keeps_scores and self._rows:
            self.scores.append(scores[: len(self._rows)].clone())
        only = torch.full_like(scores, -torch.inf)
        rows = len(self._rows)
        if rows:
            keys, steps = torch.tensor(self._rows, device=scores.device).unbind(dim=-1)
            processed = self._token_sampler.process(input_ids, scores[:rows])
            only[torch.arange(rows, device=scores.device), self._token_sampler.draw(processed, keys, steps)] = 0.0
        return only


@dataclass
class _Request:
    """One prompt to run and, by the names continuous batching gives its copies, which candidates they are."""

    prompt: int
    name: str
    places: dict[str, int]


def _requests(candidates: list[tuple[int, int]], prompts: list[list[int]]) -> list[_Request]:
    places = defaultdict(list)
    for place, (prompt, _) in enumerate(candidates):
        places[prompt].append(place)
    requests = []
    for prompt, own in places.items():
        # A request forks before the last token of its prompt, so it has to have one more.
        groups = [own] if len(prompts[prompt]) > 1 else [[place] for place in own]
        for number, (parent, *children) in enumerate(groups):
            name = f"prompt{prompt}.{number}"
            names = {f"{name}__child#{child}": place for child, place in enumerate(children)}
            requests.append(_Request(prompt, name, {name: parent, **names}))
    return requests


def _end_tokens(generation_config: GenerationConfig) -> list[int]:
    end = generation_config.eos_token_id
    if end is None:
        return [-1]
    return list(end) if isinstance(end, (list, tuple)) else [int(end)]


def _failure(reason: Any, candidate: tuple[int, int] | None = None) -> ItpError:
    whose = "a request" if candidate is None else f"candidate {candidate[1]} of prompt {candidate[0]}"
    error = ItpError(
        f"Continuous batching of transformers could not decode {whose}: {reason}. Pass engine='native', or a smaller "
        "batch_size if memory was short."
    )
    error.__cause__ = reason if isinstance(reason, BaseException) else None
    return error
