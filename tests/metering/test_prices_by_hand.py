"""Every rule of the price table against a count by hand, on sizes of which no two are the same."""

import math

import pytest
import torch

from stages.metering.op_table import OpTable, count_flops
from stages.metering.prices import RULES

A = torch.ops.aten
TABLE = OpTable()


def price(op, *args, out=None, **named) -> int:
    """What the table asks for one call; the op runs where no result is given."""
    out = op(*args, **named) if out is None else out
    return TABLE.price(op)(args, named, out)


def ones(*shape, dtype=torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


X = torch.linspace(-1, 1, 70).view(2, 5, 7)
SPD = (torch.eye(6) * 3 + 1).expand(3, 6, 6).contiguous()
TALL, WIDE = torch.linspace(0, 1, 108).view(3, 9, 4).sin(), torch.linspace(0, 1, 108).view(3, 4, 9).sin()
PLACES = torch.tensor([0, 2, 1, 0])
LU, PIVOTS = torch.linalg.lu_factor(SPD)
DECOMPOSED = [
    (lambda: price(A._cdist_backward.default, ones(5, 4), ones(5, 7), ones(4, 7), 2.0, ones(5, 4)), 6 * 20 * 7),
    (lambda: price(A._cdist_forward.default, ones(5, 7), ones(4, 7), 2.0, None), 3 * 20 * 7),
    (lambda: price(A._euclidean_dist.default, ones(5, 7), ones(4, 7)), 3 * 20 * 7),
    (lambda: price(A._pdist_forward.default, X[0], 2.0), 3 * 10 * 7),
    (lambda: price(A._linalg_eigvals.default, SPD), 3 * 10 * 216),
    (lambda: price(A._linalg_slogdet.default, SPD), 3 * 144),
    (lambda: price(A._linalg_det.default, SPD), 3 * 144),
    (lambda: price(A._linalg_eigh.default, SPD, "L", False), 3 * 288),
    (lambda: price(A._linalg_eigh.default, SPD, "L", True), 3 * 9 * 216),
    (lambda: price(A._linalg_eigh.default, SPD), 3 * 9 * 216),
    (lambda: price(A._linalg_svd.default, TALL, False, True), 3 * (6 * 9 * 16 + 20 * 64)),
    (lambda: price(A._linalg_svd.default, WIDE, False, True), 3 * (6 * 9 * 16 + 20 * 64)),
    (lambda: price(A._linalg_svd.default, TALL, False, False), 3 * (2 * 9 * 16 + 2 * 64)),
    (lambda: price(A.linalg_pinv.atol_rtol_float, TALL), 3 * (8 * 9 * 16 + 20 * 64)),
    (lambda: price(A.linalg_qr.default, TALL), round(3 * (4 * 9 * 16 - 4 / 3 * 64))),
    (lambda: price(A.linalg_eig.default, SPD), 3 * 25 * 216),
    (lambda: price(A.linalg_inv_ex.default, SPD), 3 * 2 * 216),
    (lambda: price(A.linalg_cholesky_ex.default, SPD), 3 * 72),
    (lambda: price(A.cholesky_inverse.default, SPD), 3 * 144),
    (lambda: price(A.linalg_lu.default, SPD), 3 * 144),
    (lambda: price(A.linalg_lu_factor_ex.default, SPD), 3 * 144),
    (lambda: price(A.linalg_matrix_exp.default, SPD), 3 * 24 * 216),
    # Right sides: two columns each; one vector each; two columns for all three; three matrices of one column for one.
    (lambda: price(A._linalg_solve_ex.default, SPD, ones(3, 6, 2)), 3 * (144 + 2 * 36 * 2)),
    (lambda: price(A._linalg_solve_ex.default, SPD, ones(3, 6)), 3 * (144 + 2 * 36)),
    (lambda: price(A._linalg_solve_ex.default, SPD, ones(6, 2)), 3 * (144 + 2 * 36 * 2)),
    (lambda: price(A.linalg_lu_solve.default, LU, PIVOTS, ones(3, 6, 2)), 3 * 2 * 36 * 2),
    (lambda: price(A.linalg_lu_solve.default, LU, PIVOTS, ones(6, 50)), 3 * 2 * 36 * 50),
    (lambda: price(A.linalg_lu_solve.default, LU, PIVOTS, ones(3, 2, 6), left=False), 3 * 2 * 36 * 2),
    (lambda: price(A.linalg_solve_triangular.default, SPD, ones(3, 6, 2), upper=True), 3 * 36 * 2),
    (lambda: price(A.linalg_solve_triangular.default, SPD, ones(6, 50), upper=True), 3 * 36 * 50),
    (lambda: price(A.linalg_solve_triangular.default, SPD[0], ones(3, 6, 1), upper=True), 3 * 36),
    (lambda: price(A.cholesky_solve.default, ones(3, 6, 2), SPD), 3 * 2 * 36 * 2),
    (lambda: price(A.cholesky_solve.default, ones(6, 50), SPD), 3 * 2 * 36 * 50),
    (
        lambda: price(A.linalg_lstsq.default, TALL, ones(3, 9, 2)),
        round(3 * (2 * 9 * 16 - 2 / 3 * 64)) + 3 * 4 * 9 * 4 * 2,
    ),
    # 5 N log2 N for each of the transforms, 2.5 where one side is real.
    (lambda: price(A._fft_c2c.default, ones(3, 16, dtype=torch.complex64), [1], 0, True), 5 * 48 * 4),
    (lambda: price(A._fft_c2c.default, ones(3, 8, 4, dtype=torch.complex64), [1, 2], 0, True), 5 * 96 * 5),
    (lambda: price(A._fft_c2c.default, ones(3, 16, dtype=torch.complex64), [], 0, True), 5 * 48),
    (lambda: price(A._fft_r2c.default, ones(3, 16), [1], 0, True), 2.5 * 48 * 4),
    (lambda: price(A._fft_r2c.default, ones(3, 16), [1], 0, False), 2.5 * 48 * 4),
    (lambda: price(A._fft_c2r.default, ones(3, 9, dtype=torch.complex64), [1], 0, 16), 2.5 * 48 * 4),
    (lambda: price(A._fft_c2r.default, ones(3, 3, dtype=torch.complex64), [1], 0, 4), 2.5 * 12 * 2),
    # 4 stored values times 7 columns, added to 5 x 7.
    (lambda: price(A._sparse_addmm.default, ones(5, 7), torch.eye(5, 4).to_sparse(), ones(4, 7)), 2 * 4 * 7 + 35),
    (lambda: price(A.addmm.default, ones(5, 7), torch.eye(5, 4).to_sparse(), ones(4, 7)), 2 * 4 * 7 + 35),
    (lambda: price(A.addmm.default, ones(5, 7), torch.eye(5, 4).to_sparse_csr(), ones(4, 7)), 2 * 4 * 7 + 35),
    (lambda: price(A.addmv.default, ones(5), torch.eye(5, 4).to_sparse(), ones(4), out=ones(5)), 2 * 4 + 5),
    (lambda: price(A.mm.default, torch.eye(5, 4).to_sparse(), ones(4, 7)), 2 * 4 * 7),
    # Two values stored for one place count as two.
    (lambda: price(A.mm.default, torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 1.0], (5, 4)), ones(4, 7)), 2 * 2 * 7),
    (lambda: price(A.mv.default, torch.eye(5, 4).to_sparse(), ones(4), out=ones(5)), 2 * 4),
    # 5 stored by 12 stored in 6 rows: two per row at most.
    (
        lambda: price(
            A._sparse_sparse_matmul.default, torch.eye(5, 6).to_sparse(), torch.eye(6).repeat(1, 2).to_sparse()
        ),
        2 * 5 * 2,
    ),
    (
        lambda: price(A._sparse_sparse_matmul.default, torch.eye(5, 6).to_sparse(), torch.eye(6, 9)[:, :1].to_sparse()),
        2 * 5 * 1,
    ),
    (lambda: price(A._trilinear.default, ones(3, 4), ones(5, 4), ones(3, 5), [1], [0], [2], [2], out=ones(3)), 3 * 60),
    (lambda: price(A.convolution.default, ones(2, 3, 8, 8), ones(4, 3, 3, 3), None, *CONV), 2 * 2 * 36 * 4 * 27),
    (
        lambda: price(A.convolution.default, ones(2, 3, 8, 8), ones(4, 3, 3, 3), ones(4), *CONV),
        2 * 2 * 36 * 4 * 27 + 2 * 4 * 36,
    ),
    (
        lambda: price(A.convolution.default, ones(2, 3, 5, 5), ones(3, 4, 3, 3), None, *CONV[:3], True, [0, 0], 1),
        2 * 2 * 25 * 3 * 4 * 9,
    ),
    (
        lambda: price(
            *(A.convolution_backward.default, ones(2, 4, 6, 6), ones(2, 3, 8, 8), ones(4, 3, 3, 3)),
            *([4], *CONV[:3], False, [0, 0], 1, [True, False, True]),
        ),
        2 * 2 * 36 * 4 * 27 + 2 * 4 * 36,
    ),
    (
        lambda: price(
            *(A.convolution_backward.default, ones(2, 4, 6, 6), ones(2, 3, 8, 8), ones(4, 3, 3, 3)),
            *([4], *CONV[:3], False, [0, 0], 1, [True, True, False]),
        ),
        2 * (2 * 2 * 36 * 4 * 27),
    ),
    (lambda: attention(), 2 * (2 * 4 * 6 * 5) * (8 + 8) + 6 * 2 * 4 * 6 * 5),
    (lambda: attention_backward(), 2 * (2 * 4 * 6 * 5) * (3 * 8 + 2 * 9) + 10 * 2 * 4 * 6 * 5),
    # An LSTM layer of 4 inputs and 3 hidden units, over 5 steps of 2.
    (
        lambda: price(A.mkldnn_rnn_layer.default, ones(5, 2, 4), ones(12, 4), ones(12, 3), *LSTM, out=ones(1)),
        10 * (2 * 84 + 2 * 12 + 9 * 3),
    ),
    (
        lambda: price(A.mkldnn_rnn_layer_backward.default, ones(5, 2, 4), ones(12, 4), ones(12, 3), out=ones(1)),
        10 * (4 * 84 + 20 * 3),
    ),
]
CONV = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
LSTM = (ones(12), ones(12), ones(1), ones(1), False, [], 2, 3, 1, True, False, False, True)


