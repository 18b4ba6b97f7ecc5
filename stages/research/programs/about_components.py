"""Localise: how much each component of the target matters for some behaviours."""

from stages.research.programs.about_inputs import fill
from stages.research.programs.grammar import Fragment

__all__ = ["write"]

BEFORE = """
n, m = query.inputs.shape[:2]
inputs, labels = query.inputs.flatten(0, 1), query.labels.flatten()
names = sorted({component.hook_point for component in query.components})
"""
OF = """
def of(hook, axis, indices):
    at = torch.tensor(indices)
"""
AFTER = """
each = by_component(query.components, of).transpose(0, 1)
"""
ANSWER = {
    "activations": BEFORE
    + "captured = target.forward(inputs, capture=names).captured"
    + OF
    + """
    part = captured[hook].index_select(axis, at).movedim(axis, 0)
    return part.reshape(len(indices), n, m, -1).mean(-1)
"""
    + AFTER,
    "power": BEFORE
    + "captured = target.forward(inputs, capture=names).captured"
    + OF
    + """
    part = captured[hook].index_select(axis, at).movedim(axis, 0).reshape(len(indices), n, m, -1)
    return (part * part).mean(-1).sqrt()
"""
    + AFTER,
    "slopes": BEFORE
    + 'found = target.gradients(inputs, Objective("$objective", labels), names)'
    + OF
    + """
    part = (found.grads[hook] * found.captured[hook]).index_select(axis, at).movedim(axis, 0)
    return part.reshape(len(indices), n, m, -1).sum(-1)
"""
    + AFTER,
    "steepness": BEFORE
    + 'found = target.gradients(inputs, Objective("$objective", labels), names)'
    + OF
    + """
    part = found.grads[hook].index_select(axis, at).movedim(axis, 0)
    return part.reshape(len(indices), n, m, -1).abs().sum(-1)
"""
    + AFTER,
    "ablation": BEFORE
    + """
q = min(m, $some)
inputs, labels = query.inputs[:, :q].flatten(0, 1), query.labels[:, :q].flatten()
before = of_label(target.forward(inputs).outputs.log_softmax(-1), labels)
effects = []
for hook, axis, index in query.components:
    gone = Intervention(hook, "zero", None, axis, (index,))
    after = of_label(target.forward(inputs, interventions=[gone]).outputs.log_softmax(-1), labels)
    effects.append((before - after).reshape(n, q))
each = torch.stack(effects, 1)
""",
    "corpus": """
n, m = query.inputs.shape[:2]
def of(hook, axis, indices):
    rows = arrays["localise/" + hook].movedim(axis - 1, 0).index_select(0, torch.tensor(indices))
    return rows.reshape(len(indices), -1).mean(-1)
each = by_component(query.components, of).reshape(1, -1, 1).expand(n, -1, 1)
""",
}
FREE = {
    "corpus": """
inputs, _ = some_corpus(target, 256)
names = sorted({component.hook_point for component in target.spec.components})
captured = target.forward(inputs, capture=names).captured
for name in names:
    arrays["localise/" + name] = captured[name].abs().mean(0).contiguous()
""",
}
ACROSS = {
    "mean": "out = each.mean(-1, keepdim=True)\n",
    "absolute": "out = each.abs().mean(-1, keepdim=True)\n",
    "largest": "out = each.amax(-1, keepdim=True)\n",
    "spread": "out = ((each - each.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True).sqrt()\n",
    "all": "out = torch.stack([each.mean(-1), each.abs().mean(-1), each.amax(-1), each.amin(-1)], -1)\n",
}
RELATIVE = "out = torch.cat([out, out - out.mean(1, keepdim=True)], -1)\n"


def write(fragment: Fragment) -> tuple[str, str]:
    """Lines of the free phase, and of the answer (n, P, k)."""
    genes = fragment.values
    answer = ANSWER[fragment.source] + ACROSS[genes.get("across", "mean")]
    answer += RELATIVE if genes["relative"] == "relative" else ""
    return fill(FREE.get(fragment.source, ""), genes), fill(answer + "return out\n", genes)
