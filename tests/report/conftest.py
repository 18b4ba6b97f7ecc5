"""Result files as a run leaves them, from a seeded generator: rows of the real models, none of the real numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages.contracts.circuit_rows import (
    CIRCUITS,
    DRAWINGS,
    CircuitDrawing,
    CircuitRow,
    Drawings,
    DrawnEdge,
    DrawnNode,
)
from stages.contracts.compare_rows import (
    COMPARISON,
    LIVE,
    BestOfRow,
    CompareRow,
    Comparison,
    LiveRow,
    ProfileRow,
    ScalingPoint,
    ScalingRow,
    TabledRow,
)
from stages.contracts.dictionary_rows import (
    DICTIONARIES,
    GALLERY,
    PROXIES,
    Ablated,
    DictionaryRow,
    Galleries,
    Gallery,
    Latent,
    Moved,
    Pages,
    ProxyRow,
)
from stages.contracts.journal import (
    CAMPAIGN,
    CampaignSummary,
    Event,
    Fingerprint,
    Incumbent,
    Iteration,
    Proposed,
    Result,
    Started,
)
from stages.contracts.measurement_rows import (
    CONTROLS,
    FRESH,
    NULL,
    SENSITIVITY,
    ControlRow,
    FreshRow,
    NullRow,
    RankRow,
    RewardSettings,
    SensitivityTable,
    TauRow,
)
from stages.contracts.record import Estimate
from stages.contracts.research_rows import LABELS, SCENARIOS, TEST_PATH, LabelsRow, PathRow, ScenarioRow
from stages.contracts.reward_rows import (
    LEADERBOARD,
    PER_TASK,
    STATEMENTS,
    TEST,
    TEST_PER_TASK,
    TEST_STATEMENTS,
    TRAIN,
    BudgetRow,
    LeaderboardRow,
    StatementRow,
    TaskRow,
    TestRow,
)
from stages.reward.statements import statements

METHODS = ("attention", "gradient", "logit_lens", "nothing", "pca", "random_features", "raw_activations", "sae")
WORTH = {"attention": 0.09, "gradient": 0.13, "sae": 0.07, "pca": 0.05, "raw_activations": 0.04, "logit_lens": -0.01}
PRICE = {"attention": 0.3, "gradient": 0.62, "sae": 0.21, "pca": 0.22, "raw_activations": 0.55, "logit_lens": 0.9}
TASKS = (
    ("train", "early_exit", "digits_few_shot", 0.52),
    ("train", "noise_flip", "digits_mlp", 0.61),
    ("train", "noise_flip", "digits_few_shot", 0.47),
    ("validation", "few_shot_shapley", "digits_few_shot", 0.41),
    ("validation", "ablation_effect", "digits_mlp", 0.55),
    ("validation", "ablation_effect", "digits_few_shot", 0.32),
    ("validation", "backdoor_detection", "digits_mlp", 0.27),
)
FLOOR = 0.011
KINDS = {
    "early_exit": "Represent", "noise_flip": "Represent", "few_shot_shapley": "Attribute",
    "ablation_effect": "Localise", "backdoor_detection": "Compare",
}  # fmt: skip


def _around(mean: float, half: float, prefix: str) -> dict[str, float]:
    return {
        f"{prefix}_mean": round(mean, 6),
        f"{prefix}_low": round(mean - half, 6),
        f"{prefix}_high": round(mean + half, 6),
    }


def _verdict(low: float, high: float, mean: float) -> str:
    return "better" if low > 0 and mean > FLOOR else "worse" if high < 0 and mean < -FLOOR else "not distinguishable"


def per_task(rng: np.random.Generator) -> list[TaskRow]:
    rows = []
    for method in METHODS:
        for split, family, target, base in TASKS:
            status, reason = "ok", ""
            if method == "nothing" or (method == "attention" and target == "digits_mlp"):
                status = "declined"
            if method == "logit_lens" and family == "backdoor_detection":
                status, reason = (
                    "failed",
                    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (240x32 and 64x10) <b>",
                )
            gain = 0.0 if status != "ok" else WORTH.get(method, 0.0) * rng.uniform(0.3, 1.8) + rng.normal(0, 0.008)
            ratio = 1.0 if status != "ok" else PRICE.get(method, 1.0) * rng.uniform(0.7, 1.3)
            half, reward = rng.uniform(0.02, 0.05), gain + 0.1 * (1 - ratio) * (gain > -0.02)
            half = half if status == "ok" else 0.0
            by_budget = [
                BudgetRow(
                    budget=budget, flops_budget=1.3e6 * scale, baseline_score=base * depth,
                    baseline_low=base * depth - 0.03, baseline_high=base * depth + 0.03,
                    assisted_score=base * depth + gain, assisted_low=base * depth + gain - half,
                    assisted_high=base * depth + gain + half, placebo_score=base * depth,
                    placebo_low=base * depth - 0.02, placebo_high=base * depth + 0.02,
                    flops_baseline=1.1e6 * scale, flops_assisted=1.1e6 * scale * ratio, flops_placebo=1.1e6 * scale,
                    effort_baseline=1.0, effort_assisted=0.0, effort_placebo=1.0, used_answer=1.0,
                )
                for budget, scale, depth in (("tight", 1.0, 0.6), ("medium", 5.0, 0.85), ("ample", 24.0, 1.0))
            ]  # fmt: skip
            rows.append(
                TaskRow(
                    method=method, family=family, target=target, split=split, status=status, reason=reason,
                    n_instances=240, n_seeds=3, flops_baseline=4.2e6 * base, flops_assisted=4.2e6 * base * ratio,
                    flops_placebo=4.2e6 * base * 1.02, flops_answer_target=1.1e6, flops_answer_own=3.1e4,
                    flop_ratio=round(ratio, 6), used_answer=1.0 if gain > 0.02 else 0.333333, effort_baseline=2.0,
                    effort_assisted=1.0, noise_floor=FLOOR, by_budget=by_budget, kind=KINDS[family], cluster=family,
                    reward_se=half / 2.2, reward_df=11.0, visible=half * 1.4, improvement=float(reward > 0),
                    verdict=_verdict(reward - half, reward + half, reward),
                    **_around(base, 0.03, "baseline_score"), **_around(base + gain, half, "assisted_score"),
                    **_around(base + rng.normal(0, 0.004) * (status == "ok"), half * 0.8, "placebo_score"),
                    **_around(gain, half, "gain"), **_around(reward, half, "reward"),
                    **_around(rng.normal(-0.003, 0.003) * (status == "ok"), half * 0.5, "placebo_reward"),
                )
            )  # fmt: skip
    return rows


def board(rows: list[TaskRow], split: str, label: str = "") -> list[LeaderboardRow]:
    out = []
    for method in METHODS:
        mine = [row for row in rows if row.method == method and row.split == split]
        mean = float(np.mean([row.reward_mean for row in mine]))
        gain = float(np.mean([row.gain_mean for row in mine]))
        half = 0.0 if method == "nothing" else 0.028
        worst = min(mine, key=lambda row: row.reward_mean)
        failed = sum(row.status == "failed" for row in mine)
        out.append(
            LeaderboardRow(
                method=method, split=label or split, reward_mean=round(mean, 6), reward_low=round(mean - half, 6),
                reward_high=round(mean + half, 6), performance_gain=round(gain, 6),
                performance_gain_low=round(gain - half, 6), performance_gain_high=round(gain + half, 6),
                flop_ratio=round(float(np.exp(np.mean([np.log(row.flop_ratio) for row in mine]))), 6),
                placebo_reward=round(float(np.mean([row.placebo_reward_mean for row in mine])), 6),
                placebo_low=-0.011 if half else 0.0, placebo_high=0.006 if half else 0.0, noise_floor=FLOOR,
                worst_task=worst.task, worst_task_reward=worst.reward_mean, n_tasks=len(mine), n_seeds=3,
                n_instances=240 * len(mine), n_declined=sum(row.status == "declined" for row in mine),
                n_failed=failed, status="failed" if failed else "ok",
                verdict=_verdict(mean - half, mean + half, mean),
            )
        )  # fmt: skip
    return sorted(out, key=lambda row: (-row.reward_mean, row.method))


def campaign() -> CampaignSummary:
    rng = np.random.default_rng(3)
    iterations, top, incumbent = [], 0.0, None
    for i in range(16):
        status = {4: "failed", 9: "void"}.get(i, "ok")
        value = round(float(0.03 + 0.009 * i + rng.normal(0, 0.03)), 2)
        accepted = status == "ok" and value > top
        top = value if accepted else top
        spec = {"representation": "sae", "dictionary": {"architecture": "topk", "k": 8}, "gradient": False}
        known = status == "ok"
        one = Iteration(
            iteration=i, name=f"search-{i:03d}", spec=spec, status=status,
            reason={4: "MethodError: 12.0% of its values are NaN", 9: "the target was never called"}.get(i, ""),
            train_reward=round(value + 0.03, 6) if known else None, validation_reward=value if known else None,
            accepted=accepted, best_so_far=top, flop_ratio=round(float(rng.uniform(0.2, 1.1)), 6),
            interpret_bytes=66_000 + 1000 * i,
        )  # fmt: skip
        iterations.append(one)
        if accepted:
            incumbent = Incumbent(name=one.name, spec=spec, iteration=i, validation_reward=value, accepted=True)
    assert incumbent is not None
    return CampaignSummary(
        campaign="search-0", researcher="search", seed=0, iterations=iterations, incumbent=incumbent,
    )  # fmt: skip


def sensitivity(rows: list[LeaderboardRow]) -> SensitivityTable:
    rng = np.random.default_rng(4)
    out: list[RankRow] = []
    taus = []
    for form in ("linear", "log", "polynomial"):
        for weight in (0.0, 0.03, 0.1, 0.3, 1.0):
            means = {row.method: row.reward_mean + rng.normal(0, 0.03 * weight) for row in rows}
            order = sorted(means, key=lambda method: (-means[method], method))
            taus.append(TauRow(form=form, flop_weight=weight, kendall_tau=round(1 - 0.3 * weight, 6)))
            out += [
                RankRow(form=form, flop_weight=weight, method=m, reward_mean=means[m], rank=i + 1)
                for i, m in enumerate(order)
            ]
    return SensitivityTable(default=RewardSettings(form="linear", flop_weight=0.1), rows=out, kendall_tau=taus)


def controls() -> list[ControlRow]:
    rows = [
        ControlRow(control="oracle", expected="score >= 0.9 on every task", value=0.985, passed=True,
                   detail="lowest on noise_flip.digits_mlp"),
        ControlRow(control="constant predictor", expected="score 0 on every task", value=0.0, passed=True),
        ControlRow(control="nothing", expected="reward 0", value=0.0, passed=True),
        ControlRow(control="random_features", expected="not better than nothing", value=-0.004, passed=True,
                   low=-0.02, high=0.011),
    ]  # fmt: skip
    return rows + [
        ControlRow(control=f"placebo of {m}", expected="reward not above 0", value=-0.002, passed=m != "pca",
                   low=-0.012, high=0.006)
        for m in METHODS
    ]  # fmt: skip


def _metric(value: float, half: float, null: float | None) -> Estimate:
    return Estimate(value=round(value, 6), low=round(value - half, 6), high=round(value + half, 6), null=null)


HOOKS = (
    ("digits_few_shot", "blocks.0.hook_resid_post", 256),
    ("digits_few_shot", "blocks.1.hook_resid_post", 256),
    ("digits_mlp", "layers.0.hook_post", 128),
    ("digits_mlp", "layers.1.hook_post", 128),
)
SHAPES = {
    "standard": (14.0, 0.86), "topk": (8.0, 0.9), "batchtopk": (7.8, 0.915), "random": (8.0, 0.31), "pca": (8.0, 0.7),
    "identity": (8.0, 0.5), "ica": (8.0, 0.62),
}  # fmt: skip
SPARSITIES = (4.0, 8.0, 16.0)


OTHERS = (
    "reconstruction_bias", "l2_ratio", "max_cosine", "description_length", "description_length_codes",
    "description_length_raw", "loss_clean", "loss_spliced", "loss_ablated", "kl_recovered", "length_bits",
    "unexplained_bits", "surprise", "accuracy_drop",
    "top1_agreement", "monosemanticity_shuffled", "class_purity_shuffled", "class_entropy", "class_entropy_shuffled",
    "probe_2_sparse", "splitting", "absorption", "absorption_full",
)  # fmt: skip
"""Metrics that the report does not show."""


def dictionary(architecture: str = "topk", sparsity: float = 8.0, seed: int = 0, **values: object) -> DictionaryRow:
    """One dictionary; ``values`` replace what its metrics and facts are by default."""
    plain = {
        "target": "digits_mlp", "hook_point": "layers.0.hook_post", "n_latents": 64, "architecture": architecture,
        "sparsity": sparsity, "seed": seed, "n_validation_rows": 8500, "n_validation_examples": 500,
        "density_histogram": (0, 1, 5, 40, 18, 0), "loss_recovered_small_denominator": False, "ablation": "zero",
        "n_images": 450, "n_monosemanticity_latents": 60, "l0": _metric(sparsity, 0.15, 8.0),
        "explained_variance": _metric(0.8, 0.012, 0.31), "dead_ratio": _metric(0.06, 0.02, 0.01),
        "loss_recovered": _metric(0.9, 0.01, 0.4), "probe_full": _metric(0.94, 0.02, 0.7),
        "monosemanticity": _metric(0.51, 0.03, 0.2), "class_purity": _metric(0.62, 0.03, 0.14),
        "probe_1_sparse": _metric(0.78, 0.02, 0.55), "probe_5_sparse": _metric(0.86, 0.02, 0.55),
        "probe_raw": Estimate(value=0.95),
    }  # fmt: skip
    return DictionaryRow(**dict.fromkeys(OTHERS, _metric(0.5, 0.1, 0.2)) | plain | values)


def dictionaries(rng: np.random.Generator) -> list[DictionaryRow]:
    """Every architecture at three sparsities; trained ones with three seeds, baselines with one."""
    rows = []
    for target, hook, n_latents in HOOKS:
        for architecture, (l0, variance) in sorted(SHAPES.items()):
            trained = architecture in ("standard", "topk", "batchtopk")
            for sparsity in SPARSITIES:
                for seed in (0, 1, 2) if trained else (0,):
                    null = None if architecture == "random" else 0.31
                    v = 1 - (1 - variance) * (8 / sparsity) ** 0.7 + rng.normal(0, 0.01)
                    rows.append(
                        dictionary(
                            architecture, sparsity, seed, target=target, hook_point=hook, n_latents=n_latents,
                            l0=_metric(l0 * sparsity / 8 + rng.normal(0, 0.2), 0.15, null and 8.0),
                            explained_variance=_metric(v, 0.012, null),
                            loss_recovered=_metric(0.97 - 0.3 * (1 - v), 0.01, null and 0.4),
                            probe_5_sparse=_metric(0.7 + 0.2 * v + rng.normal(0, 0.01), 0.02, null and 0.55),
                        )
                    )  # fmt: skip
    return rows


def latents(rng: np.random.Generator, n: int, n_latents: int, grid: "tuple[int, int] | None") -> Pages:
    """A gallery of n of n_latents latents over real digits, so that the page is looked at as it will be."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images: dict[str, int] = {}
    positions = grid[0] * grid[1] if grid else 1
    numbers = rng.choice(n_latents, n, replace=False)
    pages = []
    for i, number in enumerate(numbers.tolist()):
        digit = int(rng.integers(10))
        n_top = 4 if i == 1 else 9
        chosen = rng.choice(np.flatnonzero(digits.target == digit), n_top, replace=False)
        shown = ["".join("0123456789abcdefg"[int(v)] for v in digits.data[k]) for k in chosen]
        largest = float(rng.uniform(1, 4))
        share = np.where(np.arange(10) == digit, 0.6, 0.06)
        counts = rng.poisson(np.outer(40 * np.exp(-np.arange(10) / 3), share))
        others = rng.choice(numbers, min(6, n), replace=False)
        purity = float(counts[:, digit].sum() / counts.sum())
        pages.append(
            Latent(
                latent=number, class_=digit, n_images=int(rng.integers(1, 200)),
                selectivity=round(0.92 * (1 - i / n), 4), purity=round(purity, 4), entropy=1.204,
                density=float(f"{10 ** rng.uniform(-3.5, -0.5):.4g}"),
                monosemanticity=None if i == 1 else round(float(rng.uniform(0.1, 0.8)), 4),
                max_cosine=0.41, mean_activation=float(f"{largest / 3:.4g}"), max_activation=float(f"{largest:.4g}"),
                class_histogram=counts.sum(0).tolist(), histogram=counts.tolist(),
                images=[images.setdefault(one, len(images)) for one in shown],
                activations=[float(f"{v:.4g}") for v in np.linspace(largest, largest / 2, n_top)],
                classes=[digit] * n_top, positions=rng.integers(0, positions, n_top).tolist(),
                examples=chosen.tolist(), heat=rng.integers(0, 101, (n_top, positions)).tolist() if grid else None,
                neighbours=[(int(k), 0.4 - 0.05 * j) for j, k in enumerate(others[others != number][:5])],
                logit_effect=[float(f"{v:.4g}") for v in rng.normal(0, 0.4, 10) + 1.5 * (np.arange(10) == digit)],
                ablation=Ablated(
                    logits=[float(f"{v:.4g}") for v in rng.normal(0, 0.05, 10) - 0.3 * (np.arange(10) == digit)],
                    loss=float(f"{rng.normal(0.02, 0.03):.4g}"), changed=0.125, n=8,
                ),
            )
        )  # fmt: skip
    return Pages(images=list(images), grid=grid, n_rows=8500, n_examples=500, n_live=n, latents=pages)


