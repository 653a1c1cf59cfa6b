"""
Test that the wrapper is installed whoever imports transformers' generation module first, and however it is loaded.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

KNOWS = "; import inspect; print('strategy' in inspect.signature(transformers.LlamaForCausalLM.generate).parameters)"
SPEC = "importlib.util.find_spec('transformers.generation.utils')"


def says(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "before",
    [
        f"import importlib.util; {SPEC}",
        f"import importlib.util; [{SPEC} for _ in range(3)]",
        f"import importlib.util, copy; copy.copy({SPEC}.loader).get_source('transformers.generation.utils')",
    ],
)
def test_tool_that_asks_for_the_spec_first_changes_nothing(before):
    assert says(f"import hf_itp; {before}; import transformers{KNOWS}") == "True"


def test_module_of_a_spec_knows_the_keyword_as_well():
    code = f"""
    import hf_itp, importlib.util, inspect
    spec = {SPEC}
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print("strategy" in inspect.signature(module.GenerationMixin.generate).parameters)
    """
    assert says(code) == "True"


def test_finder_of_another_package_may_come_first():
    """The other finder works like import hooks: first on the path, and it asks only the standard finder."""
    code = """
    import hf_itp, sys
    from importlib.machinery import PathFinder

    class Hook:
        @staticmethod
        def find_spec(name, path=None, target=None):
            return PathFinder.find_spec(name, path, target) if name.startswith("transformers.") else None

    sys.meta_path.insert(0, Hook)
    import inspect, transformers
    print("strategy" in inspect.signature(transformers.LlamaForCausalLM.generate).parameters)
    """
    assert says(code) == "True"


def test_reloaded_module_knows_the_keyword_until_it_is_disabled():
    code = """
    import hf_itp, importlib, inspect, transformers.generation.utils as module
    def knows():
        importlib.reload(module)
        return "strategy" in inspect.signature(module.GenerationMixin.generate).parameters
    print(knows(), knows())
    from transformers import GenerationMixin
    hf_itp.disable()
    print(knows())
    hf_itp.enable()
    print(knows())
    """
    assert says(code).split() == ["True", "True", "False", "True"]


def test_threads_that_import_at_once_wrap_once():
    code = """
    import hf_itp, threading
    results, start = [], threading.Barrier(4)
    def work():
        start.wait()
        # Not `from transformers import ...`, whose lazy look-up loses races of its own.
        from transformers.generation.utils import GenerationMixin
        results.append(GenerationMixin.generate)
    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(len(results), len(set(results)), hasattr(results[0]._hf_itp_original, "_hf_itp_original"))
    """
    assert says(code).split() == ["4", "1", "False"]


def test_wrapper_put_over_ours_later_stays_over_it():
    code = """
    import hf_itp
    from transformers import GenerationMixin
    def theirs(self, *args, **kwargs): return "theirs"
    GenerationMixin.generate = theirs
    import colorsys
    print(GenerationMixin.generate is theirs)
    """
    assert says(code) == "True"
