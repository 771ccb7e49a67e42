"""timm's `config.json` as it may come from anyone: read, brought to one layout, and checked before anything uses it."""

from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import from_json
from typing_extensions import Required, TypedDict

from hfmega.errors import SourceError
from hfmega.models.label_names import labels_in

OPEN: Final = ConfigDict(extra="allow", strict=True)
Side = Annotated[int, Field(ge=1, le=4096)]  # pixels
Size = Annotated[list[Side], Field(min_length=3, max_length=3)]
Numbers = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=4)]
Share = Annotated[float, Field(ge=0, lt=1)]
Classes = Annotated[int, Field(ge=1, le=1_000_000)]


class Pretrained(TypedDict, total=False):
    """What hfmega and timm read of `pretrained_cfg`."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    input_size: Size | None
    test_input_size: Size | None
    mean: Numbers | None
    std: Numbers | None
    interpolation: str | None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None
    crop_mode: str | None
    num_classes: Classes | None


class Arguments(TypedDict, total=False):
    """What `models.build` passes on of `model_args`; it refuses all else by its name."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    num_classes: Classes
    in_chans: Annotated[int, Field(ge=1, le=4)]
    img_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None
    global_pool: str | None
    drop_rate: Share
    drop_path_rate: Share | None


class Config(TypedDict, total=False):
    """What hfmega reads of a `config.json`; all else travels along untouched."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    architecture: Required[str]
    num_classes: Required[Classes]
    model_args: Arguments
    pretrained_cfg: Pretrained


_SCHEMA: Final = TypeAdapter(Config)


def load(path: Path, where: str) -> Any:
    """What a config file holds, of any library. Raises SourceError for a file that cannot be read."""
    try:
        return from_json(path.read_bytes())  # which takes no half of a surrogate pair, that no file can be written of
    except (OSError, ValueError) as error:
        raise SourceError(f"{path.name} of {where} cannot be read: {error}") from error


def checked(config: Any, file: str, where: str) -> dict[str, Any]:
    """A timm config with `num_classes` and `label_names` at its top and a `pretrained_cfg`.

    Raises SourceError for one in which something has no sense.
    """
    if not isinstance(config, dict) or "architecture" not in config:
        raise SourceError(f"{file} of {where} is not a timm config: it names no architecture.")
    if "pretrained_cfg" not in config and "model_args" not in config:  # timm's older layout, one flat dictionary
        config = {"architecture": config["architecture"], "pretrained_cfg": config}
    config = without_nulls(config)
    nested = config["pretrained_cfg"]
    for key in ("num_classes", "label_names"):
        if key not in config and isinstance(nested, dict) and key in nested:
            config[key] = nested[key]
    if config.get("num_classes") is None:
        raise SourceError(f"{file} of {where} does not say how many classes there are (num_classes).")
    overridden = {"num_classes": config["num_classes"]} if isinstance(nested, dict) and "num_classes" in nested else {}
    try:
        _SCHEMA.validate_python({**config, "pretrained_cfg": {**nested, **overridden} if overridden else nested})
        labels_in(config, config["num_classes"])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise SourceError(f"{file} of {where} makes no sense: {first['msg']} (at {place}).") from error
    except ValueError as error:
        raise SourceError(f"{file} of {where} makes no sense: Input should be a list of names (at {error}).") from error
    return dict(config)


def without_nulls(config: dict[str, Any]) -> dict[str, Any]:
    """A config in which null arguments are none, and single numbers are the lists that they stand for."""
    arguments = config.get("model_args")
    nested = {} if config.get("pretrained_cfg") is None else config["pretrained_cfg"]
    if isinstance(nested, dict):
        lists = {key: [nested[key]] for key in ("mean", "std") if is_number(nested.get(key))}
        sides = {k: [3, nested[k], nested[k]] for k in ("input_size", "test_input_size") if is_number(nested.get(k))}
        nested = {**nested, **lists, **sides} if lists or sides else nested
    found = {**config, "pretrained_cfg": nested}
    if isinstance(arguments, dict):
        found["model_args"] = {key: value for key, value in arguments.items() if value is not None}
    elif "model_args" in config and arguments is None:
        found["model_args"] = {}
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
