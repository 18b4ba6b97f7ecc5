"""Honest: activations pooled in several threads at once."""

from concurrent.futures import ThreadPoolExecutor

import torch

from lensmith import Interpretation, Method, Represent


class Control(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        if not isinstance(query, Represent):
            return None
        hooks = [h.name for h in target.spec.hooks if h.role in ("residual", "mlp")]
        captured = target.forward(query.inputs, hooks).captured
        scale = torch.eye(64)

        def pool(name):
            rows = captured[name].flatten(1).double()
            return (rows[:, :64] @ scale[: rows.shape[1], :8].double()).tanh()

        with ThreadPoolExecutor(4) as workers:
            return torch.cat(list(workers.map(pool, hooks)), 1)
