"""What the grammar emits: files that compile, answers that are recorded on shapes and say what they are meant to."""

import random
from pathlib import Path

import pytest
import torch

from stages.contracts.method import (
    Attribute,
    Budget,
    Compare,
    Interpretation,
    Localise,
    Method,
    Propose,
    Query,
    Represent,
    Steer,
)
from stages.contracts.method_file import from_file
from stages.contracts.target import Target
from stages.interpretation.artifact import pack, unpack
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable
from stages.research.programs.emitting import alone, emit, source_of
from stages.research.programs.grammar import (
    KINDS,
    NONE,
    Fragment,
    Uniform,
    choices_of,
    cross,
    draw,
    every_fragment,
    genome_of,
    graft,
    mutate,
    text_of,
)
from stages.tracing.checking import check
from stages.tracing.program import Ref, blank, tensors_of
from stages.tracing.recording import record
from stages.tracing.running import run
from tests.conftest import make_target

N = 5


@pytest.fixture(scope="module")
def words() -> Target:
    return make_target("context_lm", steps=0, n=300)


def variants_of(target: Target) -> dict[str, torch.Tensor]:
    state = {name: value for name, value in target.model.state_dict().items() if value.is_floating_point()}
    return {name: torch.stack([value * 0.9, value * 1.1, value]) for name, value in state.items()}


def question(kind: str, target: Target) -> tuple[Query, tuple[int, ...]]:
    """A query of a kind, and the first axes of its answer."""
    corpus, spec = target.corpus("validation"), target.spec
    inputs, labels = corpus.inputs[:N], corpus.labels[:N].clamp(max=spec.n_outputs - 1)
    hook = spec.hooks[0]
    match kind:
        case "Represent":
            return Represent(inputs, labels), (N,)
        case "Attribute":
            return Attribute(inputs, tuple((i,) for i in range(3)), labels), (N, 3)
        case "Localise":
            sets = inputs.expand(2, *inputs.shape).contiguous()
            return Localise(sets, labels.expand(2, N).contiguous(), spec.components[:6]), (2, 6)
        case "Compare":
            return Compare((0, 1, 2), inputs, labels), (3,)
        case "Steer":
            return Steer(hook.name, torch.ones(4, hook.width), inputs, labels[:4]), (4,)
    pool = torch.zeros(9, *spec.input_shape)
    pool[torch.arange(9), 0] = -1.0 if spec.n_vocabulary is not None else 0.5
    return Propose(labels, inputs, pool), (N,)


def frozen_of(method: Method, target: Target) -> Interpretation:
    access = MeteredAccess(target, Ledger(), free=True)
    return unpack(*pack(method.interpret(access, Budget(60, 8_000_000, 0)), "m", "here", 8_000_000))


def both(fragment: Fragment, target: Target, folder: Path) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The answer of the emitted method recorded, priced and run; and asked directly."""
    file = folder / "program.py"
    file.write_text(emit(alone(fragment)), encoding="utf-8")
    method = from_file(file)
    frozen, stacks = frozen_of(method, target), variants_of(target)
    query, _ = question(fragment.kind, target)
    shapes = {name: tuple(value.shape[1:]) for name, value in stacks.items()}
    program = record(method, blank(query), frozen, target.spec, 3, shapes)
    given = {Ref("query", key): value for key, value in tensors_of(query).items()}
    given |= {Ref("array", key): value for key, value in frozen.arrays.items()}
    access = MeteredAccess(target, Ledger(), variants=stacks)
    plan = check(program, given, access, OpTable(), 1 << 24)
    with torch.no_grad():
        answered = None if plan.output is None else run(program, plan, given, access)
        return answered, method.answer(query, frozen, MeteredAccess(target, Ledger(), variants=stacks))


def some_of(kind: str, source: str) -> list[Fragment]:
    """Fragments of a source in which every option of every gene occurs."""
    of_source = [fragment for fragment in every_fragment(kind) if fragment.source == source]
    kept: list[Fragment] = []
    known: set[tuple[str, str]] = set()
    for fragment in of_source:
        if not kept or set(fragment.genes) - known:
            kept.append(fragment)
            known |= set(fragment.genes)
    return kept


SOURCES = [(kind, source) for kind, rules in KINDS.items() for source in rules.sources if source != NONE]


@pytest.mark.parametrize("which", ["mlp", "few_shot", "words"])
@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_every_source_answers_as_recorded(kind, source, which, request, tmp_path):
    target = request.getfixturevalue(which)
    _, rows = question(kind, target)
    answered = 0
    for fragment in some_of(kind, source)[: 2 if which == "mlp" else None]:
        recorded, direct = both(fragment, target, tmp_path)
        assert (recorded is None) == (direct is None)
        if recorded is None:
            continue
        answered += 1
        assert direct is not None and torch.allclose(recorded, direct, atol=1e-5), text_of(fragment)
        assert tuple(recorded.shape[: len(rows)]) == rows, text_of(fragment)
        assert bool(torch.isfinite(recorded).all()), text_of(fragment)
    without = {"mlp": {"products", "cosines", "sizes", "slope_inside", "attention"}, "words": set(), "few_shot": set()}
    assert (answered == 0) == (source in without[which]), f"{answered} answered"


def test_programs_are_many_and_their_fragments_few():
    n = {kind: len(every_fragment(kind)) for kind in KINDS}
    assert set(n) == {"Represent", "Attribute", "Localise", "Compare", "Steer", "Propose"}
    assert all(len({text_of(one) for one in every_fragment(kind)}) == n[kind] for kind in KINDS)
    assert 500 < sum(n.values()) < 2000 and all(Fragment(kind, NONE) in every_fragment(kind) for kind in KINDS)


def test_fragments_that_differ_are_written_differently():
    texts = [emit(alone(fragment)) for kind in KINDS for fragment in every_fragment(kind)]
    code = {text.split('"""Written by')[0] for text in texts}
    assert len(code) == len(texts) - len(KINDS) + 1, "those that decline are one"
    for text in texts:
        compile(text, "program.py", "exec")
        assert "$" not in text


