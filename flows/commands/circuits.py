"""`lensmith circuits ...`: find a circuit in a module, list the cards; and what `lensmith bench` says of the
methods."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stages.circuits.discovery import Discovery
    from stages.circuits.judging import CircuitFound

__all__ = ["COMMANDS", "GROUPS", "measure"]

group = typer.Typer(
    help="Find the edges between components that carry what a module does.\n\nExample: lensmith circuits cards",
    no_args_is_help=True,
)

METHOD = "edge-sp, acdc, eap, eap-ig; or eap-ig-activations, node-sp, nap, hisp, random."
ABLATION = "What cut edges carry: zero, mean, mean-all, resample or interchange. Else the target's own, else mean."
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


@group.command()
def discover(
    target: Annotated[
        str, typer.Option("--target", help="FILE.py:function giving module and data; or TARGET, TARGET:SKILL.")
    ],
    method: Annotated[str, typer.Option("--method", help=METHOD)] = "edge-sp",
    ablation: Annotated[str | None, typer.Option("--ablation", help=ABLATION)] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Samples, starts and gates.")] = 10,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs per seed.")] = 64,
    metric: Annotated[
        str | None, typer.Option("--metric", help="kl, mse, answer or projection; else the target's own.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="Loss of a faithful circuit, as a share of the empty circuit's; else 0.01."),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Edges wanted of edge-sp; else as few as are faithful.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, max=100_000, help="Of edge-sp and node-sp; else 200.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find a circuit in a module of one's own: edges with scores, how faithful it is, what it cost, what is doubtful.

    Example: lensmith circuits discover --target examples/my_circuit_target.py:build --method acdc --ablation zero
    Example: lensmith circuits discover --target context_lm:induction --method eap-ig
    """
    from dataclasses import replace

    from flows.progress import counting
    from stages.circuits.algorithms.methods import METHODS, SIZED, STEPPED, TOLERANT, Settings
    from stages.circuits.discovery import discover as run
    from stages.circuits.discovery import load_subject
    from stages.circuits.engine.objectives import OBJECTIVES
    from stages.circuits.word_subject import subject_of_target
    from stages.errors import UserError

    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown: use {', '.join(METHODS)}")
    if metric is not None and metric not in OBJECTIVES:
        raise UserError(f"metric {metric!r} is unknown: use {', '.join(sorted(OBJECTIVES))}")
    if tolerance is not None and not 0 < tolerance < 1:
        raise UserError(f"--tolerance is {tolerance}: give a share between 0 and 1, such as 0.01")
    for option, given, takers in (
        ("--tolerance", tolerance, TOLERANT),
        ("--size", size, SIZED),
        ("--steps", steps, STEPPED),
    ):
        if given is not None and method not in takers:
            raise UserError(
                f"{option} {given} does nothing with --method {method}: it is of {', '.join(takers)}; leave it out, or"
                " choose one of these"
            )
    settings = replace(Settings(), tolerance=0.01 if tolerance is None else tolerance, size=size, steps=steps or 200)
    subject = load_subject(target) if ".py" in target else subject_of_target(target)
    with counting("discovery"):
        result = run(subject, method, ablation=ablation, seeds=seeds, batch=batch, settings=settings, metric=metric)
    _show(result, as_json)


