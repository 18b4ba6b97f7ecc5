"""Represent: features of each input."""

from stages.research.programs.grammar import Fragment

__all__ = ["write"]

CAPTURE = """
spec, inputs = target.spec, query.inputs
names = hooks(spec, "$roles")
found = target.forward(inputs, capture=names)
outputs = found.outputs
parts = [pooled(found.captured[n], spec.hook(n), "$pool", spec, inputs) for n in names]
"""
FIT = """
inputs, labels = some_corpus(target)
spec = target.spec
names = hooks(spec, "$roles")
captured = target.forward(inputs, capture=names).captured
for n in names:
    rows = pooled(captured[n], spec.hook(n), "$pool", spec, inputs)
"""
SVD = """
    centre = rows.mean(0)
    _, scale, basis = torch.linalg.svd(rows - centre, full_matrices=False)
    arrays["represent/centre/" + n] = centre
"""
SLOPES = """
spec = target.spec
wrt = list(dict.fromkeys([spec.leaf, *hooks(spec, "$roles")]))
found = target.gradients(query.inputs, Objective("$objective"), wrt)
lengths = torch.stack([size(found.grads[n]) for n in wrt], -1)
"""
FREE = {
    "components": FIT
    + SVD
    + """
    arrays["represent/basis/" + n] = basis[:$size].contiguous()
""",
    "distances": FIT
    + """
    means = [rows[labels == c] for c in range(min(spec.n_outputs, 16))]
    kept = [part.mean(0) for part in means if len(part)]
    arrays["represent/means/" + n] = torch.stack(kept)
""",
    "whitened": FIT
    + SVD
    + """
    spread = scale / len(rows) ** 0.5
    arrays["represent/basis/" + n] = (basis / (spread.unsqueeze(-1) + 1e-2))[:$size].contiguous()
""",
    "lens": """
spec = target.spec
if spec.unembed is not None:
    weight = target.weights()[spec.unembed]
    arrays["represent/unembed"] = (weight.T if spec.unembed.endswith("W_U") else weight).contiguous()
""",
    "noise": """
spec = target.spec
hook = spec.hook(hooks(spec, "both")[0])
spread = target.forward(some_corpus(target, 256)[0], capture=[hook.name]).captured[hook.name].std()
noise = torch.randn((2, *hook.shape), generator=budget.generator())
arrays["represent/noise"] = $strength * spread * noise
""",
}
ANSWER = {
    "outputs": """
outputs = target.forward(query.inputs).outputs
out = outputs.log_softmax(-1)
parts = [out]
""",
    "activations": CAPTURE + "out = torch.cat(parts, -1)\n",
    "components": CAPTURE
    + """
centred = [part - arrays["represent/centre/" + n] for part, n in zip(parts, names)]
parts = [part @ arrays["represent/basis/" + n].T for part, n in zip(centred, names)]
out = torch.cat(parts, -1)
""",
    "distances": CAPTURE
    + """
apart = [part.unsqueeze(1) - arrays["represent/means/" + n] for part, n in zip(parts, names)]
parts = [(one * one).sum(-1).sqrt() for one in apart]
out = torch.cat(parts, -1)
""",
    "whitened": CAPTURE
    + """
centred = [part - arrays["represent/centre/" + n] for part, n in zip(parts, names)]
squares = [(part @ arrays["represent/basis/" + n].T) ** 2 for part, n in zip(centred, names)]
out = torch.cat([torch.cat([one.sum(-1, keepdim=True), one], -1) for one in squares], -1)
""",
    "gradients": SLOPES + "out = torch.cat([found.values.unsqueeze(-1), lengths], -1)\n",
    "boundary": SLOPES.replace("$objective", "margin")
    + """
margin = found.values.unsqueeze(-1)
out = torch.cat([margin, margin / (lengths + 1e-6)], -1)
if query.labels is not None:
    asked = target.gradients(query.inputs, Objective("loss", query.labels), [spec.leaf])
    out = torch.cat([out, asked.values.unsqueeze(-1), size(asked.grads[spec.leaf]).unsqueeze(-1)], -1)
""",
    "lens": """
spec, inputs = target.spec, query.inputs
names = hooks(spec, "residual")
found = target.forward(inputs, capture=names)
outputs = found.outputs
columns = [outputs.log_softmax(-1)]
for n in names:
    part = pooled(found.captured[n], spec.hook(n), "$pool", spec, inputs)
    if "represent/unembed" in arrays and part.shape[-1] == arrays["represent/unembed"].shape[1]:
        part = part - part.mean(-1, keepdim=True)
        part = part / (size(part).unsqueeze(-1) + 1e-6) * part.shape[-1] ** 0.5
        said = (part @ arrays["represent/unembed"].T).log_softmax(-1)
        entropy = -(said.exp() * said).sum(-1)
        columns.append(torch.stack([entropy, said.amax(-1), of_label(said, outputs.argmax(-1))], -1))
out = torch.cat(columns, -1)
""",
    "noise": """
spec = target.spec
name = hooks(spec, "both")[0]
outputs = target.forward(query.inputs).outputs
said = outputs.softmax(-1)
columns = [said.amax(-1)]
for one in range(2):
    moved = Intervention(name, "add", arrays["represent/noise"][one : one + 1])
    other = target.forward(query.inputs, interventions=[moved]).outputs.softmax(-1)
    columns += [(said - other).abs().sum(-1), of_label(other, said.argmax(-1))]
out = torch.stack(columns, -1)
""",
}
READ = {
    "plain": "",
    "norms": "out = torch.stack([size(part) for part in parts], -1)\n",
    "sorted": "out = out.sort(-1, descending=True).values[:, :64]\n",
    "square": "out = torch.cat([out, out * out], -1)\n",
}
BESIDE = """
outputs = target.forward(query.inputs).outputs
best = outputs.log_softmax(-1).topk(3, dim=-1).values
out = torch.cat([out, best, best[:, :1] - best[:, 1:2]], -1)
"""
OUTPUTS_KNOWN = frozenset({"activations", "components", "distances", "whitened", "lens", "noise"})
"""Sources whose pass gives the outputs as well: they are not paid for twice."""


def write(fragment: Fragment) -> tuple[str, str]:
    """Lines of the free phase, and of the answer (n, k)."""
    genes = fragment.values
    answer = ANSWER[fragment.source] + READ[genes.get("read", "plain")]
    if genes.get("beside") == "outputs":
        lines = BESIDE.strip().splitlines(keepends=True)
        answer += "".join(lines[1:] if fragment.source in OUTPUTS_KNOWN else lines) + "\n"
    return fill(FREE.get(fragment.source, ""), genes), fill(answer + "return out\n", genes)


def fill(text: str, genes: dict[str, str]) -> str:
    """The text with its genes in place, without empty lines."""
    for gene, option in genes.items():
        text = text.replace(f"${gene}", option)
    return "\n".join(line for line in text.splitlines() if line.strip())
