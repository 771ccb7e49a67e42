"""A finished merge as Python and notebooks see it."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hfmega.data.pixels import as_seen
from hfmega.hub.pull import pull
from hfmega.hub.push import Push
from hfmega.merging.publish import publish
from hfmega.models import library
from hfmega.output import Output
from hfmega.report import card, wording
from hfmega.report.lineage import Lineage, Reference
from hfmega.report.markdown import inert
from hfmega.weights.checkpoint import load_weights


@dataclass(frozen=True, repr=False)
class Merge:
    """A finished merge: its folder, and everything that was measured."""

    folder: Path
    lineage: Lineage

    @property
    def verdict(self) -> str:
        """`better`, `no difference shown` or `worse`: against the best source."""
        return self.lineage.result.verdict

    @property
    def accuracy(self) -> float:
        """Accuracy on the test images."""
        return self.lineage.result.accuracy

    @property
    def gain(self) -> float:
        """Accuracy over that of the best source."""
        return self.lineage.result.gain

    @property
    def references(self) -> tuple[Reference, ...]:
        """The models that the merge is shown against, on the same test images."""
        return self.lineage.references

    def load(self) -> nn.Module:
        """Load the network with its weights, in eval mode."""
        checkpoint = pull(str(self.folder))
        model = library.build(checkpoint.spec)
        library.load_into(checkpoint.spec, model, load_weights(checkpoint))
        return model.eval()

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """From an image to what the network takes: float32 [channels, height, width]; put several into a batch."""
        spec = pull(str(self.folder)).spec
        pixels, normalize = library.transform(spec), library.normalizer(spec, torch.device("cpu"))
        mode = spec.preprocessing.mode
        return lambda image: normalize(pixels(as_seen(image, mode))[None])[0]

    def push_to_hub(
        self, repo_id: str, push_anyway: bool = False, push_sources: bool = False, **how: Any
    ) -> str | None:
        """Publish the folder as `hfmega.push` does; returns the URL, or None for a kept source. how: as `Push`."""
        return publish(self.folder, Push(repo_id, **how), Output(muted=True), push_anyway, push_sources)

    def __repr__(self) -> str:
        return f"Merge({str(self.folder)!r}): {wording.verdict(self.lineage)}"

    def _repr_markdown_(self) -> str:
        """The verdict, the comparison and its picture, for notebooks."""
        columns, rows = card.comparison_rows(self.lineage)
        lines = [" | ".join(columns), "|".join(["---", *["---:"] * (len(columns) - 1)])]
        lines += [" | ".join(inert(cell) for cell in row) for row in rows]
        table = "\n".join(f"| {line} |" for line in lines)
        picture = self.folder / card.FIGURES / "comparison.png"
        shown = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
        image = f"\n\n![accuracy on the test images](data:image/png;base64,{shown})" if shown else ""
        return f"**{inert(wording.verdict(self.lineage))}**\n\n{table}{image}"
