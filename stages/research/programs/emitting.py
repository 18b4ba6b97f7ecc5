"""From a genome to the source of a method: one Python file that imports torch and the public contract."""

import textwrap

from stages.research.programs import about_components, about_inputs, about_parts, about_variants, directions, pools
from stages.research.programs.grammar import KINDS, NONE, Fragment, Genome, text_of
from stages.research.programs.shared_text import HEAD
from stages.scoring.candidate import Source

__all__ = ["FILE", "alone", "emit", "source_of"]

FILE = "program.py"
WRITERS = {
    "Represent": about_inputs.write,
    "Attribute": about_parts.write,
    "Localise": about_components.write,
    "Compare": about_variants.write,
    "Steer": directions.write,
    "Propose": pools.write,
}
"""Fragment -> (lines of ``prepare(target, arrays, budget)``, lines of ``answer(query, arrays, target)``)."""
CLASS = '''
class Program(Method):
    """{what}"""

    name = "program"

    def interpret(self, target, budget):
        arrays = {{}}{prepares}
        return Interpretation(arrays)

    def answer(self, query, interpretation, target):
        arrays = interpretation.arrays
        match query:
{cases}
            case _:
                return None
'''


def emit(genome: Genome) -> str:
    """The source of a method: a function for the free phase and one for the answer of each kind that it does not
    decline."""
    parts, prepares, cases, told = [HEAD], [], [], []
    for kind in KINDS:
        fragment = genome[kind]
        if fragment.source == NONE:
            continue
        told.append(text_of(fragment))
        prepare, answer = WRITERS[kind](fragment)
        name = kind.lower()
        if prepare:
            parts.append(_function(f"prepare_{name}(target, arrays, budget)", prepare))
            prepares.append(f"        prepare_{name}(target, arrays, budget)")
        parts.append(_function(f"answer_{name}(query, arrays, target)", answer))
        said = f"answer_{name}(query, arrays, target)"
        if kind == "Represent":
            said = f"by_group(query, lambda one: answer_{name}(one, arrays, target))"
        cases += [f"            case {kind}():", f"                return {said}"]
    what = "\n".join(["Written by a grammar.", "", *(f"    {line}" for line in told), "    "])
    body = CLASS.format(
        what=what if told else "Written by a grammar: it declines everything.",
        prepares="".join(f"\n{line}" for line in prepares),
        cases="\n".join(cases),
    )
    return "\n\n".join(part.strip("\n") + "\n" for part in (*parts, body))


def _function(head: str, lines: str) -> str:
    return f"def {head}:\n{textwrap.indent(textwrap.dedent(lines).strip(), '    ')}\n"


def source_of(genome: Genome) -> Source:
    """The proposal that a campaign is handed."""
    return Source(FILE, emit(genome))


def alone(fragment: Fragment) -> dict[str, Fragment]:
    """The genome that answers one kind and declines the others."""
    return {kind: fragment if kind == fragment.kind else Fragment(kind, NONE) for kind in KINDS}
