"""The front matter of model cards."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from hfmega.models.library import CardFacts, Spec, card_facts
from hfmega.report.lineage import DataEntry, Lineage, SourceEntry

if TYPE_CHECKING:  # importing it imports datasets and timm
    from hfmega.evaluation.checkpoint import Evaluation

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
SLICE: Final = re.compile(r"([\w.-]+)(?:\[[^\[\]]*\])?", re.ASCII)
LICENSES: Final = frozenset(LICENSE_IDS.split())
CONFIGURED: Final = re.compile(r"([\w.-]+/[\w.-]+):[\w.-]+", re.ASCII)


def merge_metadata(lineage: Lineage, library: CardFacts) -> ModelCardData:
    """The front matter of a merge: where it comes from, and its accuracy on the test images.

    Only sources that have weight in the result are its bases; a source that was kept as it is is no merge of anything.
    """
    sources, merged = lineage.weighted, len(lineage.weighted) > 1
    bases = list(dict.fromkeys(source.repo_id for source in sources if source.repo_id))
    relation = "merge" if merged else None if lineage.stands else "finetune"
    name, link = license_words(sources)
    evaluation = EvalResult(
        dataset_split=split_name(lineage.data.splits["test"].slice),
        dataset_revision=lineage.data.revision,
        **evaluated_on(hub_id(lineage.data.id), lineage.result.accuracy),
    )
    return ModelCardData(
        model_name=f"{lineage.architecture}.{'merged' if merged else 'kept' if lineage.stands else 'derived'}",
        pipeline_tag="image-classification",
        tags=[*tags(library), *(["merge"] if merged else [])],
        base_model=bases or None,
        base_model_relation=relation,
        datasets=[hub_id(lineage.data.id)] if is_on_hub(lineage.data) else None,
        metrics=["accuracy"],
        eval_results=[evaluation],
        library_name=library.library_name,
        license=common_license(sources),
        license_name=name,
        license_link=link,
    )


def eval_results(lineage: Lineage) -> str | None:
    """The content of `.eval_results/hfmega.yaml`: what the Hub shows beside the dataset; None where it has no page."""
    if not is_on_hub(lineage.data):
        return None
    result, test = lineage.result, lineage.data.splits["test"]
    entry = EvalResultEntry(
        dataset_id=hub_id(lineage.data.id),
        task_id="default",
        value=round(result.accuracy, 4),
        dataset_revision=lineage.data.revision,
        notes=f"accuracy on {test.slice}, {result.total:,} images; lineage.json says how",
    )
    return str(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True, width=10**6))


def tags(library: CardFacts) -> list[str]:
    """What the Hub finds a model by."""
    return ["image-classification", *library.tags, "hfmega"]


def split_name(spelled: str) -> str:
    """The splits that a slice takes images of: `test` of `test[5000:]`."""
    parts = [SLICE.fullmatch(part.strip()) for part in spelled.split("+")]
    return "+".join(dict.fromkeys(part[1] for part in parts if part)) if all(parts) else spelled


def source_metadata(spec: Spec, held_out: "Evaluation | None") -> ModelCardData:
    """The front matter of a trained source. It states no license: that is for its owner to say."""
    record, library = spec.record or {}, card_facts(spec)
    evaluations = []
    if held_out:
        known = evaluated_on(hub_id(record["dataset"]), held_out.accuracy)
        evaluations.append(EvalResult(dataset_split=split_name(held_out.split), **known))
    return ModelCardData(
        model_name=f"{spec.architecture}.s{record['seed']}",
        library_name=library.library_name,
        pipeline_tag="image-classification",
        tags=tags(library),
        datasets=[hub_id(record["dataset"])] if "/" in record["dataset"] else None,
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
        "metric_value": round(accuracy, 4),
    }


def hub_id(dataset: str) -> str:
    """The id of a dataset without its configuration (`ID:CONFIG`)."""
    configured = CONFIGURED.fullmatch(dataset)
    return configured[1] if configured else dataset


def is_on_hub(data: DataEntry) -> bool:
    """Whether the dataset has a page on the Hub: `user/name`, or an old one without an owner, which has a commit."""
    return "/" in data.id or data.revision is not None


def common_license(sources: Sequence[SourceEntry]) -> str:
    """The license that all sources state, if it is one that the Hub knows, else `other`."""
    first, *rest = {source.license for source in sources} or {None}
    return first if first in LICENSES and not rest else "other"


def license_words(sources: Sequence[SourceEntry]) -> tuple[str | None, str | None]:
    """Name and link of the license `other`: what the sources state, and a page that says it."""
    if common_license(sources) != "other":
        return None, None
    stated = {source.license for source in sources}
    names = sorted(re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.")[:64] for name in stated if name)
    name = "-and-".join(filter(None, [*names, *(["unstated"] if None in stated else [])]))[:96] or "unstated"
    page = next((f"https://huggingface.co/{s.repo_id}" for s in sources if s.repo_id and s.license), "README.md")
    return name, page
