"""`python -m hf_itp.cli`: the program as a module, for `accelerate launch -m hf_itp.cli`."""

from hf_itp.cli.app import main

main()
