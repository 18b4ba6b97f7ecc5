"""How fast dictionaries train here next to SAELens's SAETrainer on the same cache, and how fast a cache is.

Ours and theirs take turns, a few steps each, on the same batches, from the same weights, with the same schedules, on
the same number of threads. A ratio is the median over those turns, so other work on the machine hits both.

Shape legend: B = rows of the batch, D = width, F = latents.
"""

import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.activations.cache import ActivationCache
from stages.activations.manifest import Manifest
from stages.activations.order import BatchOrder, generator_for
from stages.activations.writer import FORWARD_BATCH, write_caches, write_shards
from stages.dictionaries.architectures.objectives import SPARSE_BELOW, Weights
from stages.dictionaries.training.train import recipe_for, scale_of
from stages.dictionaries.training.trainer import Recipe, Trainer
from stages.errors import UserError

__all__ = [
    "SHAPES",
    "compare_training",
    "dense_peak",
    "run_cache",
    "run_training",
    "sae_lens_twin",
    "stacking",
    "write_mixture",
]

SHAPES = ((64, 512, 1024), (128, 2048, 2048))
"""(D, F, B)."""
TURN = 5
"""Steps before the other one's turn."""
SPARSITY = {
    "standard": 4.0, "gated": 4.0, "topk": 32.0, "batchtopk": 32.0, "jumprelu": 32.0, "matryoshka": 32.0,
    "abstopk": 32.0, "matching_pursuit": 8.0,
}  # fmt: skip
"""Of the architectures that SAELens trains too."""
LIMITS = {
    True: "the encoder's product, then passes over (B, F) to select, then AuxK where latents are dead",
    False: "dense products, then passes over (B, F) for the activation and its gradient",
}
"""What a step waits for, by profile: where few latents are active, and where many are."""
PURSUIT_LIMIT = "one dense product per latent chosen, and a pass over (B, F) to choose it"
Row = dict[str, Any]


def run_training(steps: int = 60, threads: int = 1, progress: Callable[[str], None] = print) -> list[Row]:
    """The rows of ``lensmith bench dictionaries``: every shape with every architecture.

    Raises:
        UserError: too few steps.
    """
    if steps < 4 * TURN:
        raise UserError(f"steps = {steps}: give at least {4 * TURN}, ours and SAELens's take turns of {TURN}")
    torch.set_num_threads(threads)
    rows: list[Row] = []
    peak = 0.0
    with tempfile.TemporaryDirectory(prefix="lensmith-bench-") as folder:
        for width, n_latents, batch in SHAPES:
            cache = write_mixture(Path(folder) / str(width), width, n_rows=40 * batch)
            for architecture in SPARSITY:
                progress(f"{architecture}, d = {width}, {n_latents} latents, batch {batch}")
                peak = max(peak, dense_peak())
                rows.append(compare_training(cache, architecture, n_latents, batch, steps, threads))
    for row in rows:
        row["peak_gflops"] = round(peak / 1e9, 1)
        row["share_of_peak"] = round(row["gflops"] * 1e9 / peak, 4)
        row["peer_share_of_peak"] = round(row["peer_dense_gflops"] * 1e9 / peak, 4)
    return rows


