"""The card of a merge of fifty sources stays a page; nothing of what decides is left out. 4 seconds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.places import ROOT
from support.specs import spec

from hfmega.report import card, charts, figures, folding, lineage, page, tree_figure, wording
from hfmega.report.lineage import Candidate, Lineage, Reference
from hfmega.search.recipe import Recipe

MADE = ROOT / "cards" / "resnet8-s44-s45" / "lineage.json"


def of(count: int, merges: int = 1) -> Lineage:
    """A real lineage of two sources, told of more: source k has k thousandths more accuracy, and the coefficient k."""
    made = lineage.read(MADE)
    coefficients = tuple(k / 1000 for k in range(count))
    recipe = Recipe(coefficients)
    first = made.sources[0]
    names = [f"source-{k}" for k in range(count)]
    sources = [replace(first, name=n, sha256=f"{k:064x}", accuracy=0.6 + k / 1000) for k, n in enumerate(names)]
    references: list[Reference] = []
    for kind, end, bonus in (("source", "", 0.0), ("calibrated source", ", calibrated", 0.05)):
        for k, name in enumerate(names):
            accuracy = 0.6 + k / 1000 + bonus
            interval = (accuracy - 0.01, accuracy + 0.01)
            references.append(Reference(f"{name}{end}", kind, accuracy, interval, 1.0))  # type: ignore[arg-type]
    others = [r for r in made.references if r.kind in ("average", "ensemble")]
    candidates = [Candidate(name, 5000, 0.5, 2.0 - k / 1000) for k, name in enumerate(names)]
    candidates += [Candidate("search", 2000, 0.7, 0.9)]
    node = replace(made.nodes[-1], inputs=tuple(names), recipe=recipe)
    nodes = (*(replace(node, name=f"merge-{k}", inputs=tuple(names[:2])) for k in range(1, merges)), node)
    result = replace(made.result, best_reference=f"{names[-1]}, calibrated", chosen=names[3], is_source=None)
    return replace(
        made,
        sources=tuple(sources),
        references=(*references, *others),
        candidates=tuple(candidates),
        recipe=recipe,
        nodes=nodes,
        result=result,
    )


def test_eight_sources_are_shown_one_by_one() -> None:
    made = of(8)
    assert folding.shown(made.references) == list(made.references)
    assert folding.candidates(made) == (list(made.candidates), "")
    assert folding.pruned(made) == (made, "")
    assert folding.one_by_one(made.references) == (list(made.references), "")


def test_of_fifty_the_best_five_stand_in_the_table_and_the_others_in_a_line() -> None:
    made = of(50)
    _, rows = card.comparison_rows(made)
    names = [row[0] for row in rows]
    assert len(rows) == 1 + 2 * (5 + 1) + sum(r.kind in ("average", "ensemble") for r in made.references)
    assert names[1:7] == [*(f"source-{k}" for k in range(45, 50)), "45 more sources"]
    assert rows[6] == ["45 more sources", "0.6000 to 0.6440", "", ""]
    assert rows[12] == ["45 more sources, BN re-estimated", "0.6500 to 0.6940", "", ""]
    best = wording.best_reference(made)
    assert best is not None
    assert f"{best.name.removesuffix(', calibrated')}, {wording.RE_ESTIMATED}" in names


def test_the_run_off_shows_who_was_kept_and_what_was_found_beside_the_best() -> None:
    rows, said = folding.candidates(of(50))
    assert [row.name for row in rows] == ["source-3", *(f"source-{k}" for k in range(45, 50)), "search"]
    assert said == "44 more, compared on all images: mean loss 1.9560 to 2.0000."


@pytest.mark.parametrize("merges", [1, 49])
def test_card_page_and_pictures_of_fifty_sources_stay_readable(merges: int) -> None:
    made, network = of(50, merges), spec("resnet8_cifar")
    text, html = card.text(made, network), page.text(made, network)
    assert "<summary>All 50 sources</summary>" in text
    assert all(f"\n| source-{k} | " in text for k in range(50))  # whoever wants to replay it finds them all
    assert ("<summary>All 49 merges</summary>" in text) == (merges > 1)
    assert "44 more, compared on all images" in text
    assert "44 more, compared on all images" in html
    assert "Not shown: 45 more sources: 0.6000 to 0.6440" in html
    assert len(charts.comparison(made).marks) <= 20
    drawn = (figures.comparison(made), tree_figure.tree(made), figures.fitness(made))
    assert all(figure.get_figheight() < 16 for figure in drawn), [figure.get_figheight() for figure in drawn]
    words = [text.get_text() for text in drawn[1].axes[0].texts]
    over = f", over {merges} merges" if merges > 1 else ""
    assert words[-1] == f"and 42 more sources, each \u00d7 0.0000 to 0.0410{over}"
    assert sum(word.startswith("source-") for word in words) == 8