EVIL_WORDS = (
    "<script>alert(1)</script>", "\u202egnp.exe", "\n\n", "", "z" * 80, " the", "\u05e9\u05dc\u05d5\u05dd", "\x1b[31m",
    "&amp;", "\u200b", '"onclick="', " dog",
)  # fmt: skip
"""Words that a model may have and a page must only show."""


def word_pages(rng: np.random.Generator, n: int, n_latents: int) -> Pages:
    """A gallery of words, some of them evil: contexts of 3 to 30 words, three classes and a fourth for the others."""
    words = (*EVIL_WORDS, *(f" word{i}" for i in range(40)))
    made = latents(rng, n, n_latents, None)
    contexts = [rng.integers(0, len(words), rng.integers(3, 30)).tolist() for _ in range(3 * n)]
    pages = []
    for i, page in enumerate(made.latents):
        shown = rng.choice(len(contexts), min(9, 2 + i), replace=False).tolist()
        heat = [[-1, *rng.integers(0, 101, len(contexts[one]) - 1).tolist()] for one in shown]
        moved = [[(int(word), float(f"{rng.normal():.4g}")) for word in rng.choice(len(words), 5)] for _ in range(4)]
        values = {
            "class_": i % 3, "images": shown, "activations": page.activations[: len(shown)], "heat": heat,
            "classes": [-1, *[i % 3] * (len(shown) - 1)], "examples": shown, "positions": [0] * len(shown),
            "marked": [int(np.argmax(one)) for one in heat], "monosemanticity": None, "logit_effect": [],
            "ablation": Ablated(**dict(page.ablation) | {"logits": []}),
            "histogram": [counts[:4] for counts in page.histogram], "class_histogram": page.class_histogram[:4],
            "moved": Moved(added_up=moved[0], added_down=moved[1], ablated_up=moved[2], ablated_down=moved[3]),
        }  # fmt: skip
        pages.append(Latent(**dict(page) | values))
    found = {
        "images": [""] * len(contexts), "words": words, "contexts": contexts, "grid": None, "latents": pages,
        "class_names": (EVIL_WORDS[0], EVIL_WORDS[5], EVIL_WORDS[2], "other words"),
    }  # fmt: skip
    return Pages(**made.parts() | found)


