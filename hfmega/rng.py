"""Random numbers with the same bits on every machine and every NumPy version.

NumPy guarantees the raw integers of a bit generator, but not what `Generator` makes of them (NEP 19). Every draw
of hfmega therefore starts from raw Philox integers, keyed by a sha256 of what the draw is for. A generator that is
keyed by its place (seed, generation, tensor name) has no state to save: a resumed run makes it again.
"""

import hashlib
from functools import cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hfmega.errors import HfmegaError

LEVELS: Final = 1 << 16
NORMAL_TABLE_SHA256: Final = "55d9ba3bb184877f40f8091824820de9f0757438104d5cbcc8042171d9bdfa88"


def philox(*key: object) -> np.random.Philox:
    """A bit generator keyed by sha256 of the key's parts."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


class Draws:
    """Scalar draws from one keyed generator."""

    def __init__(self, *key: object) -> None:
        self._bits = philox(*key)

    def uniform(self) -> float:
        """A float64 in [0, 1): the top 53 bits of one raw integer."""
        return (self.integer() >> 11) * 2.0**-53

    def below(self, limit: int) -> int:
        """An integer in [0, limit), by multiplication and shift (bias below limit / 2**64)."""
        return (self.integer() * limit) >> 64

    def integer(self) -> int:
        """64 raw bits."""
        return int(self._bits.random_raw())


def permutation(size: int, *key: object) -> NDArray[np.int64]:
    """A permutation of range(size): the stable order of as many raw integers."""
    return np.argsort(philox(*key).random_raw(size), kind="stable")


@cache
def normal_table() -> NDArray[np.float32]:
    """The standard normal's quantiles at (i + 1/2) / 65536, rounded to multiples of 1/4096: float32 [65536].

    The rounding is far coarser than the last-bit differences between platforms' log and sqrt, so the table has the
    same bits everywhere; its hash is checked all the same.
    Raises HfmegaError on a platform whose arithmetic gives another table.
    """
    quantile = NormalDist().inv_cdf
    half = [round(quantile((LEVELS // 2 + i + 0.5) / LEVELS) * 4096) / 4096 for i in range(LEVELS // 2)]
    table = np.array([-z for z in reversed(half)] + half, dtype="<f4")
    if hashlib.sha256(table.tobytes()).hexdigest() != NORMAL_TABLE_SHA256:
        raise HfmegaError(
            "this platform's arithmetic gives another table of normal quantiles: a lineage made here would not replay."
        )
    return table.astype(np.float32)


def raw_words(bits: np.random.Philox, count: int, word: str) -> NDArray[np.uint64]:
    """The next raw integers of `bits` cut into `count` little-endian words of dtype `word`."""
    per_integer = 8 // np.dtype(word).itemsize
    raw = bits.random_raw(-(-count // per_integer)).astype("<u8", copy=False)
    return raw.view(word)[:count]
