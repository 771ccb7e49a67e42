"""transformers without its bars and hints, and what it says of a fault."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Without the library's progress bars and hints, which are about other uses than ours."""
    before, hook = logging.get_verbosity(), logging.set_tqdm_hook(lambda _, given, __: logging.EmptyTqdm(*given))
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.set_tqdm_hook(hook)


def first_line(error: Exception) -> str:
    """What a library says of a fault, on one line and not too long."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")