def gallery_of(
    pages: Pages, target: str = "t", hook_point: str = "h", architecture: str = "topk", sparsity: float = 8.0,
    n_latents: int = 64,
) -> Gallery:  # fmt: skip
    return Gallery(
        target=target, hook_point=hook_point, architecture=architecture, sparsity=sparsity, n_latents=n_latents,
        seed=0, **pages.parts(),
    )  # fmt: skip


def gallery(target: str) -> Galleries:
    rng = np.random.default_rng(len(target))
    grid = (1, 17) if target == "digits_few_shot" else None
    return Galleries(
        target=target,
        dictionaries=[
            gallery_of(latents(rng, 14, n_latents, grid), target, hook, architecture, n_latents=n_latents)
            for name, hook, n_latents in HOOKS
            if name == target
            for architecture in ("standard", "topk", "batchtopk")
        ],
    )


def proxies() -> list[ProxyRow]:
    rng = np.random.default_rng(5)
    names = ("explained_variance", "l0", "loss_recovered", "monosemanticity", "probe_5_sparse", "class_purity")
    rows = []
    for name, value in zip(names, (0.44, -0.61, 0.3, 0.05, 0.72, None), strict=True):
        found = {}
        for kind, scale in (("spearman", 1.0), ("partial_l0", 0.6), ("partial_compute", 0.8)):
            of = None if value is None else value * scale + rng.normal(0, 0.02)
            found[kind] = Estimate.of(np.nan) if of is None else _metric(of, 0.2, round(float(rng.normal(0, 0.05)), 6))
        rows.append(ProxyRow(metric=name, n=36, n_groups=12, target="digits_mlp", **found))
    return rows


