"""The options of the commands, as decorators."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
METHODS: Final = [
    "mega",
    "cmaes",
    "random",
    "learned",
    "greedy-soup",
    "average",
    "slerp",
    "task-arithmetic",
    "ties",
    "dare-linear",
    "dare-ties",
    "fisher",
    "regmean",
]


def stack(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, listed in the order given."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def into_environment(_: click.Context, __: click.Parameter, token: str | None) -> None:
    """The Hub client reads its token there, and so do the processes that a command starts."""
    if token is not None:
        os.environ["HF_TOKEN"] = token


token_option = click.option(
    "--token",
    metavar="T",
    expose_value=False,
    is_eager=True,
    callback=into_environment,
    help="Hub token (default: HF_TOKEN, or that of `hf auth login`).",
)
data_options = stack(
    click.option(
        "--dataset", metavar="ID|FOLDER|digits", help="Dataset on the Hub, local folder, or the embedded digits."
    ),
    click.option("--image-column", metavar="C", help="Image column (default: the one of type Image)."),
    click.option("--label-column", metavar="C", help="Label column (default: the one of type ClassLabel)."),
)
push_options = stack(
    click.option("--private", is_flag=True, help="Make the repository private if it is new."),
    click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing to main."),
    click.option("--commit-message", metavar="M", help="Title of the commit."),
    token_option,
)
insist_options = stack(
    click.option("--push-anyway", is_flag=True, help="Publish the result also if it is one of the sources as it is."),
    click.option("--push-sources", is_flag=True, help="Publish local sources too, as ID-sources-NAME."),
)
common_options = stack(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
    click.option("-v", "--verbose", is_flag=True, help="Say more."),
)
run_options = stack(
    click.option("--overwrite", is_flag=True, help="Start anew in a folder that holds a run."),
    click.option("--cpu", is_flag=True, help="Do not use a GPU."),
)
merge_options = stack(
    click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Where the merge is written."),
    data_options,
    click.option("--fitness-split", metavar="S", help="Images that steer the search, e.g. 'train[:5000]'."),
    click.option(
        "--fitness-images", type=click.IntRange(2), metavar="N", help="Only so many of them, drawn at random."
    ),
    click.option(
        "--calibration-split", metavar="S", help="Images that re-estimate BatchNorm statistics (labels unused)."
    ),
    click.option("--test-split", metavar="S", help="Images of the report, read once at the end."),
    click.option("--confirm-share", type=float, metavar="P", help="Share of the fitness images kept for the run-off."),
    click.option("--allow-leak", is_flag=True, help="Let splits overlap; card, lineage and console will say so."),
    click.option("--preset", type=click.Choice(["default", "paper", "author"]), default="default", show_default=True),
    click.option("--population", type=int, metavar="N", help="Individuals per generation [20]."),
    click.option("--generations", type=int, metavar="G", help="Populations that are scored [20]."),
    click.option("--parents", type=int, metavar="K", help="Parents per generation [4]."),
    click.option("--tournament", type=int, metavar="T", help="Individuals per tournament [3]."),
    click.option(
        "--mutation-rate", type=float, metavar="P", help="Probability that an element (or tensor) mutates [0.02]."
    ),
    click.option(
        "--mutation-sigma", type=float, metavar="S", help="Standard deviation of a mutation [0.01; paper, author: 0.1]."
    ),
    click.option("--mutation-unit", type=click.Choice(["element", "tensor"]), help="What mutates as one."),
    click.option("--fitness", type=click.Choice(["accuracy", "loss"]), help="What the search maximises or minimises."),
    click.option(
        "--genome",
        type=click.Choice(["model", "stage", "layer", "tensor", "channel"]),
        help="What has coefficients of its own: mega, learned [model].",
    ),
    click.option(
        "--calibrate/--no-calibrate",
        default=None,
        help="BatchNorm statistics re-estimated or not (neither: tried on the fitness split).",
    ),
    click.option(
        "--tree",
        type=click.Choice(["pairs", "flat"]),
        default="pairs",
        show_default=True,
        help="Pairs, then pairs of results; or one search over all sources at once.",
    ),
    click.option(
        "--order",
        type=click.Choice(["given", "strongest-first", "similar-first"]),
        default="given",
        show_default=True,
        help="Who meets whom in the tree.",
    ),
    click.option(
        "--method",
        type=click.Choice(METHODS),
        default="mega",
        show_default=True,
        help="A search (the first four), or a static method.",
    ),
    click.option(
        "--base",
        metavar="SOURCE",
        help="What the sources started from: task vectors; for cmaes, learned one more source.",
    ),
    click.option("--scale", type=float, default=1.0, show_default=True, metavar="X", help="Lambda of task vectors."),
    click.option(
        "--density", type=float, default=0.5, show_default=True, metavar="P", help="Share that ties, dare keep."
    ),
    click.option(
        "--align",
        type=click.Choice(["none", "weights", "activations"]),
        default="none",
        show_default=True,
        help="Permute the channels of the sources to match the first one's.",
    ),
    click.option("--exact", is_flag=True, help="No racing: every individual sees every fitness image."),
    click.option("--bf16", is_flag=True, help="Scores of the search in bfloat16, on devices that have it."),
    click.option("--fp16", is_flag=True, help="Scores of the search in float16, on devices that have it."),
    click.option("--control", is_flag=True, help="Also what the best source gains alone, with the same budget."),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the search."),
    click.option(
        "--num-processes", type=click.IntRange(1), metavar="N", help="Processes (default: one per visible GPU, else 1)."
    ),
    click.option("--dry-run", is_flag=True, help="Print the plan and its cost on this machine, and stop."),
    run_options,
    click.option("--push-to-hub", metavar="ID", help="Publish the folder as user/name."),
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
    click.option("--seeds", metavar="A,B", help="Seeds of the sources [the paper's]."),
    click.option(
        "--sources", metavar="DIR|PREFIX", help="Where trained sources lie: DIR/resnet56-s44, PREFIXresnet56-s44."
    ),
    click.option("--dataset", metavar="ID|FOLDER|digits", help="Dataset [uoft-cs/cifar10]."),
    click.option("--train-split", metavar="S", help="Images that missing sources are trained on [train[10%:]]."),
    click.option("--epochs", type=click.IntRange(1), metavar="N", help="Epochs of missing sources [50]."),
    click.option("--searches", type=click.IntRange(1), metavar="N", help="Seeds of the search in each row [3]."),
    click.option("--population", type=int, metavar="N", help="Individuals per generation [20]."),
    click.option("--generations", type=int, metavar="G", help="Populations that are scored [20]."),
    click.option("--mutation-sigma", type=float, metavar="S", help="Of the protocols paper and author [0.1]."),
    click.option("--fitness-images", type=click.IntRange(2), metavar="N", help="Images that steer a search [all]."),
    click.option("--fine-tune-epochs", type=click.IntRange(0), metavar="N", help="Of protocol author in table2 [10]."),
    click.option("--bf16", is_flag=True, help="Train in bfloat16 autocast, on GPUs that have it."),
    click.option("--dry-run", is_flag=True, help="Print the hours that are left on this machine, and stop."),
    click.option("--cpu", is_flag=True, help="Do not use a GPU."),
    token_option,
    common_options,
)
