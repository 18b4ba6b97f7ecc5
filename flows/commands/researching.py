"""`lensmith research`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from decimal import Decimal

    from rich.console import Console

    from stages.research.llm_options import LlmOptions
    from stages.research.researcher import Researcher

__all__ = ["COMMANDS", "usd"]

LLM = "With --researcher llm"


def research(
    context: typer.Context,
    researcher: Annotated[
        str, typer.Option("--researcher", help="Who proposes: random, search, programs, policy, llm or FILE.py.")
    ] = "search",
    budget: Annotated[int, typer.Option("--budget", min=1, max=10_000, help="Iterations of the loop.")] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seeds the researcher.")] = 0,
    name: Annotated[
        str, typer.Option("--name", help="Campaign to start, or to continue. Default: RESEARCHER-SEED.")
    ] = "",
    space: Annotated[str, typer.Option("--space", help="What random and search propose: specs or programs.")] = "specs",
    islands: Annotated[
        int, typer.Option("--islands", min=1, max=64, help="Of programs: populations that breed apart.")
    ] = 1,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="Ask validation only about what earns more on train than the incumbent.")
    ] = False,
    methods: Annotated[
        Path | None,
        typer.Option("--methods", metavar="DIR", help="Hand in the method files of a folder instead; sandboxed."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Proposals tried at once; the journal is the same. Default: one per core."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            rich_help_panel=LLM,
            help="Who is asked: openai/NAME, anthropic/NAME, openai-api/SERVICE/NAME. Several share the slots.",
        ),
    ] = None,
    base_url: Annotated[
        str, typer.Option("--base-url", metavar="URL", rich_help_panel=LLM, help="Of an OpenAI-compatible server.")
    ] = "",
    mode: Annotated[
        str, typer.Option("--mode", rich_help_panel=LLM, help="What it answers with: genome or source.")
    ] = "genome",
    max_usd: Annotated[
        str, typer.Option("--max-usd", rich_help_panel=LLM, help="What all calls of the campaign may cost.")
    ] = "1.00",
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=0, rich_help_panel=LLM, help="Of an answer. Default: that of the mode.")
    ] = 0,
    attempt_timeout: Annotated[
        int, typer.Option("--attempt-timeout", min=1, rich_help_panel=LLM, help="Seconds that one call may take.")
    ] = 300,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=64, rich_help_panel=LLM, help="Slots asked for at once.")
    ] = 4,
    price_unknown: Annotated[
        bool,
        typer.Option("--price-unknown", rich_help_panel=LLM, help="Ask although no price is known: calls count as 0."),
    ] = False,
    retry_lost: Annotated[
        bool,
        typer.Option(
            "--retry-lost", rich_help_panel=LLM, help="Ask again, and pay again, where no reply was written down."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=LLM, help="Say what it would take, and ask nothing.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", rich_help_panel=LLM, help="Ask a small model on this machine; no network.")
    ] = False,
) -> None:
    """Run a campaign that looks for a better method. Killed and run again, it continues where it was.

    Example: lensmith research --researcher search --budget 24
    """
    import re

    from rich.console import Console

    from flows.lock import run_lock
    from flows.options import refuse
    from flows.progress import telling
    from flows.terminal import print_iterations
    from stages.base import paths
    from stages.errors import UserError

    if methods is not None and not methods.is_dir():
        raise UserError(f"{methods} is not a folder: give one with one method per Python file")
    asks = researcher == "llm" and methods is None
    if methods is not None:
        refuse(context, "researcher seed space islands", "--methods hands in files in their order, and nobody proposes")
    if not asks:
        refuse(
            context,
            "models base_url mode max_usd max_tokens attempt_timeout workers price_unknown retry_lost dry_run local",
            "nobody is asked; they belong to --researcher llm",
        )
    else:
        refuse(context, "space", "what llm proposes is said by --mode")
        refuse(context, "islands", "llm has none; they belong to --researcher programs")
    if space not in ("specs", "programs"):
        raise UserError(f"--space {space} is unknown: use specs or programs")
    who = Path(researcher).stem + ("-programs" if space == "programs" else "")
    name = name or f"{who if methods is None else 'files'}-{seed}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}", name):
        raise UserError(f"--name {name!r} will not do as a folder name: use letters, digits, - and _")
    console = Console()

    def say(message: object) -> None:
        console.print(str(message), markup=False, highlight=False)

    author: str | Researcher = researcher
    if asks:
        from stages.research.llm_options import LlmOptions, make_llm

        options = LlmOptions(
            models=tuple(models or ()),
            mode=mode,  # type: ignore[arg-type]  # checked by LlmOptions
            base_url=base_url,
            max_usd=usd(max_usd),
            max_tokens=max_tokens,
            attempt_timeout=attempt_timeout,
            workers=workers,
            price_unknown=price_unknown,
            retry_lost=retry_lost,
            local=local,
        )
        if dry_run:
            _say_estimate(console, options, budget)
            return
        author = make_llm(options, seed, say)
        for model, prices in options.prices().items():
            if not prices:
                console.print(f"warning: no price of {model} is known, so no limit holds for it", highlight=False)
    with run_lock(paths.root(), "lensmith research", shared=True):
        from stages.research.stage import campaign

        with telling(console, f"campaign {name}"):
            result = campaign(
                researcher=author,
                budget=budget,
                seed=seed,
                name=name,
                progress=say,
                methods=methods,
                space=space,
                cascade=cascade,
                workers=jobs,
                islands=islands,
            )
    print_iterations(console, result.iterations, f"campaign {name}")
    from stages.research.cascade import survivors

    came = survivors((row.reached for row in result.iterations), sum(row.accepted for row in result.iterations))
    console.print("came to: " + ", ".join(f"{stage} {n}" for stage, n in came), highlight=False)
    for key in ("campaign", "researcher", "seed"):
        console.print(f"{key}: {getattr(result, key)}", markup=False, highlight=False)
    if asks:
        _say_account(console, paths.campaign_dir(name) / "events.jsonl", max_usd)
    console.print(f"events: {paths.campaign_dir(name) / 'events.jsonl'}", markup=False, highlight=False, soft_wrap=True)


def usd(text: str) -> "Decimal":
    from decimal import Decimal, InvalidOperation

    from stages.errors import UserError

    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or found < 0:
        raise UserError(f"--max-usd {text} is no amount of money: give one in USD, such as 0.50")
    return found


def _say_estimate(console: "Console", options: "LlmOptions", budget: int) -> None:
    from stages.research.llm_options import estimate

    found = estimate(options, budget)
    known = all(options.prices().values())
    lines = (
        f"{budget} proposals by {', '.join(options.names)}, nothing asked (at least .. at most)",
        f"calls:  {found.calls[0]} .. {found.calls[1]}",
        f"tokens: {found.tokens[0]:,} .. {found.tokens[1]:,}",
        f"cost:   ${found.usd[0]:.4f} .. ${found.usd[1]:.4f}, at most --max-usd"
        if known
        else "cost:   unknown: a model has no price",
        f"asking: {found.asking_s[0]:.0f} s .. {found.asking_s[1]:.0f} s, {options.workers} at once;"
        " judging the proposals comes on top",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _say_account(console: "Console", events: Path, max_usd: str) -> None:
    from stages.research.journal import Journal
    from stages.research.llm_options import account

    calls, usd, statuses = account(Journal(events).events)
    ended = ", ".join(f"{status} {n}" for status, n in statuses.items())
    console.print(f"asked: {calls} calls ({ended}), ${usd:.4f} of ${max_usd}", markup=False, highlight=False)


COMMANDS = (research,)
