"""Test that a verdict on a model is remembered per question, for every thread, as long as the model lives."""

from __future__ import annotations

import gc
import threading
import weakref

from torch import nn

from hf_itp.models.agreement import Verdicts


def test_verdicts_are_kept_per_model_and_question():
    verdicts, one, other = Verdicts(), nn.Identity(), nn.Identity()
    assert verdicts.remember(one, False) is False
    verdicts.remember(one, "drops its cap", ("sdpa", True))
    assert (verdicts.recall(one), verdicts.recall(one, ("sdpa", True))) == (False, "drops its cap")
    assert verdicts.recall(one, ("eager", True)) is None and verdicts.recall(other) is None
    verdicts.remember(one, True)
    assert verdicts.recall(one) is True


def test_memory_keeps_no_model_alive():
    verdicts, model = Verdicts(), nn.Identity()
    verdicts.remember(model, True)
    left = weakref.ref(model)
    del model
    gc.collect()
    assert left() is None


def test_threads_may_ask_and_answer_at_once():
    verdicts, models = Verdicts(), [nn.Identity() for _ in range(20)]

    def use(number):
        for question in range(200):
            for model in models:
                verdicts.recall(model, question)
                verdicts.remember(model, number, question)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(verdicts.recall(model, question) in range(4) for model in models for question in range(200))
