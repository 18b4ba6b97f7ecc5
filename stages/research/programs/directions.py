"""Steer: what adding a direction at a place does to the outputs."""

from stages.research.programs.about_inputs import fill
from stages.research.programs.grammar import Fragment

__all__ = ["write"]

MOST = "512"
"""Widest place whose second moments are kept."""
PLACES = """
spec = target.spec
inputs, labels = some_corpus(target, 256)
wanted = [hook.name for hook in spec.hooks if hook.role in ("residual", "mlp")]
wanted = (["input"] if spec.leaf == "input" else []) + wanted
found = target.gradients(inputs, Objective("$objective", labels), wanted)
for n in wanted:
    grad = found.grads[n]
    grad = grad.flatten(1) if n == "input" else places(grad, spec.hook(n)).sum(-2)
"""
FREE = {
    "slope": PLACES
    + """
    arrays["steer/mean/" + n] = grad.mean(0)
    arrays["steer/some/" + n] = grad[:32].contiguous()
""",
    "curvature": PLACES
    + """
    if grad.shape[1] <= 512:
        arrays["steer/square/" + n] = grad.T @ grad / len(grad)
""",
    "trying": """
inputs, labels = some_corpus(target, 16)
arrays["steer/inputs"] = inputs.contiguous()
""",
    "shape": """
spec = target.spec
inputs, _ = some_corpus(target, 256)
names = [hook.name for hook in spec.hooks if hook.role in ("residual", "mlp")]
captured = target.forward(inputs, capture=names).captured
rows = {n: places(captured[n], spec.hook(n)).mean(-2) for n in names}
if spec.leaf == "input":
    rows["input"] = inputs.flatten(1)
for n, values in rows.items():
    centre = values.mean(0)
    arrays["steer/centre/" + n] = centre
    basis = torch.linalg.svd(values - centre, full_matrices=False)[2]
    arrays["steer/basis/" + n] = basis[:16].contiguous()
""",
}
ANSWER = {
    "slope": """
key = "steer/mean/" + query.hook_point
if key not in arrays:
    return None
along = query.directions.flatten(1)
each = along @ arrays["steer/some/" + query.hook_point].T
out = torch.stack([along @ arrays[key], each.amax(-1), each.amin(-1), each.relu().mean(-1)], -1)
""",
    "curvature": """
key = "steer/square/" + query.hook_point
if key not in arrays:
    return None
along = query.directions.flatten(1)
square = ((along @ arrays[key]) * along).sum(-1)
out = torch.stack([square, square.clamp_min(0.0).sqrt()], -1)
""",
    "trying": """
spec, place = target.spec, query.hook_point
shown = $shown[:$some]
n, m = len(query.directions), len(shown)
before = target.forward(shown).outputs.log_softmax(-1)
many = shown.unsqueeze(0).expand(n, *shown.shape).flatten(0, 1)
along = query.directions.unsqueeze(1).expand(n, m, *query.directions.shape[1:]).flatten(0, 1)
if place == "input":
    outputs = target.forward(many + along.reshape(many.shape)).outputs
else:
    inside = len(spec.hook(place).shape)
    value = along.view(n * m, *([1] * (inside - 1)), along.shape[-1])
    outputs = target.forward(many, interventions=[Intervention(place, "add", value)]).outputs
after = outputs.log_softmax(-1).reshape(n, m, -1)
own = before.argmax(-1).unsqueeze(0).expand(n, m)
loss = -of_label(after, own)
columns = []
""",
    "shape": """
key = "steer/basis/" + query.hook_point
if key not in arrays:
    return None
along = query.directions.flatten(1)
out = torch.cat([size(along).unsqueeze(-1), along @ arrays[key].T], -1)
out = torch.cat([out, (along @ arrays["steer/centre/" + query.hook_point]).unsqueeze(-1)], -1)
""",
}
LOSS = """
columns += [loss.mean(-1), loss.amax(-1)]
"""
LOG_PROB = """
labels = own if query.labels is None else query.labels.unsqueeze(1).expand(n, m)
asked = of_label(after, labels)
columns += [asked.mean(-1), asked.exp().mean(-1)]
"""
ALL = """
columns += [(after.exp() * (after - before)).sum(-1).mean(-1), (after - before).abs().mean((1, 2))]
"""
SAYS = {"loss": LOSS, "log_prob": LOG_PROB, "all": LOSS + LOG_PROB + ALL}
SQUARE = "out = torch.cat([out, out * out], -1)\n"
SHOWN = {"query": "query.inputs", "corpus": 'arrays["steer/inputs"]'}


def write(fragment: Fragment) -> tuple[str, str]:
    """Lines of the free phase, and of the answer (n, k)."""
    genes, source = fragment.values, fragment.source
    answer, free = ANSWER[source], FREE[source]
    if source == "trying":
        answer = answer.replace("$shown", SHOWN[genes["where"]]) + SAYS[genes["says"]]
        answer += "out = torch.stack(columns, -1)\n"
        free = free if genes["where"] == "corpus" else ""
    answer += SQUARE if genes.get("read") == "square" else ""
    return fill(free, genes), fill(answer + "return out\n", genes)
