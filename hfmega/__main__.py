"""`python -m hfmega`, for torchrun and accelerate launch."""

from hfmega.cli import main

main()
