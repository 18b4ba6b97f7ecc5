"""auto-circuit on one exported card: ``python auto_circuit_peer.py CARD.safetensors OUT.json [--methods ...]``.

Runs in an environment of its own (docs/circuits.md, Peers) and imports nothing of this project. Writes one row per
method: ``seconds`` of the search alone (ablated activations included; imports, loading and wrapping are not),
``scores`` by edge, ``kept`` (the circuit, where the method finds one; else null).

Two of its algorithms fix the ablation: ACDC to resample, subnetwork probing to the mean per position. For another one
the function that computes ablated activations is replaced in the peer's module; rows say so in ``patched``.
"""

import argparse
import json
import time
from importlib import import_module
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

torch.set_num_threads(1)
if not hasattr(torch.optim, "adam"):  # newer torch has the class only
    torch.optim.adam = torch.optim  # type: ignore[attr-defined, unused-ignore]

SP_EPOCHS = 500  # as in its own experiments on compiled programs, with lr 0.1 and lambda 1e-3
IG_POINTS = 5


Tensors = dict[str, Tensor]
Card = dict[str, Any]
Result = tuple[float, Any, bool, bool]
"""Seconds, the peer's scores, whether it was patched, whether it finds a circuit."""


def peer(name: str) -> Any:
    return import_module(f"auto_circuit.{name}")


def read(path: str) -> tuple[Card, Tensors]:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["card"]), tensors