def fresh() -> list[FreshRow]:
    rows = [FreshRow(method="nothing", task="all", split="all", n_tasks=0, outcome="declined")]
    for method, gap, low, high in (("gradient", 0.01, -0.03, 0.05), ("memorises", 0.3, 0.21, 0.4)):
        for task in ("all", "noise_flip.digits_mlp"):
            rows.append(
                FreshRow(method=method, task=task, split="train", outcome="ok", old=0.5, fresh=0.5 - gap, gap=gap,
                         gap_low=low, gap_high=high, n_old=120, n_fresh=40)
            )  # fmt: skip
    return rows


def nulls() -> list[NullRow]:
    rows = [NullRow(method="nothing", split="train", task="all", outcome="declined")]
    for method, reward in (("gradient", 0.01), ("memorises", -0.02)):
        rows.append(
            NullRow(method=method, split="validation", task="all", outcome="ok", reward=reward,
                    reward_low=reward - 0.03, reward_high=reward + 0.03, noise_floor=0.01, n_tasks=3)
        )  # fmt: skip
    return rows


def circuits() -> list[CircuitRow]:
    return [
        CircuitRow(
            card=card, subject=card.partition("-")[0], ablation="zero", length=length, method=method, seeds=10,
            n_edges=94, truth_edges=11, truth_agrees=True, told_size=method != "acdc",
            exact_recovery=1.0 if method == "acdc" else 0.3, exact_before_polish=None, edge_auc=0.99, node_auc=0.98,
            precision_at_size=0.9, precision=0.9, recall=0.9, size=11.0, cpr=0.9, cmd=0.1, iou_of_seeds=0.8,
            forwards=1200.0, backwards=0.0 if method == "acdc" else 24.0,
        )
        for card, length in (("reverse-3-zero", 3), ("planted_mlp-zero", None))
        for method in ("acdc", "eap", "eap-ig")
    ]  # fmt: skip


