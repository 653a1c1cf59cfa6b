"""
The process of one contestant, `python -m benchmarks.worker`: answers every JSON line on stdin with another.

The first names the contestant, its workload and the options; each further one asks for a pass with its seed.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any, TextIO


def main() -> None:
    """Serve until there are no more requests."""
    # Send what libraries print to stderr, so that it does not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    try:
        _serve(job, answers)
    except Exception as error:
        _answer(answers, {"error": f"{type(error).__name__}: {error}"})
        raise


def _serve(job: dict[str, Any], answers: TextIO) -> None:
    import torch
    from transformers.utils import logging

    from benchmarks.contestants import NotPossible
    from benchmarks.memory import reset_peak, used_bytes
    from benchmarks.registry import make_contestant
    from benchmarks.workloads import Workload
    from hf_itp.errors import ItpWarning

    torch.set_num_threads(job["options"]["threads"])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The embedded reward model cuts prompts to 512 tokens, and warns of it.
    warnings.simplefilter("ignore", ItpWarning)
    try:
        contestant = make_contestant(job["contestant"], Workload.parse(job["workload"]), job["options"])
    except NotPossible as reason:
        _answer(answers, {"not_possible": str(reason)})
        return
    contestant.warm_up()
    contestant.synchronize()
    accelerator = torch.cuda.get_device_name(contestant.device) if contestant.device.type == "cuda" else None
    _answer(answers, {"resident_bytes": used_bytes(contestant.device), "accelerator": accelerator})
    for line in sys.stdin:
        reset_peak(contestant.device)
        _answer(answers, contestant.run(json.loads(line)["seed"]))


def _answer(answers: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=answers, flush=True)


if __name__ == "__main__":
    main()
