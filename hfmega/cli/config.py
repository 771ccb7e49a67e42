"""Settings from a file (`--config`), from an earlier merge (`--like`) and from flags, in the order of who wins last."""

from pathlib import Path
from typing import Any, Final

import rich_click as click
from click.core import ParameterSource

from hfmega.errors import SettingsError
from hfmega.folder import LINEAGE
from hfmega.settings import EARLIER, METHODS, OFFERED, SOME_USE, SWITCHES, MergeSettings, checked, standard, unknown

SOURCES: Final = "hfmega.sources"  # of a file, in the context of the command
NAMED: Final = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP, ParameterSource.ENVIRONMENT)


def read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take the defaults of a command from a YAML file: `sources:`, and flag names as keys.

    Raises SettingsError for a file, a key or a value that the command cannot take.
    """
    if path is None:
        return
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise SettingsError(f"{path} must hold the names of flags and their values, e.g. 'dataset: digits'.")
    given = {key.removeprefix("--").replace("-", "_"): value for key, value in found.items()}
    sources = given.pop("sources", [])
    if not isinstance(sources, list) or not all(isinstance(source, str) for source in sources):
        raise SettingsError(f"{path}: sources must be a list of checkpoints.")
    context.meta[SOURCES] = tuple(sources)
    context.default_map = dict(
        default_of(context, path, name, value) for name, value in given.items() if value is not None
    )


def default_of(context: click.Context, path: Path, name: str, value: Any) -> tuple[str, str]:
    """An entry of a file as click has it: the parameter, and the text that its flag takes.

    Raises SettingsError unless the command has the flag and the flag takes the value.
    """
    flags = {option.name: option for option in context.command.params if isinstance(option, click.Option)}
    flags |= {word: option for option in flags.values() for word in [long_name(option)]}
    option = flags.get(name)
    if option is None or option.name in ("config", "token", "help"):
        raise SettingsError(f"{path}: {unknown(name, [long_name(flag) for flag in flags.values()], 'a flag')}")
    try:
        if isinstance(value, (list, dict)) or (isinstance(value, bool) and not option.is_flag):
            raise click.BadParameter(f"{value!r} is not a value of it")
        option.type.convert(str(value), option, context)
    except click.BadParameter as error:
        raise SettingsError(f"{path}: {name.replace('_', '-')}: {error.message.rstrip('.')}.") from error
    return str(option.name), str(value)


def long_name(option: click.Option) -> str:
    """`as_json` is `json` for a user."""
    return max(option.opts, key=len).removeprefix("--").replace("-", "_")


def merge_settings(context: click.Context, sources: tuple[str, ...], flags: dict[str, Any]) -> MergeSettings:
    """The settings of `merge`. Flags win over the file of `--config`, and both over the merge of `--like`."""
    sources = sources or context.meta.get(SOURCES, ())
    if not sources:
        raise click.UsageError("Missing argument 'SOURCE SOURCE...'.", context)
    offered = OFFERED.keys() | SWITCHES.keys()
    named = {name: flags[name] for name in flags if name in offered and context.get_parameter_source(name) in NAMED}
    if flags["like"] is None:
        return MergeSettings.of(*sources, **named)
    return MergeSettings.of(*sources, **resembling(named, like(flags["like"])))


def resembling(named: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """What is named, and of the earlier settings those that the method uses."""
    if {"bf16", "fp16"} & named.keys():
        earlier = {name: value for name, value in earlier.items() if name != "precision"}
    method = checked(OFFERED["method"], {**earlier, **named}.get("method", "mega"))
    unused = SOME_USE - METHODS[method].flags
    return {**{name: value for name, value in earlier.items() if name not in unused}, **named}


def like(merge: str) -> dict[str, Any]:
    """The settings in the lineage of a merge (folder or Hub id) that its preset does not say, by the names of flags.

    Raises HfmegaError when there is no such lineage.
    """
    from hfmega.hub.pull import pull_merge
    from hfmega.merging.replay import read_places
    from hfmega.report.command import argument
    from hfmega.report.lineage import read

    folder = pull_merge(merge)
    made, places = read(folder / LINEAGE), read_places(folder)
    found = {**EARLIER, **made.settings, "dataset": places.get("dataset", made.data.id)}  # as the card's command
    if found.get("base"):
        found["base"] = places.get(made.sources[-1].sha256, argument(made.sources[-1]))
    known = standard(checked(OFFERED["preset"], found.get("preset", "default")))
    changed = {name: found[name] for name in OFFERED if name in found and found[name] not in (None, known[name])}
    return {"preset": known["preset"], **changed}