def drawing(n_edges: int, known: bool = True) -> CircuitDrawing:
    """A two-layer transformer with four heads; as many of its edges as asked for, with scores."""
    rng = np.random.default_rng(7)
    nodes = [DrawnNode(name="embed", layer=0, slot=0), DrawnNode(name="pos", layer=0, slot=1)]
    for layer in (0, 1):
        nodes += [DrawnNode(name=f"a{layer}.{head}", layer=2 * layer + 1, slot=head) for head in range(4)]
        nodes.append(DrawnNode(name=f"m{layer}", layer=2 * layer + 2, slot=0))
    nodes.append(DrawnNode(name="out", layer=5, slot=0))
    every = [
        (source.name, f"{node.name}.{port}" if port else node.name)
        for node in nodes
        for source in nodes
        if source.layer < node.layer
        for port in (("q", "k", "v") if node.name.startswith("a") else ("",))
    ]
    edges = []
    for i in sorted(rng.choice(len(every), n_edges, replace=False).tolist()):
        truth, chosen = bool(rng.random() < 0.2), bool(rng.random() < 0.2)
        edges.append(
            DrawnEdge(
                source=every[i][0],
                reader=every[i][1],
                in_circuit=chosen or (truth and i % 3 > 0),
                in_truth=truth if known else None,
                score=round(float(rng.exponential(0.2) + truth) * (-1) ** i, 6),
            )
        )
    title = f"acdc on induction, {n_edges} edges"
    return CircuitDrawing(title=title, nodes=nodes, edges=edges, note="Threshold 0.01.")


