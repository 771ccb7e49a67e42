"""What the Hub's validate-yaml finds wrong with the front matter of a README.md."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

LICENSE_IDS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m
bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0
c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0
cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m
deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2
fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community h-research
intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql
unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(LICENSE_IDS.split())
RELATIONS = ("adapter", "finetune", "merge", "quantized")
FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
REPO_ID = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}", re.ASCII)


class StrictLoader(yaml.SafeLoader):
    """YAML as the Hub reads it: a key that comes twice is an error, where PyYAML takes the last."""


def _mapping_without_twins(loader: StrictLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if twins := [key for key in keys if keys.count(key) > 1]:
        raise yaml.YAMLError(f"duplicated mapping key {twins[0]!r}")
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping_without_twins)


def front_matter(content: str) -> dict[str, Any]:
    """The metadata of a card; empty where it has none.

    Raises yaml.YAMLError where the block does not parse, and ValueError where it is not a mapping.
    """
    match = FRONT_MATTER.match(content)
    metadata = yaml.load(match[1], StrictLoader) if match else None
    if not isinstance(metadata, dict | None):
        raise ValueError("the metadata is not a mapping of names to values")
    return metadata or {}


def check(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a README.md."""
    try:
        metadata = front_matter(content)
    except (yaml.YAMLError, ValueError) as error:
        return [f"Invalid YAML front matter: {error}"], []
    if not metadata:
        return [], ["empty or missing yaml metadata in repo card"]
    return list(metadata_errors(metadata)), []


def metadata_errors(metadata: dict[str, Any]) -> Iterator[str]:
    """Every field of known meaning whose value has another shape."""
    for license_id in _listed(metadata.get("license")):
        if license_id not in LICENSES:
            yield f'"license" must be one of the known identifiers, not {license_id!r}'
    for field in ("base_model", "datasets"):
        for repo_id in _listed(metadata.get(field)):
            if not isinstance(repo_id, str) or not REPO_ID.fullmatch(repo_id):
                yield f'"{field}" with value {repo_id!r} is not valid: use a repository id'
    if metadata.get("base_model_relation", "merge") not in RELATIONS:
        yield f'"base_model_relation" must be one of {", ".join(RELATIONS)}'
    for field in ("tags", "metrics", "language"):
        if not all(isinstance(value, str) for value in _listed(metadata.get(field))):
            yield f'"{field}" must be a string or a list of strings'
    for field in ("library_name", "pipeline_tag", "license_name"):
        if not isinstance(metadata.get(field, ""), str):
            yield f'"{field}" must be a string'
    yield from model_index_errors(metadata.get("model-index", []))


def model_index_errors(index: Any) -> Iterator[str]:
    """What is missing or misshapen in `model-index`: models, their results, and the metrics of each."""
    for where, model in _entries("model-index", index):
        yield from _required(where, model, "name")
        for place, result in _entries(f"{where}.results", model.get("results")):
            yield from _required(f"{place}.task", result.get("task"), "type")
            yield from _required(f"{place}.dataset", result.get("dataset"), "type", "name")
            for spot, metric in _entries(f"{place}.metrics", result.get("metrics")):
                yield from _required(spot, metric, "type")
                if not _is_metric_value(metric.get("value")):
                    yield f'"{spot}.value" must be a number or a text, not {metric.get("value")!r}'


def _listed(value: Any) -> list[Any]:
    """Many fields take one value or a list of them."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _entries(name: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The mappings of a list with their places; something that is none counts as an empty one."""
    if not isinstance(value, list):
        value = [value]
    return [(f"{name}[{i}]", entry if isinstance(entry, dict) else {}) for i, entry in enumerate(value)]


def _required(where: str, entry: Any, *fields: str) -> Iterator[str]:
    for field in fields:
        value = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(value, str) or not value:
            yield f'"{where}.{field}" is required and must be a string'


def _is_metric_value(value: Any) -> bool:
    """A NaN is no result, and no JSON either."""
    return math.isfinite(value) if isinstance(value, int | float) else isinstance(value, str | dict | list)
