"""Model cards: what a lineage says, in words, tables and figures that the Hub shows.

Names, notes and licenses come from outside: the templates write them only through the filter `inert`.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Final

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hfmega import __version__, hub, printable
from hfmega.evaluate import Evaluation
from hfmega.lineage import DataEntry, Lineage, Reference, Result, SourceEntry
from hfmega.recipe import source_alone, uniform_average
from hfmega.run import write_atomically
from hfmega.settings import PRESETS

# In the wheel the templates lie beside this file, in a checkout they lie in cards/.
TEMPLATES: Final = (Path(__file__).parent / "templates", Path(__file__).parents[1] / "cards" / "templates")
FIGURES: Final = "figures"
TAGS: Final = ["image-classification", "timm"]

FLAGS: Final = (
    "population",
    "generations",
    "parents",
    "tournament",
    "mutation_rate",
    "mutation_sigma",
    "mutation_unit",
    "fitness",
    "tree",
    "order",
    "method",
    "genome",
    "scale",
    "density",
    "align",
    "seed",
    "confirm_share",
    "fitness_split",
    "fitness_images",
    "calibration_split",
    "test_split",
    "image_column",
    "label_column",
)

# The identifiers that the Hub knows; it refuses a card with another one, so that such a license becomes `other`.
LICENSE_IDS: Final = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma
gfdl gpl gpl-2.0 gpl-3.0 intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3
llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unknown
unlicense wtfpl zlib
"""
LICENSES: Final = frozenset(LICENSE_IDS.split())


def write(lineage: Lineage, config: dict[str, Any], folder: Path) -> None:
    """Draw the figures and write the model card of a merge into its folder. config: timm's, of the merged model."""
    from hfmega import figures

    figures.draw(lineage, folder / FIGURES)
    write_atomically(folder / hub.CARD, text(lineage, config).encode())


def text(lineage: Lineage, config: dict[str, Any]) -> str:
    """The model card of a merge, of nothing but its lineage and timm's config."""
    from hfmega import figures

    metadata = merge_metadata(lineage)
    return render(
        "merge.md.jinja",
        metadata=metadata.to_yaml(),
        lineage=lineage,
        config=config,
        verdict=verdict(lineage),
        command=command(lineage),
        comparison=comparison_rows(lineage),
        license=metadata.license,
        searched=figures.searched(lineage),
        **loading(config),
    )


def write_source_card(config: dict[str, Any], held_out: Evaluation | None, folder: Path) -> None:
    """Write the model card of a checkpoint that hfmega trained; `held_out` is None when no images were held out."""
    metadata = source_metadata(config, held_out)
    text = render(
        "source.md.jinja",
        metadata=metadata.to_yaml(),
        config=config,
        record=config["hfmega"],
        held_out=held_out,
        version=__version__,
        **loading(config),
    )
    write_atomically(folder / hub.CARD, text.encode())


def loading(config: dict[str, Any]) -> dict[str, Any]:
    """What the example of loading depends on: whether hfmega must be imported, and the mode of the images."""
    grey = (config.get("pretrained_cfg", {}).get("input_size") or [3])[0] == 1
    return {"registered": str(config["architecture"]).endswith("_cifar"), "mode": "L" if grey else "RGB"}


def render(template: str, **values: Any) -> str:
    """A card from its template. A value that is missing is an error, not an empty place."""
    return templates(TEMPLATES).get_template(template).render(**values)


@cache
def templates(folders: tuple[Path, ...]) -> Environment:
    """The templates in these folders, each compiled once in a process."""
    environment = Environment(
        loader=FileSystemLoader(folders),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # cards are Markdown; `inert` escapes
    )
    environment.filters.update(inert=inert, code=code, number=number, count="{:,}".format, short=short)
    return environment


def inert(value: object) -> str:
    """A value from outside as Markdown text in one line: shown as it is, starting no markup, table cell, HTML or link.

    What could start something becomes a character reference, which is never structure (CommonMark 0.31, section 2.5).
    Addresses are links without any markup (GFM 0.29, section 6.9), so they lose a character in the same way.
    """
    line = "".join(c for c in " ".join(str(value).split()) if c.isprintable())
    structure = r"[&<>|`*\\~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(:\[]|^[-+#=]"
    structure += r"|(?<=^\d)[.)](?!\S)|(?<=^\d\d)[.)](?!\S)|:(?=//)|(?<=www)\.|@(?=\S*\.)"
    return re.sub(structure, lambda found: f"&#{ord(found[0])};", line)


