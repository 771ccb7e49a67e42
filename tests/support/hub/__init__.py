"""A small Hugging Face Hub for tests: real clients talk to it over HTTP; its repositories are on disk."""

from .server import Fault, Hub

__all__ = ["Fault", "Hub"]