def statements_of(tasks: list[TaskRow]) -> list[StatementRow]:
    """As stage ``reward`` makes them."""
    splits = {"validation": ["validation"], "train": ["train"], "train+validation": ["train", "validation"]}
    return [row for name, of in splits.items() for row in statements([one for one in tasks if one.split in of], name)]


def journal(summary: CampaignSummary, tasks: list[TaskRow]) -> list[Event]:
    """The journal of a campaign: from the third on each proposal is made from the two before it but one."""
    events: list[Event] = [Fingerprint(key="0"), Started(researcher=summary.researcher, seed=summary.seed)]
    train = [row for row in tasks if row.method == "pca" and row.split == "train"]
    for one in summary.iterations:
        parents = (one.iteration - 2, one.iteration - 3) if one.iteration > 2 else ()
        source = f"class Method{one.iteration}:\n    text = '<b>&'"
        facts = {"file": "method.py", "source": source}
        given = {"iteration": one.iteration, "name": one.name, "spec": facts, "choices": {}}
        diff = f"--- parent\n+++ child\n-class Method{one.iteration - 2}:\n+class Method{one.iteration}:"
        operator = "mutate" if parents else "draw"
        events.append(Proposed(**given, operator=operator, parents=parents, diff=diff if parents else ""))
        row = None
        if one.train_reward is not None:
            row = board(tasks, "train")[0].model_copy(update={"method": one.name, "reward_mean": one.train_reward})
        events.append(
            Result(
                **given, status=one.status, reason=one.reason, interpret_bytes=one.interpret_bytes, train=row,
                feedback=one.validation_reward, accepted=one.accepted, objective=one.train_reward,
                per_task=tuple(train) if row is not None else (),
            )
        )  # fmt: skip
    return events


