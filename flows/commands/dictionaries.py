"""`lensmith dictionaries ...`: list, train, measure, compare and export; and what `lensmith bench` says of them."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["COMMANDS", "GROUPS", "measure_cache", "measure_synthetic", "measure_training"]

group = typer.Typer(
    help="List, train, measure, compare and export dictionaries (sparse autoencoders).\n\n"
    "Example: lensmith dictionaries list",
    no_args_is_help=True,
)

KINDS = (
    "standard, topk, batchtopk, gated, jumprelu, matryoshka, abstopk, matching_pursuit or p_anneal; or a baseline:"
    " identity (neurons), ica, pca, random."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


@group.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the saved dictionaries with their headline metrics.

    Example: lensmith dictionaries list
    """
    from stages.tools.dictionaries import list_dictionaries

    rows = [row.facts() for row in list_dictionaries()]
    _show(rows if as_json else [_short(row) for row in rows], as_json, "saved")


@group.command()
def train(
    target: Annotated[str, typer.Argument(help="Name of a target with cached activations.")],
    hook: Annotated[str, typer.Argument(help="Name of a cached hook point.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to save it in.")],
    architecture: Annotated[str, typer.Option("--architecture", help=KINDS)] = "topk",
    n_latents: Annotated[int, typer.Option("--n-latents", min=2, max=65_536, help="Size of the dictionary.")] = 256,
    sparsity: Annotated[
        float, typer.Option("--sparsity", help="Latents per row; for standard, gated, p_anneal: a coefficient.")
    ] = 8.0,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=1_000_000, help="Optimiser steps; else 400. Not of baselines.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=2, help="Rows per step; else 256. Not of baselines.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Of Adam; else 0.003. Not of baselines.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds weights and order of rows.")] = 0,
    to: Annotated[str | None, typer.Option("--to", help="A transcoder: the hook point to predict.")] = None,
    skip: Annotated[bool, typer.Option("--skip", help="A transcoder with a linear path beside the latents.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="A transcoder's state; resumed where it is there.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one on a target's cache, save it in SAELens format, measure what was saved.

    Example: lensmith dictionaries train digits_mlp layers.0.hook_post --out my_dictionary
    """
    from flows.progress import counting
    from stages.dictionaries.evaluation.baselines import BASELINES
    from stages.errors import UserError

    if architecture in BASELINES:
        for option, given in (("--steps", steps), ("--batch", batch), ("--lr", lr), ("--to", to)):
            if given is not None:
                raise UserError(
                    f"{option} {given} does nothing with --architecture {architecture}, which is not trained: leave it"
                    " out"
                )
        if sparsity != int(sparsity):
            raise UserError(f"--sparsity {sparsity:g}: {architecture} keeps a whole number of latents per row")
    steps, batch, lr = steps or 400, batch or 256, 3e-3 if lr is None else lr
    if to is not None:
        from stages.tools.transcoders import train_between

        with counting("training"):
            measured = train_between(
                target, hook, to, architecture, skip=skip, n_latents=n_latents, sparsity=sparsity, steps=steps,
                batch=batch, lr=lr, seed=seed, out=out, checkpoint=checkpoint,
            )  # fmt: skip
        _show_metrics(measured.facts(), as_json)
        return
    if skip or checkpoint is not None:
        raise UserError("--skip and --checkpoint are of transcoders: give --to HOOK as well")
    from stages.tools.dictionaries import train_one

    with counting("training"):
        made = train_one(
            target, hook, architecture, n_latents=n_latents, sparsity=sparsity, steps=steps, batch=batch, lr=lr,
            seed=seed, out=out,
        )  # fmt: skip
    _show_metrics(made.facts(), as_json)


@group.command("eval")
def evaluate(
    name: Annotated[str, typer.Argument(help="Folder in SAELens format, or a name from `list`.")],
    target: Annotated[str | None, typer.Option("--target", help="Where the folder does not say it.")] = None,
    hook: Annotated[str | None, typer.Option("--hook", help="Where the folder does not say it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a saved one on held-out rows, next to a random one of the same L0.

    Example: lensmith dictionaries eval digits_mlp/layers.0.hook_post/topk
    """
    from stages.errors import UserError
    from stages.tools.dictionaries import evaluate_dictionary

    if (target is None) != (hook is None):
        raise UserError("--target and --hook go together: give both, or neither where the folder says them")
    _show_metrics(evaluate_dictionary(name, target, hook).facts(), as_json)


@group.command()
def compare(
    one: Annotated[str, typer.Argument(help="Folder in SAELens format, or a name from `list`.")],
    other: Annotated[str, typer.Argument(help="Another.")],
    as_json: AsJson = False,
) -> None:
    """Compare two: every metric of both, and how alike their latents are, next to random ones.

    Example: lensmith dictionaries compare digits_mlp/layers.0.hook_post/topk digits_mlp/layers.0.hook_post/standard
    """
    from stages.tools.dictionaries import compare_dictionaries

    _show(compare_dictionaries(one, other).facts(), as_json, "")


Release = Annotated[str | None, typer.Option("--release", help="Of SAELens, or OWNER/REPOSITORY; with --id.")]
Id = Annotated[str | None, typer.Option("--id", help="Of the dictionary in that release.")]
Model = Annotated[str | None, typer.Option("--model", help="What it calls the target's model, if not as here.")]


def _given(folder: str | None, release: str | None, id_: str | None) -> "str | tuple[str, str]":
    from stages.errors import UserError

    if (release is None) != (id_ is None) or (folder is None) == (release is None):
        raise UserError("give a folder, or --release and --id; a release of SAELens has many dictionaries")
    return folder if release is None else (release, str(id_))  # type: ignore[return-value]  # one of them is given


@group.command()
def attach(
    folder: Annotated[str | None, typer.Argument(help="Folder in SAELens format.")] = None,
    name: Annotated[str, typer.Option("--name", help="What it is called from now on.")] = "",
    release: Release = None,
    id_: Id = None,
    target: Annotated[str | None, typer.Option("--target", help="Where it does not say it.")] = None,
    hook: Annotated[str | None, typer.Option("--hook", help="Where it does not say it.")] = None,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Put one from elsewhere beside a target's own, for `eval`, `export` and `score`.

    Example: lensmith dictionaries attach my_sae --name mine --target facts_lm --hook blocks.1.hook_resid_post
    """
    from stages.tools.attaching import attach as attached
    from stages.tools.attaching import name_for

    given = _given(folder, release, id_)
    found = attached(given, name or name_for(given), target=target, hook=hook, known_as=model)
    _show(found.facts(), as_json, "")


@group.command()
def score(
    dictionary: Annotated[
        str | None, typer.Argument(help="Folder in SAELens format, or the name one was attached under.")
    ] = None,
    release: Release = None,
    id_: Id = None,
    target: Annotated[str | None, typer.Option("--target", help="Where it does not say it.")] = None,
    hook: Annotated[str | None, typer.Option("--hook", help="Where it does not say it.")] = None,
    model: Model = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What it is called from now on; default: the folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write the result here; - for stdout.")
    ] = None,
) -> None:
    """Is it worth more than raw activations? Scores the method that answers with its latents, and their difference.

    Example: lensmith dictionaries score my_sae --target facts_lm --hook blocks.1.hook_resid_post
    """
    from rich.console import Console

    from flows.commands.results import show_score
    from flows.lock import run_lock
    from flows.progress import telling
    from stages.base import paths

    console = Console(stderr=str(out) == "-")
    with run_lock(paths.root(), "lensmith dictionaries score", shared=True):
        from stages.tools.attaching import score_dictionary

        with telling(console, "scoring") as tell:
            result = score_dictionary(
                _given(dictionary, release, id_), name, target=target, hook=hook, known_as=model, progress=tell
            )
    show_score(console, result, out)


@group.command()
def export(
    name: Annotated[str, typer.Argument(help="Folder in SAELens format, or a name from `list`.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, such as batch-0.json.")],
    format_: Annotated[str, typer.Option("--format", help="neuronpedia: a batch file as SAEDashboard writes it.")] = (
        "neuronpedia"
    ),
    target: Annotated[str | None, typer.Option("--target", help="Where the folder does not say it.")] = None,
    hook: Annotated[str | None, typer.Option("--hook", help="Where the folder does not say it.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Neuronpedia's name of the model; else TARGET.")] = None,
    set_: Annotated[str | None, typer.Option("--set", help="Neuronpedia's name of the set of dictionaries.")] = None,
    latents: Annotated[int | None, typer.Option("--latents", min=1, help="At most; else as in the gallery.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the feature pages of one of a target of words for another program.

    Example: lensmith dictionaries export facts_lm/blocks.1.hook_resid_post/topk --out batch-0.json
    """
    from flows.progress import counting
    from stages.errors import UserError
    from stages.tools.neuronpedia import export_neuronpedia

    if format_ != "neuronpedia":
        raise UserError(f"--format {format_} is unknown; known: neuronpedia")
    if (target is None) != (hook is None):
        raise UserError("--target and --hook go together: give both, or neither where the folder says them")
    with counting("measuring"):
        done = export_neuronpedia(name, out, target=target, hook=hook, model_id=model, sae_set=set_, n_latents=latents)
    _show(done.facts(), as_json, "")


def measure_training(*, jobs: int, as_json: bool) -> None:
    """Training speed next to SAELens's trainer; on one thread, whatever ``jobs`` is."""
    from rich.console import Console

    from flows.progress import telling
    from flows.terminal import print_json, print_rows
    from stages.benchmarks.dictionaries import run_training, stacking

    console = Console(stderr=as_json)
    with telling(console, "training") as shown:
        rows = run_training(progress=shown)
    if as_json:
        print_json(rows)
        return
    print_rows(console, [{key: row[key] for key in SHOWN} for row in rows], "ours and SAELens's SAETrainer, in turn")
    console.print(
        "share_of_peak: products our step does, against a dense float32 product of this machine at"
        f" {rows[0]['peak_gflops']:.0f} GFLOP/s. What limits each, and the rest, with --json.",
        highlight=False,
    )
    print_rows(console, stacking(), "several ReLU ones of one shape: loop over them / one batched product")


def measure_synthetic(*, jobs: int, as_json: bool) -> None:
    """Every architecture on data whose features are known; on one thread, whatever ``jobs`` is."""
    from rich.console import Console

    from flows.progress import telling
    from flows.terminal import print_json, print_rows
    from stages.benchmarks.synthetic import METRICS, run_synthetic

    console = Console(stderr=as_json)
    with telling(console, "training") as shown:
        rows = run_synthetic(progress=shown)
    if as_json:
        print_json(rows)
        return
    shown_rows = [
        {"architecture": row["architecture"], "seeds": row["n_seeds"]}
        | {name: f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]" for name in METRICS}
        | {"F1 place": row["f1_rank"], "published": row["published_f1_rank"]}
        for row in rows
    ]
    print_rows(console, shown_rows, "known features: mean over seeds [95%], and places by F1 among those published")


LISTED = {
    "n_latents": "F", "l0": "L0", "explained_variance": "EV", "dead_ratio": "dead", "loss_recovered": "LR",
    "name": "name",
}  # fmt: skip
"""Columns that fit a terminal; --json has more."""


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {short: f"{row[name]:.3f}" if isinstance(row[name], float) else row[name] for name, short in LISTED.items()}


SHOWN = (
    "architecture", "d", "n_latents", "batch", "samples_per_s", "peer_samples_per_s", "ratio", "final_loss",
    "peer_final_loss", "share_of_peak",
)  # fmt: skip


def measure_cache(*, jobs: int, as_json: bool) -> None:
    """Reading and writing a cache of activations."""
    from rich.console import Console

    from flows.terminal import print_json, print_rows
    from stages.benchmarks.dictionaries import run_cache

    rows = run_cache()
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print_rows(Console(), [row], row["what"])


def _show_metrics(row: dict[str, Any], as_json: bool) -> None:
    flat = {key: value for key, value in row.items() if not isinstance(value, dict)}
    metrics = [{"metric": key, **value} for key, value in row.items() if isinstance(value, dict) and "value" in value]
    reasons = {f"no {name}": reason for name, reason in (row.get("undefined") or {}).items()}
    _show(row if as_json else flat | {"metrics": metrics} | reasons, as_json, "")


def _show(value: Any, as_json: bool, title: str) -> None:
    from rich.console import Console

    from flows.terminal import print_json, print_rows

    console = Console()
    if as_json:
        print_json(value)
    elif isinstance(value, list):
        print_rows(console, value, title)
    else:
        for key, part in value.items():
            if isinstance(part, list) and part and isinstance(part[0], dict):
                print_rows(console, part, key)
            else:
                console.print(f"{key}: {part}", markup=False, highlight=False, soft_wrap=True)


COMMANDS = ()
GROUPS = (group,)
