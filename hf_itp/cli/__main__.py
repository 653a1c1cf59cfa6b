"""`python -m hf_itp.cli`: the program where only a module can be named, as after `accelerate launch -m`."""

from hf_itp.cli.app import main

main()
