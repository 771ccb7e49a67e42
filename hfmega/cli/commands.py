"""The commands: parse, call, print. No logic of its own, and nothing heavy is imported before a command runs."""

import errno
import os
import sys
import traceback
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from hfmega import __version__
from hfmega.cli.options import (
    common_options,
    data_options,
    insist_options,
    merge_options,
    push_options,
    reproduce_options,
    run_options,
    token_option,
)
from hfmega.errors import HfmegaError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="hfmega")
def cli() -> None:
    """Merge checkpoints from the Hugging Face Hub into one, prove what was gained, publish it with its lineage."""


@cli.command(short_help="Merge two or more checkpoints into one.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE SOURCE...")
@merge_options
def merge(sources: tuple[str, ...], **flags: Any) -> None:
    """Merge two or more checkpoints: user/name[@revision], hf://user/name[@revision], or local folders."""
    from hfmega import launch

    processes = launch.processes_wanted(flags["num_processes"], flags["cpu"])
    if processes > 1:
        sys.exit(launch.relaunch(sys.argv[1:], processes, flags["cpu"]))
    use_cpu(flags["cpu"])
    from hfmega.cli.flags import merge_settings
    from hfmega.hub.push import repository
    from hfmega.merging import estimate
    from hfmega.merging.merge import merge as run_merge
    from hfmega.report import card, lineage, wording

    settings, output = merge_settings(sources, flags), open_output(flags)
    if flags["dry_run"]:
        found = estimate.estimate(settings)
        output.table("What this merge would do", *estimate.described(found))
        output.result(estimate.spoken(found.seconds), asdict(found))
        return
    with repository(push_target(flags["push_to_hub"], flags)) as target:
        made = run_merge(settings, output)
        if made is None:
            return
        output.table("On the test images", *card.comparison_rows(made))
        output.say(wording.verdict(made))
        url = publish(settings.output, target, output, flags)
    output.result(settings.output, lineage.summary(made, settings.output, url))


@cli.command(short_help="Train a source by the paper's protocol.")
@click.argument("network", metavar="ARCH|SOURCE")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Checkpoint folder."
)
@data_options
@click.option("--train-split", default="train[10%:]", show_default=True, metavar="S", help="Images to train on.")
@click.option("--epochs", type=int, default=50, show_default=True, metavar="N")
@click.option("--batch-size", type=int, default=256, show_default=True, metavar="N")
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
@click.option("--bf16", is_flag=True, help="bfloat16 autocast, on GPUs that have it.")
@click.option("--compile/--no-compile", "compiled", default=None, help="torch.compile (neither: probed, on a GPU).")
@run_options
@click.option("--push-to-hub", metavar="ID", help="Publish the folder as user/name.")
@push_options
@common_options
def train(network: str, **flags: Any) -> None:
    """Train a source by the paper's protocol; its card records the split and the seed."""
    use_cpu(flags["cpu"])
    from hfmega.hub.push import repository
    from hfmega.study.train import TrainSettings
    from hfmega.study.train import train as run_train

    output = open_output(flags)
    names = {f.name for f in fields(TrainSettings)} & flags.keys()
    settings = TrainSettings(network, **{name: flags[name] for name in names if flags[name] is not None})
    with repository(push_target(flags["push_to_hub"], flags)) as target:
        held_out = run_train(settings, output)
        if held_out:
            output.say(f"accuracy {held_out.accuracy:.4f} on the {held_out.total:,} held-out images ({held_out.split})")
        publish(settings.output, target, output, flags)
    output.result(settings.output, {"output": str(settings.output), "held_out": asdict(held_out) if held_out else None})


