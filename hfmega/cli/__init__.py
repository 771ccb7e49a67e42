"""The command line."""

from hfmega.cli.commands import cli, main

__all__ = ["cli", "main"]
