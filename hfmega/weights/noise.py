"""The noise of mutations: the same bits on every machine; the terms of a population are kept."""

from collections import OrderedDict
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hfmega.rng import normal_table, philox, raw_words
from hfmega.search.recipe import Noise
from hfmega.weights.layout import Layout

# The noise of a whole population is kept, else each individual would draw again what the last one let go: after 20
# generations of the default search that is about 72 terms on 2 % of the floats, 8.6 bytes a float of the network.
NOISE_CACHE_BYTES: Final = 32 << 20
NOISE_CACHE_BYTES_A_FLOAT: Final = 10
PIECE: Final = 1 << 16  # words of noise drawn at a time; even, so that pieces are those of one drawing


class NoiseCache:
    """Noise terms on a device, 6 bytes for each element that is hit; the oldest leave when there are too many.

    A term is kept as what decides it, (index int32 [hits], lots uint16 [hits]), since terms differ in little else.
    """

    def __init__(self, layout: Layout, limit: int, device: torch.device) -> None:
        self._layout, self._limit, self._device = layout, limit, device
        self._terms: OrderedDict[tuple[object, ...], tuple[Tensor, Tensor]] = OrderedDict()
        self._scaled: dict[float, Tensor] = {}
        self._bytes = 0

    def get(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """What `noise_values` says of a term, on the device: int32 (of huge networks int64) and float32 [hits]."""
        index, lots = self._drawn(noise)
        if noise.sigma not in self._scaled:
            table = scaled(noise.sigma)
            self._scaled[noise.sigma] = torch.from_numpy(table).to(self._device)
        return index, self._scaled[noise.sigma].index_select(0, lots.int())

    def _drawn(self, noise: Noise) -> tuple[Tensor, Tensor]:
        key = (noise.seed, noise.rate, noise.unit)
        if key not in self._terms:
            index, lots = noise_lots(noise, self._layout)
            narrow = index.astype(np.int32 if self._layout.size < 2**31 else np.int64)
            self._terms[key] = torch.from_numpy(narrow).to(self._device), torch.from_numpy(lots).to(self._device)
            self._bytes += narrow.nbytes + lots.nbytes
            while self._bytes > self._limit and len(self._terms) > 1:
                _, oldest = self._terms.popitem(last=False)
                self._bytes -= sum(part.nbytes for part in oldest)
        self._terms.move_to_end(key)
        return self._terms[key]


def noise_values(noise: Noise, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The elements that a noise term (of weight 1) hits: int64 [hits] into the flat vector; their float32 [hits]."""
    index, lots = noise_lots(noise, layout)
    return index, scaled(noise.sigma)[lots]


def scaled(sigma: float) -> NDArray[np.float32]:
    """The normal quantiles times a standard deviation: float32 [65536]; beyond what float32 holds they are infinite."""
    with np.errstate(over="ignore"):
        table: NDArray[np.float32] = normal_table() * np.float32(sigma)
    return table


def noise_lots(noise: Noise, layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    """The elements that a noise term hits, int64 [hits], and which of the normal quantiles each gets, uint16 [hits].

    Each tensor draws from its own generator, keyed by (seed, tensor name): 32 bits decide whether an element (or the
    whole tensor) is hit, 16 bits pick the normal quantile of an element that is.
    """
    threshold = round(noise.rate * 2**32)
    indices, lots = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
    for slot in layout.slots:
        if not slot.parameter:
            continue
        bits = philox(noise.seed, slot.name)
        size = slot.stop - slot.start
        hit = (
            hits(bits, size, threshold) if noise.unit == "element" else np.arange(size * hits(bits, 1, threshold).size)
        )
        indices.append(hit + slot.start)
        lots.append(raw_words(bits, len(hit), "<u2").astype(np.uint16, copy=False))
    return np.concatenate(indices), np.concatenate(lots)


def hits(bits: np.random.Philox, size: int, threshold: int) -> NDArray[np.int64]:
    """Which of the next `size` 32-bit words are below a threshold: int64 [hits]. Drawn in pieces that stay in cache."""
    starts = range(0, size, PIECE)
    found = [np.flatnonzero(raw_words(bits, min(PIECE, size - n), "<u4") < threshold) + n for n in starts]
    return np.concatenate([np.empty(0, np.int64), *found])