@pytest.mark.parametrize("seed", range(20))
def test_whole_programs_are_methods_and_declare_what_they_are(seed, tmp_path):
    genome = draw(Uniform(random.Random(seed)))
    file = tmp_path / "program.py"
    file.write_text(source_of(genome).text, encoding="utf-8")
    method = from_file(file)
    assert all(text_of(one) in str(type(method).__doc__) for one in genome.values() if one.source != NONE)
    assert max(map(len, file.read_text(encoding="utf-8").splitlines())) <= 120
    assert genome_of(choices_of(genome)) == genome


def test_a_program_that_declines_everything_is_a_method(tmp_path, mlp):
    file = tmp_path / "program.py"
    file.write_text(emit({kind: Fragment(kind, NONE) for kind in KINDS}), encoding="utf-8")
    assert from_file(file).answer(question("Represent", mlp)[0], Interpretation(), MeteredAccess(mlp, Ledger())) is None


def test_choices_that_are_none_of_this_grammar_are_refused():
    choices = choices_of(draw(Uniform(random.Random(0))))
    with pytest.raises(ValueError, match=r"Represent\.source = 'sea' is no choice of this grammar: use outputs, "):
        genome_of(choices | {"Represent.source": "sea"})


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_mutation_is_another_fragment_of_its_kind(kind):
    rng, every = random.Random(0), set(every_fragment(kind))
    for fragment in sorted(every):
        changed = mutate(fragment, rng)
        assert changed != fragment and changed in every


def test_a_mutation_of_the_source_keeps_the_genes_that_both_read():
    rng = random.Random(1)
    fragment = next(one for one in every_fragment("Represent") if one.source == "components")
    for _ in range(200):
        changed = mutate(fragment, rng)
        if changed.source == "whitened":
            assert {gene: changed.values[gene] for gene in ("roles", "pool", "size", "beside")} == {
                gene: fragment.values[gene] for gene in ("roles", "pool", "size", "beside")
            }
            return
    raise AssertionError("no mutation changed the source")


def test_crossing_takes_whole_fragments_of_either():
    rng = random.Random(0)
    one, other = draw(Uniform(rng)), draw(Uniform(rng))
    crossed = [cross(one, other, rng) for _ in range(30)]
    assert all(child[kind] in (one[kind], other[kind]) for child in crossed for kind in KINDS)
    assert len({tuple(child.values()) for child in crossed}) > 10


def test_a_graft_carries_source_and_shared_genes_to_another_kind():
    rng = random.Random(0)
    genome = draw(Uniform(rng)) | {
        "Represent": Fragment(
            "Represent", "activations", (("roles", "mlp"), ("pool", "max"), ("read", "plain"), ("beside", "alone"))
        ),
        "Compare": Fragment("Compare", "gradients", (("inputs", "noise"), ("statistic", "all"))),
    }
    made = graft(genome, "Represent", "Compare", rng)
    assert made["Compare"].source == "activations"
    assert made["Compare"].values == {"roles": "mlp", "pool": "max", "inputs": "noise", "statistic": "all"}
    assert {kind: made[kind] for kind in KINDS if kind != "Compare"} == {
        kind: genome[kind] for kind in KINDS if kind != "Compare"
    }
