"""
The command line: reads text, calls the library, shows what comes back.

Imports everything heavy inside the command that needs it, so that `hf-itp --help` comes at once.
"""

from hf_itp.cli.app import app, main

__all__ = ["app", "main"]
