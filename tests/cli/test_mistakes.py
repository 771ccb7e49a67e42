"""Mistakes that users make, and the one sentence that each of them gets; and the words of others. 5 seconds.

`pytest tests/cli/test_mistakes.py -s` prints the table.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from support.commands import run
from support.hub import Hub, client

from hfmega.settings.merge import default_folder
from hfmega.settings.words import separated, spelled

TOKEN: Final = "hf_ann"
# What was done: the command, {a} and {b} being sources, {hub} the address of the Hub; its exit code; the sentence.
MISTAKES: Final[tuple[tuple[str, str, int, str], ...]] = (
    ("one source", "merge {a}", 1, "one source cannot be merged: name two or more."),
    ("no source", "merge", 2, "Missing argument 'SOURCE SOURCE...'"),
    ("a source twice", "merge {a} {a}", 1, "has the same weights as an earlier source: name each source once."),
    ("a folder that is not there", "merge {a} ./nowhere", 1, "there is no folder nowhere"),
    ("a file for a folder", "evaluate {a}/README.md", 1, "is a file: a source is the folder of its config.json and"),
    ("the folder above the sources", "merge {above} {b}", 1, "is a folder of checkpoints: name them, e.g. {above}/a"),
    ("an empty folder", "evaluate {empty}", 1, "empty has no config.json: a source needs"),
    ("a pickle", "evaluate {pickle}", 1, "pickle has only a pickle"),
    ("a name that is no id", "evaluate resnet", 1, "there is no folder resnet, and it is not a Hub id (user/name)."),
    ("an id with a slip", "evaluate hf://ann/resnet-5O", 1, "HF_TOKEN. Near it: ann/resnet-50."),
    ("an owner with a slip", "evaluate hf://anne/resnet-50", 1, "Near it: ann/resnet-50"),
    ("a revision with a slip", "evaluate hf://ann/resnet-50@vl", 1, "ann/resnet-50 has no revision vl. It has v1."),
    ("a revision that is not there", "evaluate hf://ann/resnet-50@1234567", 1, "1234567. It has main, v1."),
    ("the address of a dataset", "evaluate {hub}/datasets/ann/photos", 1, "is not a model repository"),
    ("a dataset that is not there", "evaluate {a} --dataset ./photos", 1, "photos"),
    ("a slice that is none", "evaluate {a} --split train[5", 1, "'train[5' is not a slice of digits"),
    ("an empty slice", "evaluate {a} --split test[7:7]", 1, "the split 'test[7:7]' of digits is empty."),
    ("a split that is not there", "evaluate {a} --split val", 1, "'val' is not a slice of digits (splits:"),
    ("a flag with a slip", "merge {a} {b} --generation 5", 2, "No such option '--generation'"),
    ("a value that is none", "merge {a} {b} --method ga", 2, "Invalid value for '--method': 'ga' is not one of"),
    ("a method without its base", "merge {a} {b} --method ties", 1, "needs the common start of the sources"),
    ("a base where none is used", "merge {a} {b} --base {a}", 1, "--method mega does not use a base: remove --base."),
    ("a population of one", "merge {a} {b} --population 1", 1, "--population must be at least 2, not 1"),
    ("a density of zero", "merge {a} {b} --method ties --base {a} --density 0", 1, "--density must be above 0"),
    ("a merge that is done", "merge {a} {b} -o {merged}", 1, "--overwrite"),
    ("a folder of other things", "merge {a} {b} -o {mine}", 1, "is not empty"),
    ("replay of a source", "replay {a}", 1, "is not a merge of hfmega"),
    ("verify of nothing", "verify ./nowhere", 1, "nowhere"),
    ("push of a folder that is not finished", "push {empty} ann/new", 1, "only a finished folder can be published."),
    ("a config that is no YAML", "merge --config {mine}/notes.yaml", 1, "notes.yaml is not YAML"),
    ("a config with a slip", "merge --config {mine}/slip.yaml", 1, "populaton is not a flag: did you mean population"),
    ("seeds that are none", "reproduce table1 --seeds 44;45", 1, "is not a list of seeds: write --seeds 44,45."),
    ("an unknown architecture", "train resnet9_moon -o {empty}/new --dataset digits", 1, "resnet9_moon"),
    ("a command with a slip", "merg {a} {b}", 2, "No such command 'merg'"),
)  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, tiny_sources: tuple[Path, Path]) -> Iterator[Hub]:
    """A Hub with ann/resnet-50, which has the tag v1."""
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("ann", TOKEN)
        hub.create("ann/resnet-50")
        hub.commit_folder("ann/resnet-50", tiny_sources[0])
        environment = hub.environment(tmp_path_factory.mktemp("home"), TOKEN)
        tagged = client.ask(environment, "api.create_tag(id, tag='v1')", {"id": "ann/resnet-50"})
        assert tagged.error is None, tagged
        yield hub


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_sources: tuple[Path, Path], hub: Hub) -> dict[str, str]:
    """What the commands name."""
    root = tmp_path_factory.mktemp("places")
    for folder in ("above", "empty", "mine", "merged", "pickle"):
        (root / folder).mkdir()
    for name, source in zip("ab", tiny_sources, strict=True):
        shutil.copytree(source, root / "above" / name)
    shutil.copy(tiny_sources[0] / "config.json", root / "pickle")
    (root / "pickle" / "pytorch_model.bin").write_bytes(b"pickle")
    (root / "merged" / "lineage.json").write_text("{}")
    (root / "mine" / "notes.yaml").write_text("dataset: [")
    (root / "mine" / "slip.yaml").write_text("sources: [a, b]\npopulaton: 5")
    named = {folder.name: str(folder) for folder in root.iterdir()}
    return {**named, "a": str(tiny_sources[0]), "b": str(tiny_sources[1]), "hub": hub.url}


@pytest.mark.parametrize(("mistake", "command", "code", "sentence"), MISTAKES, ids=[entry[0] for entry in MISTAKES])
def test_a_mistake_gets_a_sentence(
    mistake: str, command: str, code: int, sentence: str, places: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    arguments = [word.format(**places) for word in command.split()]
    done = run(*arguments, cwd=tmp_path, environment=hub.environment(tmp_path / "home", TOKEN))
    said = " ".join(done.stderr.replace("│", " ").split())
    print(f"{mistake}: hfmega {command}\n    {said.split('hfmega: ')[-1] if code == 1 else said}")
    assert (done.code, done.stdout) == (code, ""), done.stderr
    assert sentence.format(**places) in said
    assert "Traceback" not in said
    assert sum(line.startswith("hfmega: ") for line in done.stderr.splitlines()) == (1 if code == 1 else 0)


def test_at_least_thirty_mistakes_are_asserted() -> None:
    assert len({mistake for mistake, *_ in MISTAKES}) >= 30


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("https://huggingface.co/ann/one", "hf://ann/one"),
        ("https://huggingface.co/ann/one/", "hf://ann/one"),
        ("https://huggingface.co/ann/one/tree/v1", "hf://ann/one@v1"),
        ("https://huggingface.co/ann/one/blob/refs%2Fpr%2F1/model.safetensors?download=true", "hf://ann/one@refs/pr/1"),
        ("huggingface.co/ann/one", "hf://ann/one"),
        ("https://hf.co/ann/one#usage", "hf://ann/one"),
        ("https://huggingface.co/datasets/ann/one", "hf://datasets/ann/one"),
        ("https://example.org/ann/one", "https://example.org/ann/one"),
        ("hf-hub:ann/one@v1", "hf://ann/one@v1"),
        ("hf_hub:ann/one", "hf://ann/one"),
        ("local-dir:./runs/one", "./runs/one"),
        ("ann/one/", "ann/one"),
        ("ann/one@v1", "ann/one@v1"),
        (" ann/one ", "ann/one"),
        ("./one/", "./one/"),
    ],
)
def test_the_words_of_others_are_understood(words: str, meant: str) -> None:
    assert spelled(words) == meant
    assert spelled(meant) == meant


def test_the_address_of_another_endpoint_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example.org")
    assert spelled("https://hub.example.org/ann/one/tree/main") == "hf://ann/one@main"


def test_a_file_of_a_checkpoint_stands_for_its_folder(tiny_sources: tuple[Path, Path], tmp_path: Path) -> None:
    assert spelled(str(tiny_sources[0] / "model.safetensors")) == str(tiny_sources[0])
    assert spelled(str(tiny_sources[0] / "config.json")) == str(tiny_sources[0])
    other = tmp_path / "other.safetensors"
    other.touch()
    assert spelled(str(other)) == str(other)  # which the folder's config may not be of


def test_sources_may_be_separated_by_commas(tmp_path: Path) -> None:
    assert separated(["a/b,c/d", "e/f,"]) == ["a/b", "c/d", "e/f"]
    (tmp_path / "x,y").mkdir()
    assert separated([tmp_path / "x,y"]) == [str(tmp_path / "x,y")]
    assert default_folder("https://huggingface.co/ann/one/tree/main,bob/two/") == Path("merges/one+two")


def test_a_source_by_its_address_is_evaluated(hub: Hub, tmp_path: Path) -> None:
    environment = hub.environment(tmp_path / "home", TOKEN)
    done = run("evaluate", f"{hub.url}/ann/resnet-50/tree/v1", "--dataset", "digits", "--split", "test[:20]",
               cwd=tmp_path, environment=environment)  # fmt: skip
    assert done.code == 0, done.stderr
    assert 0 <= float(done.stdout) <= 1