def attention():
    query, key = ones(2, 4, 6, 8), ones(2, 4, 5, 8)
    return price(A._scaled_dot_product_flash_attention_for_cpu.default, query, key, key)


def attention_backward():
    query, key, value = ones(2, 4, 6, 8), ones(2, 4, 5, 8), ones(2, 4, 5, 9)
    op = A._scaled_dot_product_flash_attention_for_cpu_backward.default
    return price(op, ones(2, 4, 6, 9), query, key, value, out=(query, key, value))


PRICED = [
    # 1 per element: whatever is drawn, compared, looked up, computed or summed.
    (lambda: price(A.rand.default, [3, 4]), 12),
    (lambda: price(A.native_dropout.default, X, 0.5, True), 70),
    (lambda: price(A.gt.Scalar, X, 0.0), 70),
    (lambda: price(A.one_hot.default, PLACES, 3), 4 * 3 * 2),  # its result is of 8 bytes
    (lambda: price(A.gather.default, X[0], 1, ones(5, 3, dtype=torch.int64)), 15),
    (lambda: price(A.embedding.default, X[0], PLACES), 28),
    (lambda: price(A.add.Tensor, X, X), 70),
    (lambda: price(A.cummax.default, X, 1), 70),
    (lambda: price(A.sum.default, X), 70),
    (lambda: price(A.max.dim, X, 1), 70),
    (lambda: price(A.norm.ScalarOpt_dim, X, 2, [1]), 70),
    (lambda: price(A._foreach_add.List, [X, X[0]], [X, X[0]]), 105),
    (lambda: price(A._foreach_neg.default, [X, X[0]]), 105),
    (lambda: price(A.nll_loss_forward.default, X[0], torch.zeros(5, dtype=torch.int64), None, 1, -100), 35),
    (lambda: price(A.nll_loss_backward.default, *[ones(1)] * 2, PLACES, None, 1, 0, ones(1), out=X[0]), 35),
    # Placing and adding into places: per element of the source or the index, however small the rest.
    (lambda: price(A.scatter.value, ones(2, 5), 1, ones(2, 3, dtype=torch.int64), 1.0), 6),
    (lambda: price(A.scatter.src, ones(2, 5), 1, ones(2, 3, dtype=torch.int64), ones(2, 4)), 8),
    (lambda: price(A.scatter.reduce, ones(2, 5), 1, ones(2, 3, dtype=torch.int64), ones(2, 3), reduce="add"), 12),
    (lambda: price(A.scatter.value_reduce, ones(2, 5), 1, ones(2, 3, dtype=torch.int64), 2.0, reduce="add"), 12),
    (lambda: price(A.index_copy.default, ones(3, 5), 0, PLACES[:2], ones(2, 5)), 10),
    (lambda: price(A.index_fill.int_Scalar, ones(3, 5), 0, PLACES, 1.0), 4 * 5),
    (lambda: price(A.index_fill.int_Scalar, ones(3, 5), 1, PLACES, 1.0), 4 * 3),
    (lambda: price(A.index_fill.int_Scalar, torch.ones(()), 0, PLACES[:1], 1.0), 1),
    (lambda: price(A.index_add.default, ones(3, 5), 0, PLACES, ones(4, 5)), 20),
    (lambda: price(A.scatter_add.default, ones(3, 5), 0, ones(2, 5, dtype=torch.int64), ones(2, 5)), 10),
    (lambda: price(A.put.default, ones(3, 5), PLACES, ones(4)), 4),
    (lambda: price(A.scatter_reduce.two, ones(5), 0, PLACES, ones(4), "mean"), 12),
    (lambda: price(A.index_reduce.default, ones(3, 5), 0, PLACES, ones(4, 5), "mean"), 60),
    (lambda: price(A.index_put.default, ones(3, 4, 5), [None, PLACES], ones(5)), 4 * 3 * 5),
    (lambda: price(A.index_put.default, ones(3, 4), [ones(3, 4, dtype=torch.bool)], ones(12)), 12),
    (lambda: price(A.index_put.default, ones(3, 4, 5), [ones(3, 4, dtype=torch.bool)], ones(12, 5)), 60),
    (lambda: price(A.index_put.default, ones(3, 4, 5), [ones(3, dtype=torch.bool)], ones(1)), 3 * 20),
    (lambda: price(A.index_put.default, ones(3, 4), [PLACES[:, None], PLACES[:2]], ones(1)), 8),
    (lambda: price(A.index_put.default, ones(3, 4, 5), [ones(3, dtype=torch.bool), None, PLACES], ones(1), out=X), 16),
    (lambda: price(A.embedding_dense_backward.default, ones(4, 7), PLACES, 3, -1, False), 28),
    # To another dtype it is a function of each value; 8 bytes cost twice.
    (lambda: price(A._to_copy.default, X, dtype=torch.float32), 0),
    (lambda: price(A._to_copy.default, X, dtype=torch.float16), 70),
    (lambda: price(A._to_copy.default, X, dtype=torch.float64), 140),
    (lambda: price(A.copy_.default, ones(7), ones(7, dtype=torch.float16)), 7),
    (lambda: price(A.copy_.default, ones(7), ones(7)), 0),
    (lambda: price(A.add.Tensor, X.double(), X.double()), 140),
    (lambda: price(A.argmax.default, X), 70),
    (lambda: price(A.mm.default, ones(3, 4).double(), ones(4, 5).double()), 2 * 2 * 60),
    # Complex numbers: a sum 2, a product 6, a product with sums 8, each of two real numbers.
    (lambda: price(A.add.Tensor, X.cfloat(), X.cfloat()), 2 * 70),
    (lambda: price(A.mul.Tensor, X.cfloat(), X.cfloat()), 6 * 70),
    (lambda: price(A.mm.default, ones(3, 4).cfloat(), ones(4, 5).cfloat()), 4 * 2 * 60),
    (lambda: price(A.mul.Tensor, X.cdouble(), X.cdouble()), 2 * 6 * 70),
    (lambda: price(A.mul.Tensor, X, X.cfloat()), 6 * 70),
    # Several per element.
    (lambda: price(A.sigmoid_backward.default, X, X), 140),
    (lambda: price(A._fused_adam_.default, [X], out=[X]), 12 * 70),
    (lambda: price(A.aminmax.default, X), 140),
    (lambda: price(A.mse_loss.default, X, X), 140),
    (lambda: price(A.mse_loss_backward.default, X, X, X, 0), 140),
    (lambda: price(A.addr.default, ones(3, 4), ones(3), ones(4)), 24),
    (lambda: price(A.var.correction, X), 210),
    (lambda: price(A.dist.default, X, X), 210),
    (lambda: price(A.huber_loss.default, X, X), 280),
    (lambda: price(A.binary_cross_entropy_with_logits.default, X, X), 490),
    (lambda: price(A._softmax.default, X, 1, False), 350),
    (lambda: price(A._softmax_backward_data.default, X, X, 1, torch.float32), 280),
    (lambda: price(A.native_layer_norm.default, X, [7], None, None, 1e-5), 560),
    (lambda: price(A.native_layer_norm_backward.default, out=(X, None, None)), 14 * 70),
    (lambda: price(A.upsample_bilinear2d.default, out=X), 560),
    (lambda: price(A.upsample_bilinear2d_backward.default, X, out=ones(3)), 560),
    (lambda: price(A.upsample_linear1d.default, out=X), 280),
    (lambda: price(A.upsample_bicubic2d.default, out=X), 32 * 70),
    (lambda: price(A.grid_sampler_2d.default, out=X), 16 * 70),
    (lambda: price(A.grid_sampler_3d.default, out=X), 30 * 70),
    (lambda: price(A._embedding_bag.default, X[0], PLACES, PLACES[:1]), 4 * 7),
    # Sorting: log2 of what is sorted, rounded up.
    (lambda: price(A.sort.default, X), 70 * 3),
    (lambda: price(A.sort.default, X, 0), 70 * 1),
    (lambda: price(A.sort.default, X, 1), 70 * 3),
    (lambda: price(A.sort.default, ones(4, 9), 0), 36 * 2),
    (lambda: price(A.topk.default, ones(4, 9), 2), 36 * 4),
    (lambda: price(A.kthvalue.default, ones(9, 4), 2), 36 * 2),
    (lambda: price(A.sort.default, torch.ones(())), 1),
    (lambda: price(A._unique2.default, ones(4, 9)), 36 * math.ceil(math.log2(36))),
    (lambda: price(A.median.dim, ones(4, 9), 0), 36 * 2),
    (lambda: price(A.median.default, ones(4, 9)), 36),
    (lambda: price(A.searchsorted.Tensor, ones(9), ones(5)), 5 * 4),
    (lambda: price(A.searchsorted.Scalar, ones(9), 2.0), 4),
    (lambda: price(A.bucketize.Tensor, ones(5), ones(9)), 5 * 4),
    (lambda: price(A.bucketize.Scalar, 2.0, ones(9)), 4),
    (lambda: price(A.bucketize.Tensor, ones(5), ones(1)), 5),
    (lambda: price(A.bucketize.Tensor, ones(5), ones(2)), 5),
    (lambda: price(A.isin.Tensor_Tensor, ones(5), ones(4)), 9 * 4),
    (lambda: price(A.isin.Tensor_Scalar, ones(5), 2.0), 6 * 3),
    (lambda: price(A.isin.Tensor_Scalar, ones(1), 2.0), 2 * 1),
    (lambda: price(A.isin.Tensor_Tensor, ones(0), ones(0)), 2 * 1),
    # Products.
    (lambda: price(A.mm.default, ones(3, 4), ones(4, 5)), 120),
    (lambda: price(A.bmm.default, ones(2, 3, 4), ones(2, 4, 5)), 240),
    (lambda: price(A.mv.default, ones(3, 4), ones(4)), 24),
    (lambda: price(A.addmm.default, ones(5), ones(3, 4), ones(4, 5)), 120 + 15),
    (lambda: price(A.addbmm.default, ones(3, 5), ones(2, 3, 4), ones(2, 4, 5)), (2 * 2 * 4 + 1) * 15),
    (lambda: price(A.dot.default, ones(9), ones(9)), 18),
    (lambda: price(A._int_mm.default, *[ones(32, 32, dtype=torch.int8)] * 2), 2 * 32**3),
    # Pooling: the window, which one number gives for every dimension.
    (lambda: price(A.avg_pool1d.default, ones(2, 3, 8), [4]), 2 * 3 * 2 * 4),
    (lambda: price(A.avg_pool2d.default, ones(2, 3, 8, 8), [4]), 2 * 3 * 4 * 16),
    (lambda: price(A.avg_pool2d.default, ones(2, 3, 8, 8), [2, 4]), 2 * 3 * 8 * 8),
    (lambda: price(A.max_pool2d_with_indices.default, ones(2, 3, 8, 8), [2, 4]), 2 * 3 * 8 * 8),
    (lambda: price(A.avg_pool3d.default, ones(1, 1, 4, 4, 4), [2]), 8 * 8),
    (lambda: price(A.avg_pool2d_backward.default, ones(2, 3), None, [2], out=ones(1)), 6 * 4),
    (lambda: price(A.avg_pool3d_backward.default, ones(2, 3), None, [2], out=ones(1)), 6 * 8),
    # Moving and making are free.
    (lambda: price(A.cat.default, [X, X]), 0),
    (lambda: price(A.zeros.default, [9]), 0),
]


