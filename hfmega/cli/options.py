"""The options of the commands, as decorators: those of a merge are made from the fields of its settings."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import rich_click as click

from hfmega.cli.config import read_config
from hfmega.errors import SettingsError
from hfmega.folder import NO_CACHE
from hfmega.settings import OFFERED, PRESETS, Group, Setting, standard

F = TypeVar("F", bound=Callable[..., Any])
GROUP_OF: Final[dict[str, str]] = {}  # flag to the group of the help that lists it
BY_PRESET: Final = {preset: standard(preset) for preset in PRESETS}
USUAL: Final = {**BY_PRESET["default"], "output": None}


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, listed in the order given."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def option(group: Group, *names: str, **how: Any) -> Callable[[F], F]:
    """An option that the help lists in a group."""
    long = next(name for name in names if name.startswith("--"))
    GROUP_OF[long.split("/")[0]] = group
    return click.option(*names, **how)


def grouped(command: click.Command) -> list[Any]:
    """The options of a command for the help of rich-click: everyday ones first, then group by group."""
    listed: dict[str, list[str]] = {group: [] for group in get_args(Group)}
    for parameter in command.params:
        flag = next((word for word in parameter.opts if word.startswith("--")), "")
        if flag in GROUP_OF:
            listed[GROUP_OF[flag]].append(flag)
    listed["Output"].append("--help")
    return [{"name": group, "options": flags} for group, flags in listed.items()]


def made(*names: str, **how: Any) -> Callable[[F], F]:
    """The options of some settings, by name. how: what is said of them in another way than by their fields."""
    return stack(*(decorator for name in names for decorator in options_of(OFFERED[name], how)))


def options_of(one: Setting, how: dict[str, Any]) -> Iterator[Callable[[F], F]]:
    """Field -> flag, type -> choice, default -> default; a field with switches gets one flag for each."""
    group: Any = one.group
    if one.switches:
        yield from (
            option(group, f"--{switch}", is_flag=True, help=one.text.format(meant))
            for switch, meant in one.switches.items()
        )
        return
    names = [f"-{one.short}"] if one.short else []
    flag = f"{one.flag}/--no-{one.flag[2:]}" if one.optional and one.kind is bool else one.flag
    told = {"default": USUAL[one.name], "metavar": one.metavar, "type": type_of(one), **how}
    if one.kind is bool:
        told = {"default": USUAL[one.name], "is_flag": True, **how}
    spoken = told.pop("usual", None) or (str(told["default"]) if how else usual_of(one))
    text = told.pop("text", one.text)
    yield option(group, *names, flag, **told, help=f"{text} [default: {spoken}]" if spoken else text)


def type_of(one: Setting) -> Any:
    """What click takes for a setting."""
    if one.choices:
        return click.Choice(one.choices)
    return click.Path(path_type=Path) if one.kind is Path else one.kind


def usual_of(one: Setting) -> str:
    """The default of a setting in words, and that of each preset where it is another; empty for a switch."""
    if one.usual or one.kind is bool:
        return one.usual
    differing = {preset: values[one.name] for preset, values in BY_PRESET.items() if one.name != "preset"}
    others: dict[Any, list[str]] = {}
    for preset, value in differing.items():
        if value != USUAL[one.name]:
            others.setdefault(value, []).append(preset)
    return "; ".join([str(USUAL[one.name]), *(f"{' and '.join(who)}: {value}" for value, who in others.items())])


def into_environment(_: click.Context, __: click.Parameter, token: str | None) -> None:
    """The Hub client reads its token there, and so do the processes that a command starts."""
    if token is not None:
        os.environ["HF_TOKEN"] = token


def no_cache(_: click.Context, __: click.Parameter, asked: bool) -> None:
    """The processes that a command starts decode anew too."""
    if asked:
        os.environ[NO_CACHE] = "1"


def seeds_of(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...]:
    """`44,45` as numbers. Raises SettingsError for anything else."""
    try:
        return tuple(int(seed) for seed in text.split(",")) if text else ()
    except ValueError as error:
        raise SettingsError(f"--seeds {text!r} is not a list of seeds: write --seeds 44,45.") from error


def timeout_of(_: click.Context, __: click.Parameter, text: str) -> str:
    """A duration as the Hub's jobs take it. Raises BadParameter for anything else."""
    if not re.fullmatch(r"[1-9]\d*[smhd]?", text):
        raise click.BadParameter(f"{text!r} is not a duration: write 90m, 6h or a number of seconds.")
    return text


