"""The commands: parse, call, print. No logic of its own, and nothing heavy is imported before a command runs."""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import rich_click as click

from hfmega import __version__
from hfmega.cli.config import merge_settings
from hfmega.cli.display import close_output, open_output
from hfmega.cli.errors import code_of, hide_token, show, terminable
from hfmega.cli.on import as_job
from hfmega.cli.options import (
    cache_option,
    common_options,
    cpu_option,
    data_options,
    grouped,
    insist_options,
    made,
    merge_options,
    push_options,
    push_to_hub_option,
    reproduce_options,
    run_options,
    token_option,
)
from hfmega.cli.publishing import publish, push_target, shown
from hfmega.errors import step
from hfmega.launch import DISTRIBUTED, Terminated, leave
from hfmega.settings import MergeSettings, default_folder


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hfmega")
def cli() -> None:
    """Merge checkpoints from the Hugging Face Hub into one, prove what was gained, publish it with its lineage."""


@cli.command(short_help="Merge two or more checkpoints into one.")
@click.argument("sources", nargs=-1, metavar="SOURCE SOURCE...")
@merge_options
@click.pass_context
def merge(context: click.RichContext, /, sources: tuple[str, ...], **flags: Any) -> None:
    """Merge two or more checkpoints: user/name[@revision], hf://user/name[@revision], or local folders.

    \b
    Examples:
    hfmega merge ann/resnet-a bob/resnet-b --dataset uoft-cs/cifar10
    hfmega merge ./a ./b ./c --method greedy-soup --dataset ./photos -o soup
    hfmega merge ann/resnet-a bob/resnet-b --like merges/a+b --seed 1 --push-to-hub ann/merged
    """
    output = open_output(flags)
    from hfmega import launch

    settings = merge_settings(context, sources, flags)
    if flags["on"]:
        as_job(settings, output, flags)
        return
    processes = launch.processes_wanted(flags["num_processes"], flags["cpu"])
    if processes > 1:
        output.close()  # each process has an output of its own
        sys.exit(launch.relaunch(sys.argv[1:], processes, flags["cpu"]))
    use_cpu(flags["cpu"])
    from hfmega.merging import estimate
    from hfmega.merging.merge import merge as run_merge
    from hfmega.phases import duration

    if flags["dry_run"]:
        found = estimate.estimate(settings)
        output.table("What this merge would do", *estimate.described(found))
        output.result(duration(found.seconds), asdict(found))
        return
    shown(partial(run_merge, settings, output), settings.output, output, flags)


click.rich_click.OPTION_GROUPS["hfmega merge"] = grouped(merge)


@cli.command(short_help="Train a source by the paper's protocol.")
@click.argument("network", metavar="ARCH|SOURCE")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Checkpoint folder."
)
@data_options
@click.option("--train-split", default="train[10%:]", show_default=True, metavar="S", help="Images to train on.")
@click.option("--epochs", type=int, default=50, show_default=True, metavar="N", help="Epochs.")
@click.option("--batch-size", type=int, default=256, show_default=True, metavar="N", help="Images of a step.")
@click.option(
    "--lr", "learning_rate", type=float, default=0.01, show_default=True, metavar="X", help="Learning rate of Adam."
)
@click.option(
    "--decay",
    type=click.Choice(["constant", "cosine"]),
    default="constant",
    show_default=True,
    help="How the learning rate goes: as it is (the paper), or down to zero.",
)
@click.option("--augment", is_flag=True, help="Random flips and crops.")
@click.option("--seed", type=int, default=56, show_default=True, metavar="N", help="Seed of weights and order.")
@click.option("--init", metavar="SOURCE", help="Checkpoint to start from, e.g. the trunk of several branches.")
@click.option("--image-size", type=click.IntRange(8), metavar="N", help="Pixels of a side [what timm says].")
@click.option(
    "--update-bn/--no-update-bn",
    default=True,
    show_default=True,
    help="Re-estimate BatchNorm statistics at the end (the paper did not).",
)
@click.option("--bf16", is_flag=True, help="bfloat16 autocast, on GPUs that have it.")
@click.option("--compile/--no-compile", "compiled", default=None, help="torch.compile (neither: probed, on a GPU).")
@run_options
@push_to_hub_option
@push_options
@common_options
def train(network: str, **flags: Any) -> None:
    """Train a source by the paper's protocol; its card records the split and the seed."""
    output = open_output(flags)
    use_cpu(flags["cpu"])
    from hfmega.hub.push import repository
    from hfmega.study.train import TrainSettings, spoken
    from hfmega.study.train import train as run_train

    names = {f.name for f in fields(TrainSettings)} & flags.keys()
    settings = TrainSettings(network, **{name: flags[name] for name in names if flags[name] is not None})
    with repository(push_target(flags["push_to_hub"], flags)) as target:
        with step(f"training {network}"):
            trained = run_train(settings, output)
        for line in spoken(trained, settings.update_bn):
            output.say(line)
        publish(settings.output, target, output, flags)
        output.finish(f"{settings.output}", [f"hfmega evaluate {settings.output}"])
    output.result(settings.output, {"output": str(settings.output), **asdict(trained)})


