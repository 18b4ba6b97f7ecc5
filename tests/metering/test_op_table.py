"""Prices against FLOPs counted by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.metering import OpTable, UnknownOpError, count_flops


def flops_of(function) -> int:
    with count_flops() as count:
        function()
    return count.flops


A, B, C = torch.randn(5, 7), torch.randn(7, 3), torch.randn(4, 5, 7)


@pytest.mark.parametrize(
    ("compute", "by_hand"),
    [
        (lambda: A @ B, 2 * 5 * 7 * 3),
        (lambda: F.linear(A, B.T.contiguous(), torch.randn(3)), 2 * 5 * 7 * 3 + 5 * 3),
        (lambda: torch.bmm(C, C.transpose(1, 2)), 2 * 4 * 5 * 5 * 7),
        (lambda: torch.einsum("bij,jk->bik", C, B), 2 * 4 * 5 * 7 * 3),
        (lambda: torch.mv(A, torch.randn(7)), 2 * 5 * 7),
        (lambda: torch.dot(torch.randn(9), torch.randn(9)), 2 * 9),
        (lambda: A + A, 35),
        (lambda: (A.unsqueeze(-1) * B).sum(1), 5 * 7 * 3 * 2),  # a matrix product in disguise costs the same
        (lambda: A.relu(), 35),
        (lambda: A.softmax(-1), 5 * 35),
        (lambda: A.log_softmax(-1), 5 * 35),
        (lambda: F.layer_norm(A, (7,)), 8 * 35),
        (lambda: A.sum(), 35),
        (lambda: A.sort(), 35 * 3),
        (lambda: A.T.contiguous().reshape(-1)[3:], 0),
        (lambda: A > 0, 0),
        (lambda: F.conv2d(torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)), 2 * 2 * 4 * 6 * 6 * 3 * 9),
        # Attention on the CPU: library counters say 0.
        (
            lambda: F.scaled_dot_product_attention(*(torch.randn(2, 4, 6, 8) for _ in range(3))),
            2 * (2 * 4 * 6 * 6) * (8 + 8) + 6 * 2 * 4 * 6 * 6,
        ),
    ],
)
def test_price_equals_hand_count(compute, by_hand):
    assert flops_of(compute) == by_hand


def test_backward_of_a_linear_layer_costs_twice_its_forward():
    layer, x = nn.Linear(7, 3, bias=False), torch.randn(5, 7, requires_grad=True)
    forward = flops_of(lambda: layer(x))
    with count_flops() as count:
        layer(x).backward(torch.ones(5, 3))
    assert forward == 2 * 5 * 7 * 3
    assert count.flops == 3 * forward


def test_unknown_op_raises_and_names_the_op():
    with pytest.raises(UnknownOpError, match="_cdist_forward"), count_flops():
        torch.cdist(A, A)


def test_op_of_another_library_raises():
    @torch.library.custom_op("lensmith_test::smuggle", mutates_args=())
    def smuggle(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    with pytest.raises(UnknownOpError, match="smuggle"), count_flops():
        smuggle(torch.randn(3, 3))


def test_a_mispriced_table_is_noticed():
    """Wrong on purpose: a table that gives matrix products away must disagree with the hand count."""
    cheap = OpTable().extended({"mm": lambda args, out: 0})
    with count_flops(cheap) as count:
        A @ B
    assert count.flops != 2 * 5 * 7 * 3