token_option = option(
    "Publishing",
    "--token",
    metavar="T",
    expose_value=False,
    is_eager=True,
    callback=into_environment,
    help="Hub token (default: HF_TOKEN, or that of `hf auth login`).",
)
cpu_option = option("Hardware", "--cpu", is_flag=True, help="Do not use a GPU.")
dry_run_option = option("Everyday", "--dry-run", is_flag=True, help="Print the plan and its cost here, and stop.")
push_to_hub_option = option("Everyday", "--push-to-hub", metavar="ID", help="Publish the folder as user/name.")
cache_option = option(
    "Data",
    "--no-cache",
    is_flag=True,
    expose_value=False,
    callback=no_cache,
    help="Decode the images anew, and keep none for later runs.",
)
data_options = stack(made("dataset", "image_column", "label_column", "labels_by_number"), cache_option)
push_options = stack(
    option("Publishing", "--private", is_flag=True, help="Make the repository private if it is new."),
    option("Publishing", "--create-pr", is_flag=True, help="Open a pull request instead of committing to main."),
    option("Publishing", "--commit-message", metavar="M", help="Title of the commit."),
    token_option,
)
insist_options = stack(
    option(
        "Publishing",
        "--push-anyway",
        is_flag=True,
        help="Publish the result even if it is a source as it is.",
    ),
    option("Publishing", "--push-sources", is_flag=True, help="Publish local sources too, as ID-sources-NAME."),
    option("Publishing", "--push-report", is_flag=True, help="Publish report.html too, without test images."),
    option("Publishing", "--push-images", is_flag=True, help="Publish report.html with the test images it shows."),
)
common_options = stack(
    option("Output", "--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    option("Output", "--debug", is_flag=True, help="Show the traceback of an error."),
    option("Output", "-q", "--quiet", is_flag=True, help="Say nothing but the result, and errors."),
    option("Output", "-v", "--verbose", is_flag=True, help="Say more."),
)
run_options = stack(made("overwrite"), cpu_option)
job_options = stack(
    option("Everyday", "--on", metavar="FLAVOR", help="Run as a job of the Hub on such a machine, e.g. l4x4."),
    option(
        "Hardware",
        "--timeout",
        metavar="T",
        default="2h",
        callback=timeout_of,
        help="Longest time of a job of --on, e.g. 90m or 6h [default: 2h]",
    ),
)
merge_options = stack(
    made(*(name for name in OFFERED if name != "overwrite")),
    option(
        "Everyday",
        "--config",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="YAML with sources and flag names as keys; flags win.",
    ),
    option("Everyday", "--like", metavar="DIR|ID", help="Use the settings of an earlier merge; flags win."),
    option(
        "Hardware",
        "--num-processes",
        type=click.IntRange(1),
        metavar="N",
        help="Processes (default: one per visible GPU, else 1).",
    ),
    job_options,
    dry_run_option,
    cache_option,
    run_options,
    push_to_hub_option,
    push_options,
    insist_options,
    common_options,
)
reproduce_options = stack(
    click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        default=Path("reproduction"),
        show_default=True,
        metavar="DIR",
        help="Sources, merges and results.",
    ),
    click.option(
        "--arch", "networks", multiple=True, metavar="A", help="Network; several times for several [the table's]."
    ),
    click.option(
        "--protocol",
        "protocols",
        multiple=True,
        type=click.Choice(["honest", "paper", "author"]),
        help="How it is searched and judged [all three].",
    ),
    click.option("--seeds", metavar="A,B", callback=seeds_of, help="Seeds of the sources [the paper's]."),
    click.option(
        "--sources",
        multiple=True,
        metavar="DIR|PREFIX",
        help="Where trained sources lie: DIR/resnet56-s44, PREFIXresnet56-s44; several times for several places.",
    ),
    made("dataset", usual="uoft-cs/cifar10"),
    click.option("--train-split", metavar="S", help="Images that missing sources are trained on [train[10%:]]."),
    click.option("--epochs", type=click.IntRange(1), metavar="N", help="Epochs of missing sources [50]."),
    click.option("--searches", type=click.IntRange(1), metavar="N", help="Seeds of the search in each row [3]."),
    made("population", "generations"),
    made("mutation_sigma", default=None, usual="0.1", text="Of the protocols paper and author."),
    made("fitness_images", usual="all", text="Images that steer a search."),
    click.option("--fine-tune-epochs", type=click.IntRange(0), metavar="N", help="Of protocol author in table2 [10]."),
    click.option("--bf16", is_flag=True, help="Train in bfloat16 autocast, on GPUs that have it."),
    click.option("--dry-run", is_flag=True, help="Print the hours that are left on this machine, and stop."),
    cache_option,
    cpu_option,
    token_option,
    common_options,
)
