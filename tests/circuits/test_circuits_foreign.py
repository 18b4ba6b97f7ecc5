"""Modules, data and metrics of somebody else: they work, or one line says what is wrong and what to do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.circuits.algorithms.methods import METHODS, Settings
from stages.circuits.discovery import Subject, discover, load_subject
from stages.circuits.engine.graph import Graph, Node
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import mse
from stages.circuits.engine.transformers import PlainTransformer
from stages.errors import UserError
from tests.circuits.conftest import filled
from tests.circuits.foreign import Foreign, inputs

FEW = Settings(steps=20, tolerance=0.05)


def told(subject: Subject, method: str = "acdc", **options: object) -> str:
    with pytest.raises(UserError) as error:
        discover(subject, method, ablation="mean", settings=FEW, **options)  # type: ignore[arg-type]
    return str(error.value)


# ---- C3: an axis of length one is an axis ----


@pytest.mark.parametrize("sizes", [(3, 4, 1), (3, 1, 2), (1, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("method", ["edge-sp", "acdc", "eap-ig"])
def test_layers_of_one_unit_are_layers(sizes: tuple[int, int, int], method: str) -> None:
    module, x = Foreign(sizes=sizes), inputs(width=sizes[0])
    found = discover(Subject(module, x, metric="mse"), method, ablation="zero", settings=FEW)
    assert found["n_edges"] == sizes[0] * sizes[1] + sizes[1] * sizes[2]
    assert ("h.0", "out.0") in {(edge["source"], edge["reader"]) for edge in found["edges"]}
    engine = MaskedForward(module, module.circuit(), x, ablation="zero")
    cut = engine.ones()
    cut[engine.layout.index[engine.layout.edges[-1]]] = 0.0  # the last unit of h into the last output
    post = torch.relu(module.a(x))
    wanted = module(x).clone()
    wanted[:, -1] -= post[:, -1] * module.b.weight[-1, -1]
    torch.testing.assert_close(engine(cut)[0], wanted)


class Positions(Foreign):
    """The same at every position."""

    def circuit(self) -> Graph:
        return Graph(
            Node("x", writes="hook_in", axis=2),
            Node("h", "hook_post", "hook_pre", axis=2, parents=["x"], through="a"),
            Node("out", reads="hook_out", parents=["h"], through="b"),
        )


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
def test_one_position_is_a_position(length: int, width: int) -> None:
    module, x = Positions(sizes=(width, 4, 2)), inputs(40 * length, width).view(40, length, width)
    engine = MaskedForward(module, module.circuit(), x, ablation="zero")
    torch.testing.assert_close(engine(engine.ones())[0], module(x))
    cut = engine.ones()
    cut[engine.layout.index[engine.layout.edges[0]]] = 0.0  # x.0 -> h.0
    pre = module.a(x)
    pre[..., 0] -= x[..., 0] * module.a.weight[0, 0]
    torch.testing.assert_close(engine(cut)[0], module.b(torch.relu(pre)))


def test_the_mean_over_positions_is_one_for_units_along_the_last_axis() -> None:
    module, x = Positions(), inputs(80).view(20, 4, 3)
    engine = MaskedForward(module, module.circuit(), x, ablation="mean-all")
    post = torch.relu(module.a(x))
    out = engine(torch.tensor([float(edge.source.startswith("x")) for edge in engine.layout.edges]))[0]
    torch.testing.assert_close(out, module.b(post.mean((0, 1))).expand_as(out))


def test_a_convolution_with_one_channel_is_one() -> None:
    class Images(Foreign):
        def __init__(self) -> None:
            super().__init__(sizes=(3, 4, 2))
            self.a, self.b = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)  # type: ignore[assignment]

    module, x = Images().eval(), inputs(10, 49).view(10, 1, 7, 7)
    engine = MaskedForward(module, module.circuit(), x, ablation="zero")
    assert engine.layout.edges == (("x.0", "h.0"), ("h.0", "out.0"))
    torch.testing.assert_close(engine(engine.ones())[0], module(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        engine(torch.tensor([1.0, 0.0]))[0], module.b.bias.view(1, 1, 1, 1).expand(10, 1, 3, 3), rtol=1e-4, atol=1e-5
    )


def test_metrics_that_compare_outputs_need_two() -> None:
    for metric in ("kl", "answer"):
        assert "one output: use --metric mse" in told(Subject(Foreign(sizes=(3, 4, 1)), inputs(), metric=metric))
    assert "out.unsqueeze(-1)" in told(Subject(Foreign("flat", (3, 4, 1)), inputs(), metric="mse"))
    assert "return float outputs" in told(Subject(Foreign("answers"), inputs()))


# ---- C5: dtype and device ----


@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_float64_works_as_float32_does(method: str, ablation: str) -> None:
    settings = Settings(steps=20, tolerance=0.2)
    single, double = (
        discover(Subject(module, x, metric="mse"), method, ablation=ablation, settings=settings, seeds=2)
        for module, x in ((Foreign(), inputs()), (Foreign().double(), inputs().double()))
    )
    assert double["metrics"]["loss_of_empty_circuit"] == pytest.approx(
        single["metrics"]["loss_of_empty_circuit"], rel=1e-4
    )
    ours, theirs = (
        {(edge["source"], edge["reader"]): edge["score"] for edge in one["edges"]} for one in (single, double)
    )
    if method != "edge-sp":  # which learns, and rounding may tip a gate
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_with_the_remedy(dtype: torch.dtype) -> None:
    said = told(Subject(Foreign().to(dtype), inputs().to(dtype)))
    assert str(dtype).removeprefix("torch.") in said and "call module.float()" in said
    assert "give clean.float()" in told(Subject(Foreign(), inputs().to(dtype)))


def test_modules_of_ours_fail_like_anyones_and_empty_outputs_are_told() -> None:
    module = filled(PlainTransformer(1, 1, 6, 3, 8, 5, 4, 3))
    assert "fails on inputs (4, 4) with IndexError" in told(Subject(module, torch.full((4, 4), 9), metric="mse"))
    assert "outputs are empty, (4, 0, 3)" in told(Subject(module, torch.ones(4, 1, dtype=torch.long), metric="mse"))


def test_inputs_and_weights_of_two_dtypes_are_told() -> None:
    assert "give clean.to(torch.float64)" in told(Subject(Foreign().double(), inputs()))
    assert "give clean.to(torch.float32)" in told(Subject(Foreign(), inputs().double()))


def test_another_device_is_told() -> None:
    assert "on meta: circuits are searched on the CPU" in told(Subject(Foreign().to("meta"), inputs()))
    assert "the inputs are on meta" in told(Subject(Foreign(), inputs().to("meta")))


# ---- C6, C9: a function of its inputs ----


@pytest.mark.parametrize("kind", ["dropout", "state"])
def test_a_module_that_is_no_function_of_its_inputs_is_told_as_such(kind: str) -> None:
    said = told(Subject(Foreign(kind), inputs()))
    assert "other values on the same inputs" in said and "F.dropout" in said and "undeclared" not in said


def test_inputs_that_depend_on_each_other_are_told() -> None:
    assert "depends on the other inputs of its batch" in told(Subject(Foreign("batch"), inputs()))


def test_a_part_in_training_mode_is_told() -> None:
    module = Foreign()
    module.drop = nn.Dropout(0.5)  # type: ignore[assignment]
    module.eval()
    module.drop.train()
    assert "training mode (drop)" in told(Subject(module, inputs()))


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_code_in_place_right_after_a_hook_point_changes_nothing(ablation: str) -> None:
    x, found = inputs(), []
    for kind in ("plain", "relu in place"):
        module = Foreign(kind)
        generator = torch.Generator().manual_seed(0)
        engine = MaskedForward(module, module.circuit(), x, ablation=ablation, generator=generator)  # type: ignore[arg-type]
        masks = torch.rand(3, engine.n_edges, generator=generator).requires_grad_(True)
        loss = mse(engine(masks), engine.clean_outputs).sum()
        found.append((loss.detach(), torch.autograd.grad(loss, masks)[0], engine.evaluate(masks.detach())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_changed_in_place_is_named() -> None:
    assert "'hook_post' is changed in place after its hook point" in told(Subject(Foreign("changed after"), inputs()))
    x = inputs()
    before = x.clone()
    assert "changes its inputs in place" in told(Subject(Foreign("in place on inputs"), x))
    assert torch.equal(x, before), "the user's own data stay as they are"


def test_a_module_that_raises_under_masks_is_told_with_its_line() -> None:
    said = told(Subject(Foreign("raises"), inputs(), metric="mse"))
    assert "KeyError" in said and "foreign.py:" in said and 'raise KeyError("too many at once")' in said
    assert "fails on inputs (" in said


# ---- C10: a metric of one's own ----


def single_number(outputs: Tensor, clean: Tensor) -> float:
    return float((outputs - clean).square().mean())


def single_tensor(outputs: Tensor, clean: Tensor) -> Tensor:
    return (outputs - clean).square().mean()


def per_output(outputs: Tensor, clean: Tensor) -> Tensor:
    return (outputs - clean).square()


def as_numpy(outputs: Tensor, clean: Tensor) -> np.ndarray:
    return (outputs - clean).square().mean(-1).detach().numpy()


def nothing(outputs: Tensor, clean: Tensor) -> None:
    return None


@pytest.mark.parametrize("method", ["acdc", "edge-sp", "eap", "eap-ig", "hisp", "random"])
@pytest.mark.parametrize(
    ("metric", "what"),
    [
        (single_number, "returned float"), (single_tensor, "shape ()"), (per_output, "40, 2)"),
        (as_numpy, "numpy.ndarray"), (nothing, "nothing"),
    ],
)  # fmt: skip
def test_what_a_metric_returns_is_looked_at(metric: object, what: str, method: str) -> None:
    said = told(Subject(Foreign(), inputs(), metric=metric), method)  # type: ignore[arg-type]
    assert metric.__name__ in said and what in said.replace("a float", "float")  # type: ignore[attr-defined]
    assert "one loss per mask and input" in said


def test_a_metric_that_raises_is_told_with_its_line() -> None:
    def broken(outputs: Tensor, clean: Tensor) -> Tensor:
        return outputs @ clean[:, :1, None, None]  # of a wrong shape

    said = told(Subject(Foreign(), inputs(), metric=broken))
    assert "test_circuits_foreign.py:" in said and "`return outputs @ clean[:, :1, None, None]" in said


def test_a_metric_without_a_gradient_is_for_methods_without() -> None:
    def detached(outputs: Tensor, clean: Tensor) -> Tensor:
        return (outputs - clean).square().mean(-1).detach()

    assert discover(Subject(Foreign(), inputs(), metric=detached), "acdc", ablation="zero")["per_seed"][0]["size"] > 0
    assert "no gradient" in told(Subject(Foreign(), inputs(), metric=detached), "edge-sp")


def test_a_gradient_that_is_not_finite_is_told() -> None:
    def rooted(outputs: Tensor, clean: Tensor) -> Tensor:
        return (outputs - clean).square().sum(-1) + 0.0 * (0.0 * outputs).abs().sum(-1).sqrt()

    for method in ("edge-sp", "eap", "eap-ig"):
        assert "finite" in (said := told(Subject(Foreign(), inputs(), metric=rooted), method)) and "gradient" in said
    assert discover(Subject(Foreign(), inputs(), metric=rooted), "acdc", ablation="zero")["circuit"] is not None


def test_a_result_that_is_not_finite_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.circuits.discovery.divergence", lambda *_: float("inf"))
    assert "came out not finite" in told(Subject(Foreign(), inputs(), metric="mse"))


def test_a_score_is_no_loss() -> None:
    def score(outputs: Tensor, clean: Tensor) -> Tensor:
        return outputs[..., 0] + 10.0

    assert "must be 0 there" in told(Subject(Foreign(), inputs(), metric=score))
    assert "metric is 3" in told(Subject(Foreign(), inputs(), metric=3))  # type: ignore[arg-type]


# ---- C13: degenerate data ----


def dead() -> Foreign:
    module = Foreign()
    module.a.weight.data.zero_()
    module.a.bias.data.fill_(-1.0)
    return module


@pytest.mark.parametrize("ablation", ["mean", "zero", "resample"])
@pytest.mark.parametrize("method", list(METHODS))
def test_a_dead_layer_is_named_in_every_method(method: str, ablation: str) -> None:
    with pytest.raises(UserError, match=r"nothing to find: h \(all 4 units\).*dead .*mend its weights"):
        discover(Subject(dead(), inputs()), method, ablation=ablation)


@pytest.mark.parametrize("method", list(METHODS))
def test_constant_inputs_are_named_in_every_method(method: str) -> None:
    subject = Subject(Foreign(), inputs(1).repeat(40, 1))
    with pytest.raises(UserError, match=r"nothing to find: x \(all 3 units\), h.*vary the inputs.*--ablation zero"):
        discover(subject, method, ablation="mean")


def test_counterfactuals_that_change_nothing_are_told() -> None:
    x = inputs()
    with pytest.raises(UserError, match=r"x \(all 3 units\).*same in clean and counterfactual.*give counterfactual"):
        discover(Subject(Foreign(), x, counterfactual=x), "acdc", ablation="interchange")


def test_a_sample_too_small_to_vary_says_which_option() -> None:
    with pytest.raises(UserError, match=r"on the 1 inputs of a seed.*raise --batch"):
        discover(Subject(Foreign(), inputs()), "acdc", ablation="mean", batch=1)


# ---- C15: an outlier is neither triviality nor a failure of the search ----


def with_outlier(size: float) -> Tensor:
    x = inputs()
    x[17] = size
    return x


def test_an_outlier_is_named_and_nothing_else_is_blamed() -> None:
    for method in ("acdc", "edge-sp"):
        for ablation in ("mean", "zero"):
            found = discover(
                Subject(Foreign(), with_outlier(1e20), metric="kl"), method, ablation=ablation, settings=FEW
            )
            assert any("input 17 is an outlier" in said for said in found["validity"]), (method, ablation)
            assert not any("already correct" in said for said in found["validity"])
    assert "(input 17 has outputs" in told(Subject(Foreign(), with_outlier(1e20), metric="kl"), "eap")
    assert "not finite" in (said := told(Subject(Foreign(), with_outlier(1e20), metric="mse"))) and "input 17" in said
    usual = discover(Subject(Foreign(), inputs(), metric="kl"), "acdc", ablation="zero", settings=FEW)
    assert not any("outlier" in said for said in usual["validity"])


def test_values_that_are_not_finite_name_the_input() -> None:
    x = inputs()
    x[5, 0] = float("nan")
    assert "(first: input 5)" in told(Subject(Foreign(), x))


# ---- C16: what build returns ----


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("{'module': M(), 'clean': inputs().numpy()}", r"clean is numpy.ndarray: give torch.from_numpy\(clean\)"),
        ("{'module': M(), 'clean': {'x': inputs()}}", "clean is dict: it has the keys x"),
        ("{'module': M(), 'clean': [inputs()]}", r"clean is list: give torch.stack"),
        ("{'module': M(), 'clean': [[1.0, 2.0]]}", r"clean is list: .*torch.tensor\(clean\)"),
        ("{'module': M(), 'clean': inputs()[:0]}", "at least one input"),
        ("{'module': M, 'clean': inputs()}", "module is the class Foreign"),
        ("{'module': M(), 'clean': inputs(), 'counterfactual': inputs().numpy()}", "counterfactual is numpy.ndarray"),
        ("{'module': M(), 'clean': inputs(), 'metrics': 'kl'}", "with unknown metrics"),
        ("{'module': M(), 'clean': inputs(), 'metric': 'l7'}", "metric is 'l7'"),
        ("{'modul': M(), 'clean': inputs()}", "without module and with unknown modul"),
        ("(M(), inputs())", "returns tuple: return a dict"),
        ("None", r"returns None \(no return\)"),
    ],
)
def test_what_build_returns_is_named_as_the_user_gave_it(tmp_path: Path, made: str, said: str) -> None:
    head = "from tests.circuits.foreign import Foreign as M, inputs\n"
    (tmp_path / "mine.py").write_text(f"{head}def build():\n    return {made}\n")
    with pytest.raises(UserError, match=said):
        load_subject(f"{tmp_path / 'mine.py'}:build")


@pytest.mark.parametrize(
    ("code", "place", "text"),
    [
        ("def build():\n    data = {}\n    return data['x']\n", "mine.py:3", "`return data['x']`"),
        ("import torch\ndef build():\n    return torch.ones(2) @ torch.ones(3)\n", "mine.py:3", "torch.ones(2) @"),
        ("x = 1\ny = 1 +\n", "mine.py:2", "`y = 1 +`"),
        ("def build():\n    exit(3)\n", "mine.py:2", "SystemExit"),
        ("import no_such_module_here\n", "mine.py:1", "ModuleNotFoundError"),
    ],
)
def test_code_of_the_user_that_raises_is_told_with_file_line_and_text(
    tmp_path: Path, code: str, place: str, text: str
) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UserError) as error:
        load_subject(f"{tmp_path / 'mine.py'}:build")
    assert place in str(error.value) and text in str(error.value) and "fault of ours" not in str(error.value)


def test_a_fault_in_our_own_hooks_stays_ours() -> None:
    module = Foreign()
    engine = MaskedForward(module, module.circuit(), inputs(), ablation="zero")
    engine._readers["hook_out"].base = None  # type: ignore[assignment]
    with pytest.raises(TypeError, match="NoneType"):
        engine(engine.ones())
