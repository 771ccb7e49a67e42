"""`python -m hfmega`, for torchrun and accelerate launch."""

from hfmega.cli.commands import main

main()
