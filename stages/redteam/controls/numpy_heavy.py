"""Honest: principal components of activations, computed and applied in numpy."""

import numpy as np
import torch

from lensmith import Interpretation, Method, Represent


class Control(Method):
    adaptive = True

    def interpret(self, target, budget):
        hook = next(h.name for h in reversed(target.spec.hooks) if h.role in ("residual", "mlp"))
        inputs = target.corpus("train").inputs[:500]
        rows = target.forward(inputs, [hook]).captured[hook].flatten(1).double().numpy()
        mean = rows.mean(0)
        _, _, basis = np.linalg.svd(rows - mean, full_matrices=False)
        return Interpretation(
            {"mean": torch.from_numpy(mean), "basis": torch.from_numpy(basis[:12].copy())}, {"hook": hook}
        )

    def answer(self, query, interpretation, target):
        if not isinstance(query, Represent):
            return None
        hook = interpretation.data["hook"]
        rows = target.forward(query.inputs, [hook]).captured[hook].flatten(1).double().numpy()
        rows = rows - interpretation.arrays["mean"].numpy()
        basis = interpretation.arrays["basis"].numpy()
        covariance = rows.T @ rows / len(rows)  # not needed, but what honest code does
        return torch.from_numpy(np.ascontiguousarray(rows @ basis.T) + 0.0 * np.trace(covariance))
