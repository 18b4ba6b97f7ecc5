"""Propose: inputs that reach much of an objective, out of a closed pool of changes."""

from stages.research.programs.about_inputs import fill
from stages.research.programs.grammar import Fragment

__all__ = ["write"]

MOVED = """
spec, n, changes = target.spec, len(query.labels), query.changes
words = spec.n_vocabulary is not None
moved = changes[..., 1].flatten(-1) if words else changes.flatten(-len(spec.input_shape))
"""
SLOPE = """
if query.variants:
    rows = [(index, row) for row, index in enumerate(query.variants)]
    found = [
        target.variant(index).gradients(
            query.inputs[row : row + 1], Objective(query.objective, query.labels[row : row + 1]), [spec.leaf]
        )
        for index, row in rows
    ]
    slope = torch.cat([one.grads[spec.leaf] for one in found])
    at = torch.cat([one.captured[spec.leaf] for one in found]) if words else None
else:
    whole = target.gradients(query.inputs, Objective(query.objective, query.labels), [spec.leaf])
    slope, at = whole.grads[spec.leaf], whole.captured[spec.leaf] if words else None
slope = (slope * at).flatten(2).sum(-1) if words else slope.flatten(1)
scores = slope @ moved.T if moved.dim() == 2 else (moved @ slope.unsqueeze(-1)).squeeze(-1)
"""
SCORES = {
    "slope": SLOPE,
    "against_slope": SLOPE + "scores = -scores\n",
    "slope_of_corpus": """
along = arrays["propose/slopes"][query.labels.clamp(max=len(arrays["propose/slopes"]) - 1)]
scores = along @ moved.T if moved.dim() == 2 else (moved @ along.unsqueeze(-1)).squeeze(-1)
""",
    "largest": """
scores = (moved * moved).sum(-1)
scores = scores.unsqueeze(0).expand(n, -1) if scores.dim() == 1 else scores
""",
    "first": """
scores = -torch.arange(moved.shape[-2]).float().unsqueeze(0).expand(n, -1)
""",
}
FREE = {
    "slope_of_corpus": """
spec = target.spec
inputs, _ = some_corpus(target, 256)
rows = []
for output in range(min(spec.n_outputs, 32)):
    found = target.gradients(inputs, Objective("margin", torch.full((len(inputs),), output)), [spec.leaf])
    slope = found.grads[spec.leaf]
    slope = slope.flatten(1) if spec.leaf == "input" else (slope * found.captured[spec.leaf]).flatten(2).sum(-1)
    rows.append(slope.mean(0))
arrays["propose/slopes"] = torch.stack(rows)
""",
}
CHOSEN = """
chosen = scores.topk(min($count, scores.shape[-1]), dim=-1).indices
picked = changes[chosen] if moved.dim() == 2 else changes[torch.arange(n).unsqueeze(-1), chosen]
return query.inputs.unsqueeze(1) + picked
"""


def write(fragment: Fragment) -> tuple[str, str]:
    """Lines of the free phase, and of the answer (n, p, *input shape)."""
    genes = fragment.values
    return fill(FREE.get(fragment.source, ""), genes), fill(MOVED + SCORES[fragment.source] + CHOSEN, genes)