@cli.command("update-bn", short_help="Re-estimate the BatchNorm statistics of a checkpoint.")
@click.argument("source", metavar="SOURCE")
@made("output", usual="updated/SOURCE", text="Folder of the result.")
@data_options
@made(
    "calibration_split",
    usual="1,000 of those that the source was trained on",
    text="Images to re-estimate from (labels unused).",
)
@made("test_split", usual="the test split; of a merge the images of its report")
@made("no_images")
@run_options
@push_to_hub_option
@push_options
@insist_options
@common_options
def update_bn(source: str, **flags: Any) -> None:
    """Re-estimate BatchNorm statistics as exact averages, and compare with the source as it is on the test images."""
    output = open_output(flags)
    use_cpu(flags["cpu"])
    from hfmega.merging import update_bn as updating

    settings = updating.settings_of(source, flags["output"], **{name: flags[name] for name in updating.NAMES})
    shown(partial(updating.update_bn, settings, output), settings.output, output, flags)


@cli.command(short_help="Accuracy, loss and intervals of a checkpoint.")
@click.argument("source", metavar="SOURCE")
@data_options
@click.option("--split", metavar="S", help="Images (default: those that a merge was reported on, else the test split).")
@cpu_option
@token_option
@common_options
def evaluate(source: str, **flags: Any) -> None:
    """Accuracy with a 95 % interval, loss, and accuracy per class of one checkpoint."""
    output = open_output(flags)
    use_cpu(flags["cpu"])
    from hfmega.evaluation.checkpoint import evaluate_checkpoint
    from hfmega.merging.evaluate import evaluation_target

    checkpoint, dataset, split = evaluation_target(
        source,
        flags["dataset"],
        flags["split"],
        flags["image_column"],
        flags["label_column"],
        flags["labels_by_number"],
    )
    found = evaluate_checkpoint(checkpoint, dataset, split)
    for note in found.notes:
        output.say(note)
    output.table(f"{source} on {split}", ["class", "accuracy"], [[c, f"{a:.4f}"] for c, a in found.per_class.items()])
    low, high = found.interval
    output.say(
        f"accuracy {found.accuracy:.4f} ({found.correct:,} of {found.total:,}), "
        f"95 % interval {low:.4f} to {high:.4f}, loss {found.loss:.4f}"
    )
    output.result(f"{found.accuracy:.4f}", asdict(found))


@cli.command(short_help="How checkpoints are related, and whether a merge is likely to help.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE SOURCE...")
@made("output", usual="inspections/FIRST+SECOND", text="Folder of the picture.")
@data_options
@made("fitness_split", usual=None, text="Held-out images to look at, e.g. 'train[:5000]'.")
@made("fitness_images", default=2000)
@made("calibration_split")
@cpu_option
@token_option
@common_options
def inspect(sources: tuple[str, ...], **flags: Any) -> None:
    """Compatibility, relation, the paths between the sources, their ensemble, and advice: to merge or not, and how."""
    output = open_output(flags)
    use_cpu(flags["cpu"])
    settings = inspect_settings(sources, flags)
    from hfmega.merging.inspect import inspect as look
    from hfmega.report import expectations, inspection

    with step(f"inspecting {' and '.join(sources)}"):
        found = look(settings, output)
    path = inspection.write(found, settings.output)
    if found.compatible:
        output.table(f"On {found.images:,} held-out images ({found.split})", *inspection.rows(found))
        if flags["verbose"]:
            for pair in found.pairs:
                output.table(f"{pair.first} and {pair.second}", *inspection.layer_rows(pair))
        output.say(f"relation: {found.relation}")
    if found.expected:
        output.table(
            f"Measured on sources that are related so ({expectations.CARD})", *expectations.rows(found.expected)
        )
    output.say(found.advice)
    output.result(path, inspection.summary(found))


