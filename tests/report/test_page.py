"""report.html: from a lineage alone, with nothing from outside it, and inert whatever names say. 5 seconds."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from support.commands import run
from support.places import ROOT
from support.specs import spec

from hfmega.report import charts, page, thumbnails, tree_figure
from hfmega.report import lineage as lineages
from hfmega.report.thumbnails import Disagreement

CARDS = sorted(path.parent for path in (ROOT / "cards").rglob("lineage.json"))
HOSTILE = "</script><img src=http://evil.example/x onerror=alert(1)>'\"{{7*7}}\u202e"
ADDRESS = re.compile(r"(?:https?:)?//[\w.-]+\.\w+|url\(|@import|<(?:link|iframe|object|embed|base)\b", re.IGNORECASE)


class Page(HTMLParser):
    """What a browser would find: elements, the addresses that they name, handlers, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "action", "data", "srcset", "xlink:href"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def of(folder: Path) -> lineages.Lineage:
    return lineages.read(folder / "lineage.json")


@pytest.fixture(scope="module")
def distilled() -> lineages.Lineage:
    return of(ROOT / "cards" / "resnet8-distilled")


def test_the_tree_says_who_taught_the_result(distilled: lineages.Lineage) -> None:
    assert distilled.last_mile is not None
    start_stands = replace(distilled, last_mile=replace(distilled.last_mile, stands=False))
    by_labels = replace(distilled, last_mile=replace(distilled.last_mile, distill=False, fine_tune=True))
    for made, said in ((distilled, "taught by the ensemble"), (by_labels, "taught by labels"), (start_stands, None)):
        drawn, shown = tree_figure.merged_lines(made), charts.node_lines(made, made.nodes[-1])
        assert [line for line in (*drawn, *shown) if "taught" in line] == ([said, said] if said else [])
        assert ("BN re-estimated" in drawn) == (said is None)


SPEC = spec(architecture="resnet8_cifar", num_classes=10)


def shown(label: str = "cat") -> tuple[Disagreement, ...]:
    pixels = torch.arange(3 * 80 * 100, dtype=torch.uint8).reshape(3, 80, 100)
    return tuple(Disagreement(label, label, "dog", thumbnails.thumbnail(pixels, "RGB")) for _ in range(2))


@pytest.mark.parametrize("folder", CARDS, ids=lambda folder: folder.name)
def test_every_lineage_that_there_is_gives_a_report(folder: Path, tmp_path: Path) -> None:
    """Old ones too: with what they have; those of transformers' networks where that is installed."""
    if "transformers_version" in (folder / "config.json").read_text(encoding="utf-8"):
        pytest.importorskip("transformers")
    made = of(folder)
    path = page.write(made, folder, target=tmp_path / "report.html")
    seen = Page(path.read_text(encoding="utf-8"))
    assert {"comparison", "tree", "commands", "facts"} <= set(seen.ids)
    assert ("search" in seen.ids) == any(node.history for node in made.nodes)
    assert all(address.startswith("#") and address[1:] in seen.ids for address in seen.addresses)
    assert f"{100 * made.result.accuracy:.1f} %" in seen.text
    assert made.result.sha256 in seen.text


def test_nothing_lies_outside_the_file(distilled: lineages.Lineage) -> None:
    text = page.text(distilled, SPEC, shown())
    assert ADDRESS.findall(text) == []
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in Page(text).addresses)
    assert "default-src 'none'; img-src data:;" in text
    assert ADDRESS.search(text.replace("</main>", '<img src="//a.example/x">'))  # it would be found


def test_names_from_outside_are_text(distilled: lineages.Lineage) -> None:
    sources = tuple(replace(one, name=f"{HOSTILE}{k}", license=HOSTILE) for k, one in enumerate(distilled.sources))
    classes = tuple(replace(one, name=HOSTILE) for one in distilled.result.per_class)
    hostile = replace(distilled, sources=sources, architecture=HOSTILE, notes=(HOSTILE,), leak=HOSTILE,
                      environment={HOSTILE: HOSTILE}, settings={**distilled.settings, "tree": HOSTILE},
                      result=replace(distilled.result, per_class=classes))  # fmt: skip
    new = {old.name: one.name for old, one in zip(distilled.sources, sources, strict=True)}
    inputs = [tuple(new.get(name, name) for name in node.inputs) for node in distilled.nodes]
    nodes = tuple(replace(node, inputs=names) for node, names in zip(distilled.nodes, inputs, strict=True))
    hostile = replace(hostile, nodes=nodes)
    seen, plain = Page(page.text(hostile, SPEC, shown(HOSTILE))), Page(page.text(distilled, SPEC, shown()))
    assert (seen.handlers, seen.tags.count("script")) == ([], 1)
    assert set(seen.tags) == set(plain.tags)
    assert seen.addresses == plain.addresses or all(a.startswith(("#", "data:")) for a in seen.addresses)
    assert "\u202e" not in page.text(hostile, SPEC, shown(HOSTILE))
    assert "{{7*7}}" in seen.text


def test_it_reads_without_script(distilled: lineages.Lineage) -> None:
    """What the script shows or hides is in the page before it runs."""
    text = page.text(distilled, SPEC).split("<script>")[0]
    for said in (
        "hfmega verify .",
        "hfmega replay .",
        "merge-3, the result",
        f"generation 5: best {distilled.nodes[-1].history[4].best:.4f}",
        "resnet8-s46",
    ):
        assert said in text
    assert re.search(r"^\.panel \{[^}]*display", text, re.MULTILINE) is None
    assert ".scripted { display: none; }" in text


def test_images_are_small_and_may_be_left_out(distilled: lineages.Lineage, tmp_path: Path) -> None:
    import base64
    import io

    from PIL import Image

    with_images, without = page.text(distilled, SPEC, shown()), page.text(distilled, SPEC)
    assert with_images.count("data:image/png") == 2
    assert page.without_images(with_images) == without
    picture = Image.open(io.BytesIO(base64.b64decode(shown()[0].image.removeprefix("data:image/png;base64,"))))
    assert picture.size == (64, 51)
    assert thumbnails.thumbnail(torch.zeros(1, 8, 8, dtype=torch.uint8), "L").startswith("data:image/png;base64,")


def test_a_damaged_file_of_images_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(ROOT / "cards" / "resnet8-distilled", tmp_path / "out")
    (folder / ".hfmega").mkdir()
    (folder / ".hfmega" / "disagreements.json").write_text("[{]")
    assert "disagreements.json is damaged" in run("report", folder).complaint
    assert run("report", folder, "--no-images", "--json").json == {"output": str(folder / "report.html")}
    (folder / ".hfmega" / "disagreements.json").write_text(
        '[{"label": "a", "merge": "a", "best_source": "b", "image": "http://evil.example/x.png"}]'
    )
    assert run("report", folder, "-o", tmp_path / "r.html").code == 0
    assert "evil" not in (tmp_path / "r.html").read_text()


def test_what_is_no_merge_is_said_to_be_none(tmp_path: Path) -> None:
    assert run("report", tmp_path).complaint.endswith("it is not a merge of hfmega.")
