"""The page itself, served on loopback: what it serves and what it does not, and that it starts without gradio's extras.

9 seconds, most of them to import gradio.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import run
from support.hub import Hub
from support.page import serving

pytest.importorskip("gradio", reason="the extra `app` is not installed")

import httpx2

TOKEN = "hf_ThisIsTheTokenOfTheUserWhoIsLoggedIn"


@pytest.fixture(scope="module")
def address(merges: Path) -> Iterator[str]:
    """The page over the merges."""
    with serving(merges, {**os.environ, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1"}) as address:
        yield address


def get(address: str, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(f"{address}{path}", headers=headers, timeout=60)


def test_it_answers_this_machine_under_its_own_names_only(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    assert get(address, "/").status_code == 200
    assert get(address, "/", Host="evil.example").status_code == 400
    assert get(address, "/config", Host="evil.example:7860").status_code == 400


@pytest.mark.parametrize(
    "path",
    ["/etc/hostname", "{merges}/done/lineage.json", "{merges}/done/.hfmega/places.json", "{merges}/half/.hfmega/holder",
     "{source}/config.json", "{repository}/pyproject.toml", "{merges}/../merges/done/README.md"],
)  # fmt: skip
def test_no_file_of_this_machine_is_served(
    address: str, path: str, merges: Path, tiny_sources: tuple[Path, Path]
) -> None:
    asked = path.format(merges=merges, source=tiny_sources[0], repository=Path(__file__).parents[2])
    assert get(address, f"/gradio_api/file={asked}").status_code == 403
    assert get(address, f"/file={asked}").status_code in (403, 404)


def test_an_upload_is_served_to_the_page_that_made_it(address: str) -> None:
    sent = httpx2.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"\x89PNG no", "image/png")})
    (path,) = sent.json()
    assert get(address, f"/gradio_api/file={path}").content == b"\x89PNG no"


def test_nothing_is_fetched_from_elsewhere(address: str) -> None:
    page = get(address, "/").text
    for link in re.findall(r"""(?:src|href)=["'](https?:[^"']+)""", page):
        assert link.startswith(("http://127.0.0.1", "https://127.0.0.1")), link
    styles = get(address, "/theme.css").text
    assert "fonts.googleapis" not in styles
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", styles)


def test_it_offers_no_api_and_counts_nobody(address: str) -> None:
    config: dict[str, Any] = get(address, "/config").json()
    assert {one["api_visibility"] for one in config["dependencies"]} == {"private"}
    assert config["analytics_enabled"] is False
    assert config["footer_links"] == []
    assert [one["props"]["label"] for one in config["components"] if one["type"] == "tabitem"] == [
        "1 Pair", "2 Merge", "3 Result", "4 Publish"
    ]  # fmt: skip


def test_the_token_is_nowhere_in_it(address: str) -> None:
    for path in ("/", "/config", "/gradio_api/info"):
        assert TOKEN not in get(address, path).text


def test_every_control_has_a_name(address: str) -> None:
    for one in get(address, "/config").json()["components"]:
        if one["type"] in (
            "textbox",
            "dropdown",
            "slider",
            "number",
            "checkbox",
            "checkboxgroup",
            "radio",
            "image",
            "code",
        ):
            assert one["props"]["label"], one
        if one["type"] == "button":
            assert one["props"]["value"], one


def test_a_port_that_is_taken_is_a_sentence(address: str, merges: Path) -> None:
    port = address.rpartition(":")[2]
    refused = run("app", merges, "--port", port, "--no-browser")
    assert refused.complaint == f"port {port} cannot be used (Address already in use): name another with --port."


def test_a_file_in_place_of_the_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in run("app", tmp_path / "file" / "merges", "--no-browser").complaint


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hfmega.app.serve.find_spec", lambda _: None)
    assert "pip install 'hfmega[app]'" in run("app", tmp_path, "--no-browser").complaint


def test_the_fields_of_the_first_tab_answer(merges: Path, tiny_sources: tuple[Path, Path]) -> None:
    from hfmega.app import pair

    shown, wrong = pair.facts([str(source) for source in tiny_sources])
    assert ("Do not expect much" in shown, wrong) == (True, "")
    shown, wrong = pair.facts([str(tiny_sources[0]), "./nowhere"])
    assert shown == ""
    assert "there is no folder nowhere" in wrong
    found = {"advice": "Merge.", "compatible": True, "relation": "independent", "pairs": [], "images": 0}
    assert pair.picture(found, None, 50) == ""
    assert pair.log("") == '<pre class="hf-log" role="status">starting …</pre>'


def test_a_merge_that_cannot_start_says_why_beside_the_field(merges: Path) -> None:
    from gradio import Request

    from hfmega.app import merge

    begin = merge.starter(merges, merge.Estimates(merges))
    for name, text, field, sentence in [
        ("../out", "sources: [a, b]", "name", "is not a name for a merge"),
        ("new", "dataset: digits", "sources", "choose at least two in the tab Pair"),
        ("new", "sources: [a, b]\nfitness-images: many", "images", "must be a whole number"),
        ("new", "sources: [a, b]\nmethod: ties", "method", "needs the common start"),
    ]:
        (told,) = begin(name, text, Request(session_hash="window"))
        assert sentence in told[merge.FIELDS.index(field)]
        assert sum(bool(shown) for shown in told[: len(merge.FIELDS)]) == 1
    assert "new" not in runs_of(merges)


def runs_of(merges: Path) -> dict[str, str]:
    from hfmega.app import runs

    return dict(runs.names(merges))


def test_a_run_is_shown_once_until_its_files_change(merges: Path) -> None:
    from hfmega.app import watch

    look = watch.refresher(merges)
    status, chart, log, stop, resume, seen, _ = look("half", "")
    assert "stopped" in status
    assert "<circle" in chart
    assert "started in a terminal" in log
    assert (stop.interactive, resume.interactive) == (False, True)
    assert all(update == {"__type__": "update"} for update in look("half", seen))
    done = look("done", seen)
    assert "finished" in done[0]
    assert (done[3].interactive, done[4].interactive) == (False, False)


def test_the_result_tab_shows_verdict_and_report_in_a_frame_of_its_own(merges: Path) -> None:
    from hfmega.app import result

    verdict, report, _ = result.shower(merges)("done")
    assert "this merge" in verdict or "kept" in verdict
    assert 'sandbox="allow-scripts allow-popups"' in report
    assert "allow-same-origin" not in report
    assert "&lt;html" in report.lower()
    assert result.finished(merges) == ["done"]
    assert "Choose a finished merge above" in result.asker(merges)(None, None)


def test_the_publish_tab_shows_what_will_be_public(merges: Path) -> None:
    from hfmega.app import publish

    card, contents = publish.shower(merges)("done")
    assert card.startswith("\n# ")
    assert "](data:image/png;base64,iVBOR" in card
    assert "](figures/" not in card
    assert "model.safetensors" in contents
    assert "places.json" not in contents
    wrong = list(publish.from_here(merges)("done", " ", True, False))[-1]
    assert "Name the repository: user/name." in wrong[1]
    assert "Name the repository" in list(publish.from_here(merges)("done", "--help", True, False))[-1][1]


def test_publishing_says_who_is_logged_in_and_never_the_token(hub: Hub) -> None:
    from hfmega.app import publish

    assert publish.logged_in() == '<p class="hf-note" role="status">Logged in as ann.</p>'


def test_on_a_space_nobody_publishes_without_signing_in(merges: Path) -> None:
    from hfmega.app import publish

    (told,) = publish.on_the_space(merges)("done", "ann/x", True, False, None)
    assert "Sign in with Hugging Face first." in told[1]
    assert not (merges / ".app" / ".pushes" / "done").exists()


def test_what_was_done_before_is_found_again(merges: Path, tiny_sources: tuple[Path, Path]) -> None:
    from hfmega.app import command, pair, runs

    sources = [str(source) for source in tiny_sources]
    asked = ["inspect", *sources, "--fitness-images", "100"]
    place = merges / runs.OWN / ".inspections" / pair.named(asked, sources)
    place.mkdir(parents=True)
    one = {"align": "none", "calibrated": False, "accuracy": [0.5] * 11, "loss": [1.0] * 11}
    prospect = {"walk": one, "share": 0.3, "accuracy": 0.5, "gain": 0.1, "p_value": 0.01}
    seen = {"compatible": True, "relation": "independent", "advice": "Merge.", "images": 100, "split": "train[:100]",
            "pairs": [{"first": "s1", "second": "s2", "walks": [one], "prospect": prospect}]}  # fmt: skip
    (place / command.RESULT).write_text(json.dumps(seen))
    told, found, shown, _, share, _ = list(pair.inspector(merges)(sources, "", 100))[-1]
    assert "It pays." in told
    assert found == seen
    assert (shown.visible, share.value) == (True, 30)
