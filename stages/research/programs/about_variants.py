"""Compare: how modified copies of the target differ from it."""

from stages.research.programs.about_inputs import fill
from stages.research.programs.grammar import Fragment

__all__ = ["write"]

INPUTS = {
    "query": "inputs = query.inputs\n",
    "corpus": 'inputs = arrays["compare/inputs"]\n',
    "noise": 'inputs = arrays["compare/inputs"]\n',
}
FREE_INPUTS = {
    "query": "",
    "corpus": """
arrays["compare/inputs"] = target.corpus("train").inputs[:64].contiguous()
""",
    "noise": """
inputs = target.corpus("train").inputs[:64]
if target.spec.n_vocabulary is None:
    noise = torch.randn(inputs.shape, generator=budget.generator())
    arrays["compare/inputs"] = inputs.mean(0) + noise * inputs.std()
else:
    order = torch.randperm(64 * inputs.shape[1], generator=budget.generator())
    ids = inputs[..., 0].flatten()[order].reshape(inputs.shape[:2])
    arrays["compare/inputs"] = torch.stack([ids, torch.ones_like(ids)], -1)
""",
}
VIEWS = {
    "outputs": """
def view(access):
    return access.forward(inputs).outputs
""",
    "probabilities": """
def view(access):
    said = access.forward(inputs).outputs.log_softmax(-1)
    entropy = -(said.exp() * said).sum(-1, keepdim=True)
    return torch.cat([said.exp(), entropy], -1)
""",
    "activations": """
spec = target.spec
names = hooks(spec, "$roles")
def view(access):
    captured = access.forward(inputs, capture=names).captured
    return torch.cat([pooled(captured[n], spec.hook(n), "$pool", spec, inputs) for n in names], -1)
""",
    "components": """
spec = target.spec
names = hooks(spec, "$roles")
def view(access):
    captured = access.forward(inputs, capture=names).captured
    rows = {n: pooled(captured[n], spec.hook(n), "$pool", spec, inputs) for n in names}
    return torch.cat([rows[n] @ arrays["compare/basis/" + n].T for n in names], -1)
""",
    "gradients": """
leaf = target.spec.leaf
def view(access):
    found = access.gradients(inputs, Objective("margin"), [leaf])
    lengths = size(found.grads[leaf], found.values.dim())
    return torch.stack([found.values, lengths, found.values / (lengths + 1e-6)], -1)
""",
}
FREE_VIEWS = {
    "components": """
corpus, _ = some_corpus(target)
names = hooks(target.spec, "$roles")
captured = target.forward(corpus, capture=names).captured
for n in names:
    rows = pooled(captured[n], target.spec.hook(n), "$pool", target.spec, corpus)
    basis = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)[2]
    arrays["compare/basis/" + n] = basis[:16].contiguous()
""",
    "weights": """
for name, value in target.weights().items():
    if value.is_floating_point() and value.numel() <= 20_000:
        arrays["compare/" + name] = value.contiguous()
""",
}
CHANGE = """
change = view(target.variants(query.variants)) - view(target)
"""
STATISTIC = {
    "shift": "out = change.mean(1)\n",
    "spread": "out = change.abs().mean(1)\n",
    "extremes": """
spread = change.abs().mean(1)
top = spread.topk(min(4, spread.shape[-1]), dim=-1).values
out = torch.cat([top, change.flatten(1).amax(-1, keepdim=True), change.flatten(1).amin(-1, keepdim=True)], -1)
""",
    "all": "out = torch.cat([change.mean(1), change.abs().mean(1), change.abs().amax(1)], -1)\n",
}
WEIGHTS = """
changed = target.variants(query.variants).weights()  # those that differ: of a model of words its last block
names = [n for n in changed if "compare/" + n in arrays]
if not names:
    return None
change = {n: (changed[n] - arrays["compare/" + n]).flatten(1) for n in names}
"""
READ = {
    "norms": "out = torch.stack([size(change[n]) for n in names], -1)\n",
    "sorted": """
out = torch.cat([change[n].abs().topk(min(4, change[n].shape[-1]), dim=-1).values for n in names], -1)
""",
}


def write(fragment: Fragment) -> tuple[str, str]:
    """Lines of the free phase, and of the answer (n, k)."""
    genes, source = fragment.values, fragment.source
    if source == "weights":
        return fill(FREE_VIEWS[source], genes), fill(WEIGHTS + READ[genes["read"]] + "return out\n", genes)
    answer = INPUTS[genes["inputs"]] + VIEWS[source] + CHANGE + STATISTIC[genes["statistic"]]
    free = FREE_INPUTS[genes["inputs"]] + FREE_VIEWS.get(source, "")
    return fill(free, genes), fill(answer + "return out\n", genes)