@cli.command(short_help="Accuracy, loss and intervals of a checkpoint.")
@click.argument("source", metavar="SOURCE")
@data_options
@click.option("--split", metavar="S", help="Images (default: those that a merge was reported on, else the test split).")
@click.option("--cpu", is_flag=True, help="Do not use a GPU.")
@token_option
@common_options
def evaluate(source: str, **flags: Any) -> None:
    """Accuracy with a 95 % interval, loss, and accuracy per class of one checkpoint."""
    use_cpu(flags["cpu"])
    from hfmega.evaluation.checkpoint import evaluate_checkpoint
    from hfmega.merging.evaluate import evaluation_target

    output = open_output(flags)
    checkpoint, dataset, split = evaluation_target(
        source, flags["dataset"], flags["split"], flags["image_column"], flags["label_column"]
    )
    found = evaluate_checkpoint(checkpoint, dataset, split)
    output.table(f"{source} on {split}", ["class", "accuracy"], [[c, f"{a:.4f}"] for c, a in found.per_class.items()])
    low, high = found.interval
    output.say(
        f"accuracy {found.accuracy:.4f} ({found.correct:,} of {found.total:,}), "
        f"95 % interval {low:.4f} to {high:.4f}, loss {found.loss:.4f}"
    )
    output.result(f"{found.accuracy:.4f}", asdict(found))


@cli.command(short_help="What several checkpoints are to each other, and whether merging them will pay.")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE SOURCE...")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Where the picture is written.")
@data_options
@click.option("--fitness-split", metavar="S", help="Held-out images to look at, e.g. 'train[:5000]'.")
@click.option(
    "--fitness-images", type=click.IntRange(2), default=2000, show_default=True, metavar="N", help="So many of them."
)
@click.option("--calibration-split", metavar="S", help="Images that re-estimate BatchNorm statistics (labels unused).")
@click.option("--cpu", is_flag=True, help="Do not use a GPU.")
@token_option
@common_options
def inspect(sources: tuple[str, ...], **flags: Any) -> None:
    """Compatibility, relation, the paths between the sources, their ensemble, and advice: to merge or not, and how."""
    use_cpu(flags["cpu"])
    from hfmega.cli.flags import inspect_settings
    from hfmega.merging.inspect import inspect as look
    from hfmega.report import inspection

    output = open_output(flags)
    settings = inspect_settings(sources, flags)
    found = look(settings, output)
    path = inspection.write(found, settings.output)
    if found.compatible:
        output.table(f"On {found.images:,} held-out images ({found.split})", *inspection.rows(found))
        if flags["verbose"]:
            for pair in found.pairs:
                output.table(f"{pair.first} and {pair.second}", *inspection.layer_rows(pair))
        output.say(f"relation: {found.relation}")
    output.say(found.advice)
    output.result(path, inspection.summary(found))


@cli.command(short_help="Rebuild a merge from its lineage; compare the hash.")
@click.argument("source", metavar="DIR|ID")
@click.option("--sources", type=click.Path(path_type=Path, exists=True), metavar="DIR", help="Where local sources lie.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Keep the rebuilt weights here.")
@token_option
@common_options
def replay(source: str, sources: Path | None, **flags: Any) -> None:
    """Rebuild a merge from its lineage and its pinned sources, and compare the sha256; exit 0 only when equal."""
    from hfmega.merging.replay import replay as run_replay

    output = open_output(flags)
    found = run_replay(source, sources, flags["output"])
    output.say(f"rebuilt {found.sha256}\nlineage {found.expected}\n{'equal' if found.equal else 'DIFFERENT'}")
    output.result(found.sha256, {"sha256": found.sha256, "expected": found.expected, "equal": found.equal})
    sys.exit(0 if found.equal else 1)


@cli.command(short_help="Check every claim of a merge: replay, evaluation, card.")
@click.argument("source", metavar="DIR|ID")
@click.option("--dataset", metavar="ID|FOLDER|digits", help="Where the images are [as the lineage says].")
@click.option("--sources", type=click.Path(path_type=Path, exists=True), metavar="DIR", help="Where local sources lie.")
@click.option("--cpu", is_flag=True, help="Do not use a GPU.")
@token_option
@common_options
def verify(source: str, dataset: str | None, sources: Path | None, **flags: Any) -> None:
    """Replay a merge, compare every tensor, evaluate again, hold card against lineage; exit 0 only if all holds."""
    use_cpu(flags["cpu"])
    from hfmega.merging import verify as proof

    output, checks = open_output(flags), []
    for check in proof.verify(source, dataset, sources):
        output.say(f"{'ok' if check.ok else 'FAILED':6} {check.name}: {check.detail}")
        checks.append(check)
    verified = all(check.ok for check in checks)
    fields_ = {"verified": verified, "checks": [asdict(check) for check in checks]}
    output.result("verified" if verified else "NOT verified", fields_)
    sys.exit(0 if verified else 1)