def path_of(summary: CampaignSummary) -> tuple[PathRow, ...]:
    """Incumbents that lose more on the test the later they were chosen."""
    return tuple(
        PathRow(
            name=one.name, iteration=one.iteration, accepted=True, evaluations=one.iteration + 1,
            asked=one.iteration + 1, train=one.train_reward, train_low=one.train_reward - 0.01,
            train_high=one.train_reward + 0.01, validation=one.validation_reward, noise=0.01,
            shrinkage=0.005 * place, test=0.05 - 0.01 * place, test_low=0.03 - 0.01 * place,
            test_high=0.07 - 0.01 * place, status="ok",
        )
        for place, one in enumerate(one for one in summary.iterations if one.accepted)
    )  # fmt: skip


def comparison() -> Comparison:
    """Two researchers at two numbers of proposals."""
    numbers = {"of_optimum": 0.5, "better": 0.7, "validation": 0.1, "validation_better": 0.6}
    ends = {
        f"{name}_{end}": value + sign
        for name, value in numbers.items()
        for end, sign in (("low", -0.05), ("high", 0.05))
    }
    rows = tuple(
        CompareRow(
            researcher=who, n=n, seeds=5, train=0.1 + 0.01 * place, train_low=0.08, train_high=0.12 + 0.01 * place,
            random_train=0.09, gap=0.01, **numbers, **ends,
        )
        for who in ("programs", "random")
        for place, n in enumerate((8, 16))
    )  # fmt: skip
    points = tuple(
        ScalingPoint(n=n, cpu_s=0.5 * n, train=0.02 * n, train_low=0.01 * n, train_high=0.03 * n, fitted=0.02 * n)
        for n in (1, 2, 4)
    )
    return Comparison(
        budget=16, seeds=5, optimum_train=0.2, optimum_validation=0.25,
        null=(BestOfRow(n=8, mean=0.09, low=0.05, high=0.13), BestOfRow(n=16, mean=0.1, low=0.06, high=0.14)),
        rows=rows,
        profiles=tuple(
            ProfileRow(researcher=who, tau=tau, share=1 - tau, low=0.9 - tau, high=1.0)
            for who in ("programs", "random")
            for tau in (0.0, 0.1, 0.2)
        ),
        scaling=(
            ScalingRow(
                researcher="programs", exponent=0.4, exponent_low=0.3, exponent_high=0.5, factor=0.1, points=points
            ),
            ScalingRow(
                researcher="random", exponent=None, exponent_low=None, exponent_high=None, factor=None,
                points=tuple(point.model_copy(update={"fitted": None}) for point in points),
            ),
        ),
        tasks=(
            TabledRow(
                task="steering_effect.digits_mlp", split="train", kind="Steer", fragments=46, answered=40, beyond=3,
                median=0.002, best=0.12, best_low=0.1, best_high=0.14, fragment="Steer slopes roles=last",
            ),
            TabledRow(
                task="worst_input.digits_mlp", split="train", kind="Propose", fragments=9, answered=0, beyond=0,
                median=0.0, best=0.0, best_low=0.0, best_high=0.0, fragment="",
            ),
        ),
    )  # fmt: skip


def live() -> tuple[LiveRow, ...]:
    """Two researchers in campaigns of 16 proposals; random is nobody's rival."""
    ends = {"train_low": 0.0, "train_high": 0.1, "validation": 0.03, "validation_low": 0.0, "validation_high": 0.06}
    none = dict.fromkeys(("over_random", "over_random_low", "over_random_high"))
    over = {"over_random": 0.02, "over_random_low": -0.01, "over_random_high": 0.05}
    return tuple(
        LiveRow(researcher=who, n=n, seeds=3, train=0.04, scored=0.9, **ends, **(none if who == "random" else over))
        for who in ("programs", "random")
        for n in (8, 16)
    )