def model_of(card: Card, tensors: Tensors) -> Any:
    """The exported weights as a HookedTransformer; fails unless it gives the exported outputs."""
    lens: Any = import_module("transformer_lens")
    config = lens.HookedTransformerConfig(
        n_layers=card["n_layers"], n_heads=card["n_heads"], d_model=card["d_model"], d_head=card["d_head"],
        d_mlp=card["d_mlp"], d_vocab=card["vocab"], d_vocab_out=card["outputs"], n_ctx=card["length"], act_fn="relu",
        attention_dir="bidirectional", normalization_type=None, use_attn_result=True, use_split_qkv_input=True,
        use_hook_mlp_in=True, device="cpu",
    )  # fmt: skip
    model = lens.HookedTransformer(config)
    weights = {
        "embed.W_E": tensors["embed.weight"],
        "pos_embed.W_pos": tensors["pos.weight"],
        "unembed.W_U": tensors["unembed.weight"].T,
        "unembed.b_U": torch.zeros(card["outputs"]),
    }
    for layer in range(card["n_layers"]):
        at = f"blocks.{layer}"
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            weights[f"{at}.attn.{name}"] = tensors[f"{at}.attn.{name}"]
        for port in ("in", "out"):
            weights[f"{at}.mlp.W_{port}"] = tensors[f"{at}.W_{port}.weight"].T
            weights[f"{at}.mlp.b_{port}"] = tensors[f"{at}.W_{port}.bias"]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith(("mask", "IGNORE"))]
    if missing or unexpected:
        raise SystemExit(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.eval().requires_grad_(False)
    torch.testing.assert_close(model(tensors["clean"])[:, 1:], tensors["outputs"], rtol=1e-4, atol=1e-4)
    return model


def wrapped(card: Card, tensors: Tensors) -> Any:
    return peer("utils.graph_utils").patchable_model(
        model_of(card, tensors), factorized=True, slice_output="not_first_seq", separate_qkv=True
    )


def our_name(node: str) -> str:
    """ "Resid Start" -> start, "A3.0" -> a3.0, "A3.0.V" -> a3.0_v, "MLP 2" -> m2, "Resid End" -> out."""
    if node == "Resid Start":
        return "start"
    if node == "Resid End":
        return "out"
    if node.startswith("MLP "):
        return "m" + node[4:]
    head, _, port = node[1:].rpartition(".")
    return f"a{head}_{port.lower()}" if port in "QKV" else f"a{node[1:]}"


def loader_of(tensors: Tensors, answers: Tensor) -> Any:
    data = peer("data")
    pairs = data.PromptDataset(
        list(tensors["clean"]), list(tensors["counterfactual"]), list(answers), list(torch.zeros_like(answers))
    )
    return data.PromptDataLoader(pairs, seq_len=None, diverge_idx=0, batch_size=len(answers), shuffle=False)


def ablated(model: Any, card: Card, loader: Any) -> Any:
    """(sources, B, T, D) what cut edges carry under the card's ablation."""
    batch, types = next(iter(loader)), peer("types").AblationType
    kind = {
        "zero": types.ZERO, "mean": types.BATCH_TOKENWISE_MEAN, "resample": types.RESAMPLE,
    }[card["ablation"]]  # fmt: skip
    return peer("utils.ablation_activations").src_ablations(model, batch.corrupt, kind)


def acdc(model: Any, card: Card, tensors: Tensors) -> Result:
    search, graphs = peer("prune_algos.ACDC"), peer("utils.graph_utils")
    loader = loader_of(tensors, tensors["outputs"])
    corrupt = tensors["counterfactual"]
    original = search.src_ablations
    patched = card["ablation"] != "resample"
    if patched:
        search.src_ablations = lambda of, sample: (
            ablated(of, card, loader) if torch.equal(sample, corrupt) else original(of, sample)
        )
    try:
        with torch.inference_mode():
            graphs.set_all_masks(model, val=1.0)
            with graphs.patch_mode(model, ablated(model, card, loader)):
                empty = model(tensors["clean"])[:, 1:]
            graphs.set_all_masks(model, val=0.0)
        threshold = card["tolerance"] * float((empty - tensors["outputs"]).square().mean())
        started = time.perf_counter()
        found = search.acdc_prune_scores(
            model, loader, None, tao_exps=[0], tao_bases=[threshold], faithfulness_target="mse"
        )
        seconds = time.perf_counter() - started
    finally:
        search.src_ablations = original
    return seconds, found, patched, True


def sp(model: Any, card: Card, tensors: Tensors) -> Result:
    search = peer("prune_algos.subnetwork_probing")
    loader = loader_of(tensors, tensors["outputs"])
    original = search.batch_src_ablations
    patched = card["ablation"] != "mean"
    if patched:
        search.batch_src_ablations = lambda of, data, **_: {batch.key: ablated(of, card, loader) for batch in data}
    try:
        started = time.perf_counter()
        found = search.subnetwork_probing_prune_scores(
            model, loader, None, learning_rate=0.1, epochs=SP_EPOCHS, regularize_lambda=1e-3, tree_optimisation=True,
            faithfulness_target="mse",
        )  # fmt: skip
        seconds = time.perf_counter() - started
    finally:
        search.batch_src_ablations = original
    return seconds, found, patched, False


def gradient(model: Any, card: Card, tensors: Tensors, answers: Tensor, **how: Any) -> Result:
    types, search = peer("types").AblationType, peer("prune_algos.mask_gradient")
    loader = loader_of(tensors, answers)
    kind = {
        "zero": (types.ZERO, None), "mean": (types.BATCH_TOKENWISE_MEAN, "corrupt"),
        "resample": (types.RESAMPLE, "corrupt"),
    }[card["ablation"]]  # fmt: skip
    started = time.perf_counter()
    found = search.mask_gradient_prune_scores(
        model, loader, None, grad_function="logit", answer_function="mse", ablation_type=kind[0],
        clean_corrupt=kind[1], **how,
    )  # fmt: skip
    return time.perf_counter() - started, found, False, False


def eap(model: Any, card: Card, tensors: Tensors) -> Result:
    # The distance to zero has, at the clean run, the slope of the projection on the clean outputs; that to the clean
    # outputs has none.
    return gradient(model, card, tensors, torch.zeros_like(tensors["outputs"]), mask_val=0.0)


def ig(model: Any, card: Card, tensors: Tensors) -> Result:
    return gradient(model, card, tensors, tensors["outputs"], integrated_grad_samples=IG_POINTS - 1)


METHODS = {"acdc": acdc, "sp": sp, "eap": eap, "ig": ig}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("card")
    parser.add_argument("out")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    asked = parser.parse_args()
    card, tensors = read(asked.card)
    rows = []
    for method in asked.methods:
        # The first call of a kind pays for what torch sets up, so one goes before; for sp, which is long, eap does.
        METHODS["eap" if method == "sp" else method](wrapped(card, tensors), card, tensors)
        torch.manual_seed(card["seed"])
        model = wrapped(card, tensors)
        seconds, found, patched, circuit = METHODS[method](model, card, tensors)
        named = {
            f"{our_name(edge.src.name)}->{our_name(edge.dest.name)}": abs(float(edge.prune_score(found)))
            for edge in model.edges
        }
        kept = sorted(name for name, score in named.items() if score == float("inf")) if circuit else None
        if circuit:
            named = {name: float(score == float("inf")) for name, score in named.items()}
        rows.append(
            {"method": method, "seconds": seconds, "patched": patched, "scores": dict(sorted(named.items())),
             "kept": kept}
        )  # fmt: skip
    with open(asked.out, "w") as file:  # noqa: PTH123
        json.dump({"tool": "auto-circuit", "card": card["name"], "seed": card["seed"], "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