@cli.command(short_help="Run the paper's tables and figure.")
@click.argument("table", type=click.Choice(["table1", "table2", "figure2"]))
@reproduce_options
def reproduce(table: str, **flags: Any) -> None:
    """Train what is missing, merge it by each protocol, and put the results beside what the paper prints."""
    use_cpu(flags["cpu"])
    from hfmega.cli.flags import reproduce_settings
    from hfmega.study import reproduce as study
    from hfmega.study import results

    output, settings = open_output(flags), reproduce_settings(table, flags)
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
    """Publish a finished folder as user/name, in one commit."""
    output = open_output(flags)
    url = publish(folder, push_target(repo_id, flags), output, flags)
    output.result(url or folder, {"url": url})


def use_cpu(cpu: bool) -> None:
    """Accelerate reads its device from the environment."""
    if cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"


def open_output(flags: dict[str, Any]) -> Any:
    """The output sink of this process: only the main one speaks."""
    from hfmega.output import Output

    return Output(flags["as_json"], muted=os.environ.get("RANK", "0") != "0", verbose=flags["verbose"])


def push_target(repo_id: str | None, flags: dict[str, Any]) -> Any:
    """Where to publish, if anywhere."""
    from hfmega.hub.push import Push

    if repo_id is None:
        return None
    return Push(repo_id, flags["private"], flags["create_pr"], flags["commit_message"])


def publish(folder: Path, target: Any, output: Any, flags: dict[str, Any]) -> str | None:
    """Push a folder if there is a target; where it went, if anywhere."""
    from hfmega.merging.publish import publish as publish_folder

    if target is None:
        return None
    return publish_folder(folder, target, output, flags.get("push_anyway", False), flags.get("push_sources", False))


def hide_token() -> None:
    """Start again with the token of `--token` in the environment: a command line is seen by everyone on a machine."""
    given = [k for k, word in enumerate(sys.argv) if word == "--token" or word.startswith("--token=")]
    if not given or sys.argv[1:] != sys.orig_argv[-len(sys.argv[1:]) :] or os.name != "posix":
        return
    words = sys.argv[1:]
    while given:
        at = next(k for k, word in enumerate(words) if word == "--token" or word.startswith("--token="))
        _, equals, token = words.pop(at).partition("=")
        os.environ["HF_TOKEN"] = token if equals else words.pop(at) if at < len(words) else ""
        given.pop()
    os.execv(sys.executable, [sys.executable, "-m", "hfmega", *words])


def main() -> None:
    """The entry point: exit 0 done, 1 a problem stated in one sentence, 2 wrong usage, 130 interrupted."""
    hide_token()
    sys.excepthook = show
    debug = "--debug" in sys.argv
    try:
        sys.exit(cli.main(prog_name="hfmega", standalone_mode=False) or 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted; the same command resumes where it stopped.", 130)
    except HfmegaError as error:
        if debug:
            raise
        fail(str(error), 1)
    except OSError as error:
        if debug:
            raise
        fail(disk_problem(error), 1)
    except RuntimeError as error:
        from hfmega.launch import lost_a_peer

        if debug or not lost_a_peer(error):
            raise
        fail("another process of this run has ended; the same command resumes where it stopped.", 1)
    finally:
        from hfmega.launch import leave

        leave()


def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback on stderr, without a token that a message of the Hub may repeat."""
    from hfmega.hub.problems import without_token

    click.echo(without_token("".join(traceback.format_exception(kind, error, trace))), err=True, nl=False)


def disk_problem(error: OSError) -> str:
    """The sentence for a disk that is full or may not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space, and the same command resumes where it stopped."
    return f"{error.strerror or error}: {error.filename or 'a file'}."


def fail(sentence: str, code: int) -> None:
    """One sentence on stderr, once however many processes there are."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"hfmega: {sentence}", err=True)
    sys.exit(code)
