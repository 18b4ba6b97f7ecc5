"""Attribute: what each part of an input contributes to an output."""

from stages.research.programs.about_inputs import fill
from stages.research.programs.grammar import Fragment

__all__ = ["write"]

AT_PLACES = """
spec = target.spec
if spec.tokens is None:
    return None
names = hooks(spec, "$roles")
captured = target.forward(query.inputs, capture=names).captured
columns = []
for n in names:
    rows = places(captured[n], spec.hook(n))
    last = rows[:, read_at(spec, rows)].unsqueeze(1)
    for side in (0, -1):
        at = rows[:, torch.tensor([spec.tokens[segment[side]][side] for segment in query.segments])]
"""
SLOPE = """
spec = target.spec
found = target.gradients(query.inputs, Objective("$objective", query.labels), [$wrt])
"""
ANSWER = {
    "products": AT_PLACES + "        columns.append((at * last).sum(-1))\n",
    "cosines": AT_PLACES
    + """
        lengths = (at * at).sum(-1).sqrt() * (last * last).sum(-1).sqrt()
        columns.append((at * last).sum(-1) / (lengths + 1e-6))
""",
    "sizes": AT_PLACES + "        columns.append((at * at).sum(-1).sqrt())\n",
    "slope_at_input": SLOPE.replace("$wrt", "spec.leaf")
    + """
grad = found.grads[spec.leaf]
if spec.leaf != "input":
    columns = [segment_sums(grad * found.captured[spec.leaf], query.segments)]
elif query.replacements is not None:
    at = torch.tensor([list(segment) for segment in query.segments])
    change = query.replacements.reshape(query.inputs[:, at].shape) - query.inputs[:, at]
    columns = [(grad[:, at] * change).flatten(2).sum(-1)]
else:
    columns = [segment_sums(grad * query.inputs, query.segments), segment_sums(grad.abs(), query.segments)]
""",
    "slope_inside": SLOPE.replace("[$wrt]", 'hooks(target.spec, "$roles")')
    + """
if spec.tokens is None:
    return None
at = [[token for index in segment for token in spec.tokens[index]] for segment in query.segments]
columns = [segment_sums(found.grads[n] * found.captured[n], at) for n in found.grads]
""",
    "attention": """
spec = target.spec
names = [hook.name for hook in spec.with_role("pattern")]
if not names or spec.tokens is None:
    return None
captured = target.forward(query.inputs, capture=names).captured
at = [[token for index in segment for token in spec.tokens[index]] for segment in query.segments]
columns = []
for n in names:
    pattern = captured[n][:, :, spec.tokens[-1][-1]]
    columns += [segment_sums(pattern[:, head], at) for head in range(pattern.shape[1])]
""",
    "hiding": """
spec = target.spec
before = target.forward(query.inputs).outputs.log_softmax(-1)
hidden = []
for number, segment in enumerate(query.segments):
    at = torch.tensor(list(segment))
    if query.replacements is not None:
        new = query.replacements[:, number].reshape(query.inputs[:, at].shape)
        inputs = query.inputs.index_copy(1, at, new)
    else:
        kept = torch.ones(query.inputs.shape[1]).index_fill(0, at, 0.0)
        kept = kept.view(-1, *([1] * (query.inputs.dim() - 2)))
        if spec.present_channel is None:
            inputs = query.inputs * kept
        else:
            channel = torch.zeros(query.inputs.shape[-1])
            channel[spec.present_channel] = 1.0
            inputs = query.inputs * (1.0 - channel + channel * kept)
    hidden.append(target.forward(inputs).outputs.log_softmax(-1))
after = torch.stack(hidden, 1)
labels = before.argmax(-1) if query.labels is None else query.labels
own = of_label(after, labels.unsqueeze(1).expand(after.shape[:2]))
columns = [of_label(before, labels).unsqueeze(-1) - own]
""",
}
OUTPUTS = """
columns.append((before.unsqueeze(1) - after).abs().sum(-1))
columns.append(-(after.exp() * after).sum(-1))
"""
RELATIVE = "out = torch.cat([out, out - out.mean(1, keepdim=True)], -1)\n"


def write(fragment: Fragment) -> tuple[str, str]:
    """Lines of the free phase, and of the answer (n, S, k)."""
    genes = fragment.values
    answer = ANSWER[fragment.source] + (OUTPUTS if genes.get("says") == "outputs" else "")
    answer += "out = torch.stack(columns, -1)\n" + (RELATIVE if genes["relative"] == "relative" else "")
    return "", fill(answer + "return out\n", genes)
