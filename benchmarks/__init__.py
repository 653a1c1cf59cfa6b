"""
Measure `hf_itp` beside what a user would run instead: `python -m benchmarks`, see README.md.

The files that run the measurements (`__main__`, `interleave`, `workloads`, `summary`, `table`, `pictures`) import
neither torch nor `hf_itp`, because on Linux a process inherits the peak memory of its parent.
"""