def labels() -> tuple[LabelsRow, ...]:
    """Two methods at three numbers of labels: the agent alone catches up."""
    rows = []
    for n in (10, 20, 80):
        for method, worth in (("gradient", 0.1), ("pca", 0.03)):
            values = {"reward": worth, "baseline": 0.3 + n / 400, "assisted": 0.3 + n / 400 + worth}
            ends = {
                f"{name}_{end}": at + s for name, at in values.items() for end, s in (("low", -0.02), ("high", 0.02))
            }
            rows.append(LabelsRow(method=method, split="validation", labels=n, n_tasks=4, n_seeds=3, **values, **ends))
    return tuple(rows)


def scenarios() -> tuple[ScenarioRow, ...]:
    """One that carries over to a sister, one that does not, and one that broke."""
    rows = []
    for method, size, carried in (("gradient", 12, 0.0), ("keeps_answers", 4_000_000, -0.09), ("breaks", 0, None)):
        worth = dict.fromkeys(ScenarioRow.ESTIMATES, None if carried is None else 0.1) | {"carried": carried}
        ends = {
            f"{name}_{end}": None if at is None else at + s
            for name, at in worth.items() for end, s in (("low", -0.02), ("high", 0.02))
        }  # fmt: skip
        numbers = {f"n_{name}": 3 for name in ("train", "validation", "new_kinds", "sealed", "sister")}
        rows.append(
            ScenarioRow(
                method=method, origin="built in" if size == 12 else "file", targets=("digits_mlp",), bytes=size,
                outcome="ok" if size else "failed", reason="" if size else "it broke", interpret_flops=None,
                answer_flops=None if carried is None else 2.5e6, answer_share=None if carried is None else 0.02,
                oracle_gain=0.6, **numbers, **worth, **ends,
            )
        )  # fmt: skip
    return tuple(rows)


def write_results(root: Path) -> None:
    """All result files of a run under ``root``."""
    rng = np.random.default_rng(0)
    tasks = per_task(rng)
    leaderboard = board(tasks, "validation")
    result = campaign()
    assert result.incumbent is not None
    test = [TestRow(**dict(row), opening=1, found=False) for row in board(tasks, "train", "test")]
    oracle = {"method": "oracle", "reward_mean": 0.62, "reward_low": 0.55, "reward_high": 0.7}
    found = {"method": result.incumbent.name, "reward_mean": 0.171, "reward_low": 0.13, "reward_high": 0.21}
    test = [test[0].model_copy(update=found | {"found": True}), test[0].model_copy(update=oracle), *test]
    test_tasks = [row.model_copy(update={"split": "test"}) for row in tasks if row.family == "noise_flip"]
    folder = root / "metrics"
    for file, value in (
        (LEADERBOARD, leaderboard), (TRAIN, board(tasks, "train")), (PER_TASK, tasks), (CONTROLS, controls()),
        (TEST, test), (TEST_PER_TASK, test_tasks), (DICTIONARIES, dictionaries(rng)), (PROXIES, proxies()),
        (CIRCUITS, circuits()), (FRESH, fresh()), (NULL, nulls()),
        (TEST_PATH, path_of(result)),
        (STATEMENTS, statements_of(tasks)), (TEST_STATEMENTS, statements(test_tasks, "test")),
    ):  # fmt: skip
        file.save(tuple(value), folder / f"{file.name}.json")
    SENSITIVITY.save(sensitivity(leaderboard), folder / "sensitivity.json")
    CAMPAIGN.save(result, folder / "campaign.json")
    COMPARISON.save(comparison(), folder / "compare.json")
    LIVE.save(live(), folder / "compare_live.json")
    LABELS.save(labels(), folder / "labels.json")
    SCENARIOS.save(scenarios(), folder / "scenarios.json")
    file = root / "data" / "research" / "campaign" / "events.jsonl"
    file.parent.mkdir(parents=True)
    lines = [json.dumps(event.facts() | {"event": event.event}) for event in journal(result, tasks)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for target in ("digits_few_shot", "digits_mlp"):
        GALLERY.save(gallery(target), root / "data" / "dictionaries" / target / "gallery.json")
    drawings = Drawings(circuits=[drawing(60), drawing(20, known=False)])
    DRAWINGS.save(drawings, root / "data" / "circuits" / "drawings.json")


@pytest.fixture
def results_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder with all result files; LENSMITH_ROOT points to it."""
    write_results(tmp_path)
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    return tmp_path