@cli.command(short_help="Weights in a pickle as safetensors.")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder [that of the file].")
@click.option("--entry", metavar="NAME", help="Where in the file the weights lie [EMA weights first, as timm does].")
@click.option("--overwrite", is_flag=True, help="Replace a model.safetensors that is there.")
@common_options
def convert(file: Path, **flags: Any) -> None:
    """Write the weights in a pickle (.pt, .pth, .pth.tar, .ckpt, .bin) as model.safetensors; run none of its code."""
    from hfmega.weights import convert as converting

    output = open_output(flags)
    found = converting.convert(file, flags["output"], flags["entry"], flags["overwrite"])
    for line in converting.spoken(found):
        output.say(line)
    output.result(found.output, asdict(found))


@cli.command(short_help="Rebuild a merge from its lineage; compare the hash.")
@click.argument("source", metavar="DIR|ID")
@click.option("--sources", type=click.Path(path_type=Path, exists=True), metavar="DIR", help="Where local sources lie.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Keep the rebuilt weights here.")
@token_option
@common_options
def replay(source: str, sources: Path | None, **flags: Any) -> None:
    """Rebuild a merge from its lineage and its pinned sources, and compare the sha256; exit 0 only when equal."""
    output = open_output(flags)
    from hfmega.merging.replay import replay as run_replay

    with step(f"replaying {source}"):
        found = run_replay(source, sources, flags["output"])
    output.say(f"rebuilt {found.sha256}\nlineage {found.expected}\n{'equal' if found.equal else 'DIFFERENT'}")
    output.result(found.sha256, {"sha256": found.sha256, "expected": found.expected, "equal": found.equal})
    sys.exit(0 if found.equal else 1)


@cli.command(short_help="Check every claim of a merge: replay, evaluation, card.")
@click.argument("source", metavar="DIR|ID")
@click.option("--dataset", metavar="ID|FOLDER|digits", help="Where the images are [as the lineage says].")
@click.option("--sources", type=click.Path(path_type=Path, exists=True), metavar="DIR", help="Where local sources lie.")
@click.option("--retrain", is_flag=True, help="Also train the last mile again, and compare accuracies: minutes.")
@cache_option
@cpu_option
@token_option
@common_options
def verify(source: str, dataset: str | None, sources: Path | None, retrain: bool, **flags: Any) -> None:
    """Replay a merge, compare every tensor, evaluate again, hold card against lineage; exit 0 only if all holds."""
    output, checks = open_output(flags), []
    use_cpu(flags["cpu"])
    from hfmega.merging import verify as proof

    with step(f"verifying {source}"):
        for check in proof.verify(source, dataset, sources, retrain):
            output.say(f"{'ok' if check.ok else 'FAILED':6} {check.name}: {check.detail}")
            checks.append(check)
    verified = all(check.ok for check in checks)
    fields_ = {"verified": verified, "checks": [asdict(check) for check in checks]}
    output.result("verified" if verified else "NOT verified", fields_)
    sys.exit(0 if verified else 1)