@pytest.mark.parametrize("number", range(len(DECOMPOSED)))
def test_decompositions_products_and_layers_by_hand(number):
    ask, by_hand = DECOMPOSED[number]
    assert ask() == round(by_hand)


@pytest.mark.parametrize("number", range(len(PRICED)))
def test_elements_places_sorts_and_pools_by_hand(number):
    ask, by_hand = PRICED[number]
    assert ask() == by_hand


def test_solving_is_not_cheaper_where_the_matrices_are_many_or_already_factored():
    """By any route a hundred right sides of three systems cost their triangular solves."""
    right = torch.ones(6, 100)
    for route in (
        lambda: torch.linalg.lu_solve(LU, PIVOTS, right),
        lambda: torch.linalg.solve_triangular(SPD, right, upper=True),
        lambda: torch.cholesky_solve(right, SPD),
        lambda: torch.linalg.solve(SPD, right),
    ):
        with count_flops() as count:
            route()
        assert count.flops >= 3 * 36 * 100


def test_every_op_stands_in_one_rule():
    names = [name for rule in RULES for name in rule.names]
    assert sorted(names) == sorted(set(names)), "of two prices the last one counts, and nobody reads which that is"


def test_counting_counts_calls_and_remembers_the_most_it_has_seen():
    with count_flops() as count:
        X + X
        X.view(-1)
        X.relu()
    assert (count.ops, count.flops, count.seen) == (3, 140, 140)
    assert count_flops().seen == 0
    with count_flops() as named:
        A.topk(ones(9, 4), k=2, dim=0)
    assert named.flops == 36 * 4, "along the axis that was named"
    count.flops = 5
    with count:
        X + X
    assert (count.flops, count.seen) == (75, 140)
    assert count_flops(OpTable({"add": lambda args, out: 3})).flops == 0


def test_a_table_of_ones_own_is_used_and_the_projects_is_left_alone():
    table = TABLE.extended({"add": lambda args, out: 1000})
    with count_flops(table) as count:
        X + X
    assert count.flops == 1000 and price(A.add.Tensor, X, X) == 70
    assert table.fingerprint() != TABLE.fingerprint() == OpTable().fingerprint()
    with pytest.raises(ValueError, match="has no price"):
        OpTable({}).price(A.add.Tensor)


def test_named_arguments_count_like_others():
    assert price(A.topk.default, ones(9, 4), k=2, dim=0) == 36 * 4
    assert price(A.topk.default, ones(9, 4), 2, 0) == 36 * 4