def run_cache() -> list[Row]:
    """The rows of ``lensmith bench cache``."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lensmith-bench-") as folder:
        read = _reading(write_mixture(Path(folder) / "read", 128, n_rows=200_000), 4096)
        return [read, *_writing(Path(folder) / "write")]


def write_mixture(root: Path, width: int, n_rows: int, seed: int = 0) -> ActivationCache:
    """A cache of sparse mixtures of 4 * width directions, frequencies falling as 1 / rank, about 12 active per row."""
    generator = generator_for("bench", seed, width)
    directions = torch.nn.functional.normalize(torch.randn(4 * width, width, generator=generator), dim=-1)
    chance = (12.0 * torch.arange(1, 4 * width + 1).double().reciprocal()).float()
    chance *= 12.0 / chance.clamp_max(0.5).sum()
    rows = torch.empty(n_rows, width)
    for part in torch.split(rows, 8192):
        drawn = torch.rand(len(part), 4 * width, generator=generator) < chance.clamp_max(0.5)
        size = 1.0 + torch.rand(len(part), 4 * width, generator=generator)
        part.copy_((drawn * size) @ directions)
    rows += 0.5 * directions[0] + 0.02 * torch.randn(n_rows, width, generator=generator)
    folder = root / "mixture" / "train"
    folder.mkdir(parents=True)
    index = torch.arange(n_rows, dtype=torch.int32)
    columns = {"acts": rows.half(), "example": index, "position": index * 0, "label": index * 0}
    Manifest(
        key="bench", target="mixture", target_digest="bench", hook="mixture", role="residual", split="train",
        dtype="float16", seed=seed, width=width, n_examples=n_rows, n_positions=1, n_rows=n_rows, rows_per_shard=65_536,
        max_abs=rows.abs().max().item(), shards=write_shards(folder, columns, 65_536),
    ).save(folder)  # fmt: skip
    return ActivationCache.open("mixture", "mixture", "train", root=root)


def compare_training(
    cache: ActivationCache, architecture: str, n_latents: int, batch: int, steps: int, threads: int
) -> Row:
    """One row: samples/s and final loss of both.

    "gflops" counts the products our step does; "dense_gflops" the 12 * B * D * F of a dense step under autograd in the
    same time, which is what SAELens's step does ("peer_dense_gflops"). AuxK is in neither count.
    """
    acts = cache.read().acts
    scale = scale_of(acts)
    # As in SAELens's defaults: coefficients, AuxK and clipping; a window short enough for AuxK to be at work.
    recipe = recipe_for(architecture, n_latents, SPARSITY[architecture], steps, batch, 1e-3, dead_window=20 * batch)
    ours = Trainer(recipe, acts.mean(0) * scale, seed=0)
    theirs = _peer(recipe, ours, scale)
    order = BatchOrder(len(acts), batch, seed=0)
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    losses: dict[str, list[float]] = {"ours": [], "theirs": []}
    active = 0
    for turn in range(steps // TURN):
        chosen = [acts.index_select(0, order.indices(turn * TURN + step)) for step in range(TURN)]
        start = time.perf_counter()
        for x in chosen:
            out = ours.step(x * scale)
            losses["ours"].append(out.loss)
        seconds["ours"].append(time.perf_counter() - start)
        active += out.n_active
        start = time.perf_counter()
        for x in chosen:
            losses["theirs"].append(theirs.step(x).loss.item())
            theirs.n_training_steps += 1
        seconds["theirs"].append(time.perf_counter() - start)
    warm = max(1, len(seconds["ours"]) // 10)
    mine, other = seconds["ours"][warm:], seconds["theirs"][warm:]
    last = max(TURN, steps // 10)
    share = active / (steps // TURN) / (batch * n_latents)
    step_s = statistics.median(mine) / TURN
    dense = batch * cache.width * n_latents
    return {
        "architecture": architecture,
        "d": cache.width,
        "n_latents": n_latents,
        "batch": batch,
        "threads": threads,
        "steps": steps,
        "samples_per_s": round(batch / step_s),
        "peer_samples_per_s": round(batch * TURN / statistics.median(other)),
        "ratio": round(statistics.median(b / a for a, b in zip(mine, other, strict=True)), 3),
        "final_loss": sum(losses["ours"][-last:]) / last,
        "peer_final_loss": sum(losses["theirs"][-last:]) / last,
        "active_share": round(share, 4),
        "limit": PURSUIT_LIMIT if architecture == "matching_pursuit" else LIMITS[share <= SPARSE_BELOW],
        "gflops": round(_work(architecture, share, n_latents, dense) / step_s / 1e9, 2),
        "dense_gflops": round(12 * dense / step_s / 1e9, 2),
        "peer_dense_gflops": round(12 * dense / (statistics.median(other) / TURN) / 1e9, 2),
    }


def _work(architecture: str, share: float, n_latents: int, dense: int) -> float:
    """FLOPs of a step's products (without AuxK): the encoder's, and four (gated: seven) that are sparse or dense.

    Matching pursuit: one dense product per latent chosen.
    """
    if architecture == "matching_pursuit":
        return 2.0 * share * n_latents * dense
    more = 14.0 if architecture == "gated" else 8.0
    return (2.0 + more * (1.0 if share > SPARSE_BELOW else share)) * dense


def _peer(recipe: Recipe, ours: Trainer, scale: float) -> Any:
    """SAELens's trainer at the same weights, with the same schedules."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    settings = SAETrainerConfig(
        total_training_samples=recipe.samples, train_batch_size_samples=recipe.batch, lr=recipe.lr,
        lr_end=recipe.lr / 10, lr_warm_up_steps=recipe.warm_up // recipe.batch,
        lr_decay_steps=recipe.decay // recipe.batch, dead_feature_window=recipe.dead_window // recipe.batch,
    )  # fmt: skip
    trainer: Any = SAETrainer(cfg=settings, sae=sae_lens_twin(recipe, ours.weights), data_provider=iter(()))
    trainer.activation_scaler.scaling_factor = scale
    return trainer