def code(text: str) -> str:
    """A shell command as a block of code, also if it holds what would end the block or move a terminal's cursor."""
    text = printable(text)
    if re.search(r"[<`\n\r]", text):
        return f"<pre><code>{escape(text, quote=False)}</code></pre>"
    return f"```bash\n{text}\n```"


def number(value: float | None) -> str:
    """Four decimals, or a dash where there is no value."""
    return "-" if value is None else f"{value:.4f}"


def short(spelled: str) -> str:
    """A slice of a dataset; of one with very many parts only the first, and how many follow."""
    first, *rest = spelled.split("+")
    return spelled if len(spelled) <= 60 else f"{first}+... ({len(rest)} more parts)"


def comparison_rows(lineage: Lineage) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of the comparison on the test images: the merged model first, then every reference."""
    models: list[tuple[str, Reference | Result]] = [("merged", lineage.result)]
    models += [(reference.name, reference) for reference in lineage.references]
    rows = [
        [name, number(m.accuracy), f"{number(m.interval[0])} to {number(m.interval[1])}", number(m.loss)]
        for name, m in models
    ]
    return ["model", "accuracy", "95 % interval", "loss"], rows


def verdict(lineage: Lineage) -> str:
    """What the merge gained on the test images, what won the run-off if no search did, and the leak if there is one."""
    result, test = lineage.result, lineage.data.splits["test"]
    gain, low, high = (points(value) for value in (result.gain, *result.gain_interval))
    shown = (
        f"{result.verdict}: {number(result.accuracy)} on {short(test.slice)} ({result.total:,} images, "
        f"95 % interval {number(result.interval[0])} to {number(result.interval[1])}), {gain} points [{low}, {high}] "
        f"over the best single model ({result.best_reference}), McNemar {probability(result.p_value)}."
    )
    said = (shown, credit(lineage), without_search(lineage), lineage.leak)
    return " ".join(sentence for sentence in said if sentence)


def credit(lineage: Lineage) -> str | None:
    """How much of the gain comes from the other sources, if there were controls."""
    if not lineage.controls:
        return None
    alone = lineage.controls[0]
    reached = "; ".join(f"{c.name}: {number(c.accuracy)} ({points(c.remainder)} left)" for c in lineage.controls)
    return (
        f"Of the gain of {points(lineage.result.accuracy - alone.start)} points over {alone.source}, "
        f"{points(alone.remainder)} come from the other sources ({reached})."
    )


def points(share: float) -> str:
    """A difference of accuracies in points, with its sign and no negative zero."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"