@group.command()
def nodes(
    target: Annotated[str, typer.Option("--target", help="A target of words: trained here, or read from a file.")],
    prompts: Annotated[str, typer.Option("--prompts", help="induction, or ioi (models with a tokenizer).")] = (
        "induction"
    ),
    n: Annotated[
        int, typer.Option("--n", min=4, max=4096, help="Pairs of prompts to rank on, and to measure on.")
    ] = 32,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the prompts.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Rank the heads and MLPs of a large model by what they carry of a skill; CPR and CMD of the ranking.

    Example: lensmith circuits nodes --target smollm2_135m --prompts ioi
    """
    from rich.console import Console

    from flows.progress import telling
    from flows.terminal import print_json, print_rows
    from stages.circuits.node_search import search_nodes
    from stages.targets.storage import load_target

    console = Console(stderr=as_json)
    loaded = load_target(target)
    with telling(console, "nodes") as tell:
        found = search_nodes(loaded, prompts, n, seed, tell)
    if as_json:
        print_json(found)
        return
    print_rows(console, found["nodes"], "nodes, best first; margins in nats")
    sizes = [round(share * found["n_nodes"]) for share in found["shares"]]
    curve = [
        {"share of the nodes": share, "nodes": size, "faithfulness": f}
        for share, size, f in zip(found["shares"], sizes, found["faithfulness"], strict=True)
    ]
    print_rows(console, curve, "circuits of the best nodes, on other prompts")
    for key, value in found.items():
        if not isinstance(value, list):
            console.print(f"{key}: {f'{value:.4g}' if isinstance(value, float) else value}", highlight=False)


@group.command()
def cards(
    only: Annotated[str | None, typer.Option("--only", help="One subject or card, such as reverse.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the modules whose circuit is known, with the circuit and how it was derived. Derives them anew (a minute).

    Example: lensmith circuits cards --only planted_mlp
    """
    from rich.console import Console

    from flows.progress import counting
    from flows.terminal import print_json, print_rows
    from stages.base.progress import report
    from stages.circuits.recovery import card_rows

    console = Console(stderr=as_json)
    with counting("discovery"):
        rows = card_rows((only,) if only else (), progress=lambda name: report(f"deriving {name}", 0, 1))
    if as_json:
        print_json(rows)
        return
    print_rows(console, [row.facts() for row in rows])
    for row in rows:
        for message in row.validity:
            console.print(f"{row.card}: {message}", highlight=False, markup=False)


def measure(*, jobs: int, as_json: bool) -> None:
    """Exact recovery, AUC and cost of the methods on every card, ten seeds each; on one thread, whatever ``jobs``
    is."""
    from rich.console import Console

    from flows.progress import counting
    from flows.terminal import print_json, print_rows
    from stages.base.progress import report
    from stages.circuits.recovery import bench_rows, verdicts

    console = Console(stderr=as_json)
    with counting("discovery"):
        rows = bench_rows(progress=lambda name: report(name, 0, 1))
    if as_json:
        print_json(rows)
        return
    names = ("card", "method", "truth_edges", "exact_recovery", "edge_auc", "seconds_per_seed", "forwards", "backwards")
    print_rows(console, [{name: getattr(row, name) for name in names} for row in rows], "10 seeds each")
    print_rows(console, verdicts(rows), "goals; the worst card of each")


def measure_growth(*, jobs: int, as_json: bool) -> None:
    """Time and memory of scoring all edges against layers and heads."""
    from dataclasses import asdict

    from rich.console import Console

    from flows.progress import telling
    from flows.terminal import print_json, print_rows
    from stages.benchmarks.circuit_growth import bench_growth, exponent

    console = Console(stderr=as_json)
    with telling(console, "growth") as tell:
        rows = bench_growth(tell)
    if as_json:
        print_json(rows)
        return
    print_rows(console, [asdict(row) for row in rows], "scoring all edges by EAP, one thread")
    for what in ("seconds", "mb"):
        console.print(f"{what} grow with edges to the power of {exponent(rows, what):.2f}", highlight=False)


def _show(result: "Discovery", as_json: bool) -> None:
    from rich.console import Console

    from flows.terminal import print_json, print_rows

    if as_json:
        print_json(result)
        return
    console = Console()
    head = ("method", "ablation", "ablation_from", "seeds", "n_edges", "n_inputs", "inputs_per_seed")
    print_rows(console, [{name: value for name, value in result.items() if name in head}])
    print_rows(console, result["edges"][:30], "edges, best first; all of them with --json")
    rows = [{name: row[name] for name in PER_SEED if name in row} for row in result["per_seed"]]  # type: ignore[literal-required]
    print_rows(console, rows, "per seed; shares are of the empty circuit's loss; more with --json")
    circuit = result["circuit"]
    if circuit is not None:
        _show_circuit(console, circuit, result["tolerance"])
    if result["alternatives"]:
        listed = [
            {**other, "without": ", ".join(other["without"]), "instead": ", ".join(other["instead"])}
            for other in result["alternatives"]
        ]
        print_rows(console, listed, "alternatives: circuits that do as well")
    for part in (result["metrics"], result["cost"]):
        for key, value in part.items():
            if not isinstance(value, list):
                message = f"{value:.4g}" if isinstance(value, float) else str(value)
                console.print(f"{key}: {message}", highlight=False)
    for message in result["validity"]:
        console.print(f"careful: {message}", highlight=False, markup=False)


PER_SEED = ("seed", "seconds", "size", "share", "share_held_out", "faithful", "agreement")
UP_TO = {
    "pairs": "irreducible up to pairs: no edge and no pair of edges can be cut; larger sets were not all tried",
    "single edges": "irreducible up to single edges: there are too many pairs of edges to try",
    "nothing": "reducible",
}


def _show_circuit(console: "Console", circuit: "CircuitFound", tolerance: float | None) -> None:
    verdict = "faithful" if circuit["faithful"] else "NOT faithful"
    held = circuit["share_held_out"]
    console.print(
        f"circuit ({circuit['of']}): {circuit['size']} edges, {verdict}: {circuit['share']:.3g} of the empty circuit's"
        f" loss on all of the data, {'nothing' if held is None else f'{held:.3g}'} held out, asked for {tolerance:g};"
        f" {UP_TO[circuit['irreducible_up_to']]}",
        highlight=False,
        markup=False,
    )


COMMANDS = ()
GROUPS = (group,)