def sae_lens_twin(recipe: Recipe, weights: Weights) -> Any:
    """SAELens's training class of the same architecture and settings, at the same weights."""
    from sae_lens import TrainingSAE
    from sae_lens.registry import get_sae_training_class

    name = {"matryoshka": "matryoshka_batchtopk"}.get(recipe.architecture, recipe.architecture)
    warm = recipe.l1_warm_up // recipe.batch
    by_name: dict[str, dict[str, float | str | list[int]]] = {
        "standard": {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": warm},
        "gated": {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": warm},
        "topk": {"k": int(recipe.sparsity)},
        "abstopk": {"k": int(recipe.sparsity)},
        "batchtopk": {"k": recipe.sparsity, "topk_threshold_lr": recipe.threshold_lr},
        "matryoshka": {"k": recipe.sparsity, "topk_threshold_lr": recipe.threshold_lr,
                       "matryoshka_widths": [*recipe.widths, recipe.n_latents]},
        "jumprelu": {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": recipe.sparsity,
                     "l0_coefficient": recipe.l0_coefficient, "l0_warm_up_steps": warm,
                     "jumprelu_bandwidth": recipe.bandwidth, "jumprelu_init_threshold": recipe.first_threshold},
        "matching_pursuit": {"max_iterations": int(recipe.sparsity), "residual_threshold": recipe.residual_threshold,
                             "decoder_init_norm": 1.0},
    }  # fmt: skip
    shape = {"d_in": weights.decoder.shape[1], "d_sae": recipe.n_latents}
    cfg: Any = get_sae_training_class(name)[1](**shape, **by_name[recipe.architecture])
    with torch.random.fork_rng(devices=[]):
        sae: Any = TrainingSAE.from_dict(cfg.to_dict())
    places = {"encoder": "W_enc", "decoder": "W_dec"} | ({"b_enc": "b_gate"} if recipe.architecture == "gated" else {})
    with torch.no_grad():
        for key, value in weights.named().items():
            getattr(sae, places.get(key, key)).copy_(value.T if key == "encoder" else value)
    return sae


def dense_peak(size: int = 1024, repeats: int = 20) -> float:
    """FLOP/s of a dense float32 product on the present number of threads: the best of some."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best = min(_timed(lambda: left @ right) for _ in range(repeats))
    return 2.0 * size**3 / best


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _reading(cache: ActivationCache, batch: int) -> Row:
    stream = cache.batches(batch, seed=0)
    next(stream)
    times = [_timed(lambda: next(stream)) for _ in range(60)]
    rate = batch / statistics.median(times)
    return {"what": "read", "where": f"{len(cache)} rows of {cache.width}, warm", "batch": batch,
            "rows_per_s": round(rate), "bytes_per_s": round(rate * cache.width * 2)}  # fmt: skip


def _writing(root: Path) -> list[Row]:
    """Writing every hook point's rows of one split, against the bare forward pass over the same inputs."""
    from stages.targets.storage import freeze
    from stages.targets.zoo import ZOO, trained

    rows = []
    for name in trained():
        definition = ZOO.find(name)()
        generator = torch.Generator().manual_seed(0)
        images = definition.data(0)
        data = {split: definition.sample(images, split, 2048, generator) for split in ("train", "validation")}
        rows.append(_written(root, freeze(name, definition.build(generator), data | {"tasks": images["tasks"]})))
    return [*rows, _written(root, _wide_target())]


def _written(root: Path, target: Any, turns: int = 5) -> Row:
    """Writing speed, what the bare forward takes, and what no writing of these bytes can do without.

    "share_of_bytes" is (forward + hashing and writing as many bytes) / written: 1 would be a cache that costs nothing
    but its bytes.
    """
    inputs = target.corpus("train").inputs

    def forward() -> None:
        with torch.no_grad():
            for block in torch.split(inputs, FORWARD_BATCH):
                target.model(block)

    forward()
    place = root / target.name
    seconds: list[tuple[float, float, float]] = []
    for _ in range(turns):
        shutil.rmtree(place, ignore_errors=True)
        bare = _timed(forward)
        written = _timed(lambda: write_caches(target, "train", root=place))
        sizes = [file.stat().st_size for file in sorted(place.rglob("*.safetensors"))]
        seconds.append((bare, written, _timed(lambda sizes=sizes: _bare_bytes(place / "bytes", sizes))))  # type: ignore[misc]
    manifests = write_caches(target, "train", root=place)
    n_bytes = sum(sizes)
    written = statistics.median(one[1] for one in seconds)
    return {
        "what": "write", "where": f"{target.name}, {len(inputs)} examples, {len(manifests)} hook points",
        "rows_per_s": round(sum(manifest.n_rows for manifest in manifests) / written),
        "bytes_per_s": round(n_bytes / written),
        "share_of_bare_forward": round(statistics.median(bare / all_ for bare, all_, _ in seconds), 3),
        "share_of_bytes": round(statistics.median((bare + least) / all_ for bare, all_, least in seconds), 3),
    }  # fmt: skip


def _bare_bytes(folder: Path, sizes: list[int]) -> None:
    """Hash and write files of these sizes."""
    folder.mkdir(exist_ok=True)
    data = bytes(max(sizes))
    for number, size in enumerate(sizes):
        part = memoryview(data)[:size]
        hashlib.sha256(part).digest()
        (folder / str(number)).write_bytes(part)


def _wide_target(width: int = 512, n_layers: int = 3, n_examples: int = 4096) -> Any:
    """A residual MLP of the size at which the forward pass outweighs the bytes of its activations."""
    from torch import nn
    from transformer_lens import HookedRootModule
    from transformer_lens.hook_points import HookPoint

    from stages.contracts.target import Corpus, HookSpec, Target, TargetSpec

    class Wide(HookedRootModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(n_layers))
            self.out = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(n_layers))
            self.hidden = nn.ModuleList(HookPoint() for _ in range(n_layers))
            self.residual = nn.ModuleList(HookPoint() for _ in range(n_layers))
            self.setup()

        def forward(self, x: Tensor) -> Tensor:
            for into, out, hidden, residual in zip(self.into, self.out, self.hidden, self.residual, strict=True):
                x = residual(x + out(hidden(into(x).relu())))
            return x

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs = Wide(), torch.randn(n_examples, width)
    hooks = [HookSpec(f"hidden.{layer}", (4 * width,), 4 * width, "mlp") for layer in range(n_layers)]
    hooks += [HookSpec(f"residual.{layer}", (width,), width, "residual") for layer in range(n_layers)]
    spec = TargetSpec(
        name=f"residual MLP of {width}", digest="bench", input_shape=(width,), n_outputs=width, hooks=tuple(hooks),
        components=(), tokens=None, present_channel=None, unembed=None, norm=None,
    )  # fmt: skip
    labels = torch.zeros(n_examples, dtype=torch.int64)
    return Target(spec, model, {"train": Corpus(inputs, labels)})


def stacking(n_stacked: int = 8, repeats: int = 15) -> list[Row]:
    """Several ReLU dictionaries of one shape: a loop over them, and one batched product; above 1 the batch wins."""
    rows = []
    for width, n_latents, batch in ((16, 64, 128), (32, 128, 256), (64, 256, 256), (64, 256, 1024), (64, 512, 1024)):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, width, generator=generator)
        encoder = 0.1 * torch.randn(n_stacked, width, n_latents, generator=generator)
        decoder = encoder.transpose(1, 2).contiguous()

        def one(inputs: Tensor, e: Tensor, d: Tensor) -> None:
            z = (inputs @ e).relu_()
            back = (z @ d - inputs).mul_(2.0 / inputs.shape[-2])
            g = torch.ops.aten.threshold_backward(back @ d.mT, z, 0)
            _ = inputs.mT @ g, z.mT @ back

        def loop(x: Tensor = x, encoder: Tensor = encoder, decoder: Tensor = decoder) -> None:
            for e, d in zip(encoder, decoder, strict=True):
                one(x, e, d)

        def stacked(x: Tensor = x, encoder: Tensor = encoder, decoder: Tensor = decoder) -> None:
            one(x.expand(n_stacked, -1, -1), encoder, decoder)

        loop()
        stacked()
        pairs = [(_timed(loop), _timed(stacked)) for _ in range(repeats)]
        rows.append(
            {"d": width, "n_latents": n_latents, "batch": batch, "n_stacked": n_stacked,
             "loop_ms": round(1e3 * statistics.median(a for a, _ in pairs), 3),
             "stacked_ms": round(1e3 * statistics.median(b for _, b in pairs), 3),
             "ratio": round(statistics.median(a / b for a, b in pairs), 3)}
        )  # fmt: skip
    return rows
