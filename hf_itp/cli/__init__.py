"""
The command line. Everything heavy is imported inside the command that needs it, so `hf-itp --help` comes at once.

Holds no rule of its own: it reads text, calls `generate`, and shows what came back.
"""

from hf_itp.cli.app import app, main

__all__ = ["app", "main"]