def probability(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def without_search(lineage: Lineage) -> str | None:
    """The sentence for a result that needed no search: a source, or the uniform average."""
    source = held_source(lineage)
    if source is not None:
        how = "with re-estimated BatchNorm statistics" if lineage.recipe.calibrate else "as it is"
        why = (
            "No merge was shown to be better than a source in the run-off"
            if lineage.candidates
            else "The search ended on a source itself"
        )
        return f"{why}: this folder holds the source {source}, {how}; use that source."
    average = uniform_average(len(lineage.sources), lineage.recipe.calibrate)
    if lineage.result.chosen != "average" and lineage.recipe != average:
        return None
    if not lineage.candidates:
        return "The search ended on the plain uniform average."
    kinds = {reference.name: reference.kind for reference in lineage.references}
    averaged = kinds.get(lineage.result.best_reference) == "average"
    over = "the average with other BatchNorm statistics" if averaged else "the best source"
    return f"The plain uniform average won the run-off: the search added nothing to it, so the gain is over {over}."


def held_source(lineage: Lineage) -> str | None:
    """The name of the source that the result is, if its recipe is that of one source or of one earlier merge alone."""
    count, calibrate = len(lineage.sources), lineage.recipe.calibrate
    known = {source.name: source_alone(k, count, calibrate) for k, source in enumerate(lineage.sources)}
    known |= {node.name: replace(node.recipe, calibrate=calibrate) for node in lineage.nodes if not node.history}
    return next((name for name, recipe in known.items() if recipe == lineage.recipe), None)


def command(lineage: Lineage) -> str:
    """The command that makes the merge again, for a shell: sources at their commits, and what its preset does not say.

    Local sources stand there by the names of their folders.
    """
    settings, preset = lineage.settings, lineage.settings["preset"]
    named = [argument(source) for source in lineage.sources]
    base = ["--base", named.pop()] if settings.get("base") else []
    words = ["hfmega", "merge", *named, *base, "--dataset", lineage.data.id]
    words += ["--preset", preset] if preset != "default" else []
    known = PRESETS.get(preset, PRESETS["default"])
    defaults = {
        "seed": 0,
        "tree": "pairs",
        "order": "given",
        "method": "mega",
        "scale": 1.0,
        "density": 0.5,
        "align": "none",
        **asdict(known.search),
        "confirm_share": known.confirm_share,
    }
    for flag in FLAGS:
        value = settings.get(flag)
        if value is not None and value != defaults.get(flag):
            words += [f"--{flag.replace('_', '-')}", str(value)]
    words.append("--calibrate" if settings["calibrate"] else "--no-calibrate")
    words += ["--exact"] if settings.get("exact", True) and not known.exact else []
    words += {"bfloat16": ["--bf16"], "float16": ["--fp16"]}.get(settings.get("precision", ""), [])
    words += ["--control"] if settings.get("control") else []
    words += ["--allow-leak"] if settings.get("allow_leak") else []
    processes = lineage.environment.get("num_processes", 1)
    return shlex.join(words + (["--num-processes", str(processes)] if processes > 1 else []))


def argument(source: SourceEntry) -> str:
    """A source as it is written on a command line; a folder's name never reads as a flag."""
    if source.repo_id:
        return f"{source.repo_id}@{source.revision}"
    folder = source.path or source.name
    return f"./{folder}" if folder.startswith("-") else folder


def merge_metadata(lineage: Lineage) -> ModelCardData:
    """The front matter of a merge: where it comes from, and its accuracy on the test images."""
    bases = list(dict.fromkeys(source.repo_id for source in lineage.sources if source.repo_id))
    evaluation = EvalResult(
        dataset_split=lineage.data.splits["test"].slice,
        dataset_revision=lineage.data.revision,
        **evaluated_on(lineage.data.id, lineage.result.accuracy),
    )
    return ModelCardData(
        model_name=f"{lineage.architecture}.merged",
        license=common_license(lineage.sources),
        library_name="timm",
        pipeline_tag="image-classification",
        tags=[*TAGS, "merge", "hfmega"],
        base_model=bases or None,
        base_model_relation="merge",
        datasets=[lineage.data.id] if is_on_hub(lineage.data) else None,
        metrics=["accuracy"],
        eval_results=[evaluation],
    )


def source_metadata(config: dict[str, Any], held_out: Evaluation | None) -> ModelCardData:
    """The front matter of a trained source. It states no license: that is for its owner to say."""
    record = config["hfmega"]
    evaluations = []
    if held_out:
        known = evaluated_on(record["dataset"], held_out.accuracy)
        evaluations.append(EvalResult(dataset_split=held_out.split, **known))
    return ModelCardData(
        model_name=f"{config['architecture']}.s{record['seed']}",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=[*TAGS, "hfmega"],
        datasets=[record["dataset"]] if "/" in record["dataset"] else None,
        metrics=["accuracy"],
        eval_results=evaluations or None,
    )


def evaluated_on(dataset: str, accuracy: float) -> dict[str, Any]:
    """The part of an evaluation result that every card shares. The type of a dataset must look like a Hub id."""
    kind = re.sub(r"[^\w./-]+", "-", dataset, flags=re.ASCII).strip("-./")[:96] or "local"
    return {
        "task_type": "image-classification",
        "task_name": "Image Classification",
        "dataset_type": kind,
        "dataset_name": dataset,
        "metric_type": "accuracy",
        "metric_name": "Accuracy",
        "metric_value": accuracy,
    }


def is_on_hub(data: DataEntry) -> bool:
    """Whether the dataset has a page on the Hub: `user/name`, or an old one without an owner, which has a commit."""
    return "/" in data.id or data.revision is not None


def common_license(sources: Sequence[SourceEntry]) -> str:
    """The license that all sources state, if it is one that the Hub knows, else `other`."""
    first, *rest = {source.license for source in sources}
    return first if first in LICENSES and not rest else "other"