@cli.command("list", short_help="The merges below a folder, in one table.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="[DIR]", default=Path())
@common_options
def list_(folder: Path, **flags: Any) -> None:
    """List the merges below a folder (here, if none is named): sources, method, accuracy, gain, verdict, date."""
    from hfmega.report import listing

    output = open_output(flags)
    found, problems = listing.merges(folder)
    for sentence in problems:
        output.say(f"left out: {sentence}")
    if found:
        output.table(f"Merges below {folder}", *listing.table(found))
    output.result(f"{len(found)} merge{'' if len(found) == 1 else 's'}", listing.summary(found))


@cli.command("report", short_help="A merge as one self-contained HTML page.")
@click.argument("source", metavar="DIR|ID")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where [DIR/report.html; of a merge on the Hub NAME-report.html].")  # fmt: skip
@click.option("--no-images", is_flag=True, help="Leave test images out.")
@token_option
@common_options
def report_(source: str, no_images: bool, **flags: Any) -> None:
    """Make report.html from a lineage: verdict, comparison, search, tree, classes, commands; it needs no network."""
    from hfmega.report import page

    output = open_output(flags)
    path = page.report_of(source, flags["output"], not no_images)
    output.result(path, {"output": str(path)})


@cli.command(short_help="Run the paper's tables and figure.")
@click.argument("table", type=click.Choice(["table1", "table2", "figure2"]))
@reproduce_options
def reproduce(table: str, **flags: Any) -> None:
    """Train what is missing, merge it by each protocol, and put the results beside what the paper prints."""
    output = open_output(flags)
    use_cpu(flags["cpu"])
    from hfmega.study import reproduce as study
    from hfmega.study import results

    names = {f.name for f in fields(study.ReproduceSettings)} & flags.keys()
    given = {name: flags[name] for name in names if flags[name] not in (None, ())}
    settings = study.ReproduceSettings(**given, table=table)  # type: ignore[arg-type]
    if flags["dry_run"]:
        hours = study.estimate(settings)
        output.table(f"Hours left for {table} on this machine", *study.hour_rows(hours))
        total = sum(network.total for network in hours)
        output.result(f"{total / 3600:.2f} hours", {"seconds": total, "networks": [asdict(h) for h in hours]})
        return
    runs = study.reproduce(settings, output)
    page = results.write(table, runs, settings.output)
    rows = results.rows_of(table, runs)
    output.table(f"{table}: test accuracy", *results.spoken(rows, brief=True))
    output.result(page, {"output": str(page), "rows": [asdict(row) for row in rows]})


@cli.command(short_help="Publish a finished folder on the Hub.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.argument("repo_id", metavar="ID")
@push_options
@insist_options
@common_options
def push(folder: Path, repo_id: str, **flags: Any) -> None:
    """Publish a finished folder as user/name, in one commit. The order of `hf upload`, ID DIR, works too."""
    if not folder.is_dir() and Path(repo_id).is_dir():
        folder, repo_id = Path(repo_id), folder.as_posix()
    output = open_output(flags)
    url = publish(folder, push_target(repo_id, flags), output, flags)
    output.result(url or folder, {"url": url})


@cli.command(short_help="Open the page: choose, merge, look, publish.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("merges"), metavar="[DIR]")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Port [the first free one from 7860 on].")
@click.option("--no-browser", is_flag=True, help="Do not open the browser.")
@click.option("--to-space", metavar="ID", help="Write the page as a Space of the Hub instead, and push it.")
@push_options
@common_options
def app(folder: Path, **flags: Any) -> None:
    """Open a page in the browser that shows whether merging pays, runs merges below DIR, and publishes them.

    It answers this machine alone. DIR is `merges` where it is not named.
    """
    output = open_output(flags)
    if flags["to_space"]:
        from hfmega.app import space

        url = space.push(push_target(flags["to_space"], flags))
        output.say(f"the Space installs hfmega {__version__} from PyPI: it starts when that version is there")
        output.result(url, {"url": url})
        return
    from hfmega.app.serve import serve

    serve(folder, flags["port"], browser=not flags["no_browser"])


def inspect_settings(sources: tuple[str, ...], flags: dict[str, Any]) -> MergeSettings:
    """The sources and images as a merge would take them, with every fitness image for the search."""
    columns = ("dataset", "image_column", "label_column", "labels_by_number")
    named = (*columns, "fitness_split", "fitness_images", "calibration_split")
    return MergeSettings.of(
        *sources,
        output=flags["output"] or default_folder(*sources, parent="inspections"),
        confirm_share=0.0,
        **{name: flags[name] for name in named},
    )


def use_cpu(cpu: bool) -> None:
    """Accelerate reads its device from the environment."""
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"


def say_start(arguments: Sequence[str]) -> None:
    """A first line at once: importing torch and timm takes seconds, in which nothing else can be said."""
    command, silent = next(iter(arguments), ""), not {"-h", "--help", "-q", "--quiet"}.isdisjoint(arguments)
    if command in cli.commands and not silent and DISTRIBUTED not in os.environ:
        click.echo(f"hfmega {__version__}: {command}", err=True)


def main() -> None:
    """The entry point: exit 0 done, 1 a problem stated in one sentence, 2 wrong usage, 130 or 143 stopped."""
    hide_token()
    sys.excepthook = show
    say_start(sys.argv[1:])
    try:
        with terminable():
            sys.exit(cli.main(prog_name="hfmega", standalone_mode=False) or 0)
    except (Exception, KeyboardInterrupt, Terminated) as error:
        close_output()
        sys.exit(code_of(error, "--debug" in sys.argv))
    finally:
        close_output()
        leave()
