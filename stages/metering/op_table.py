"""The price of every op, in FLOPs, fail-closed: an op without a price raises.

Conventions (the same as counting by hand):
- a multiply-accumulate is 2 FLOPs, so (m, k) @ (k, n) costs 2 m k n; a bias adds m n;
- a pointwise arithmetic op is 1 FLOP per output element, transcendental ones too;
- softmax is 5 per element (maximum, subtract, exp, sum, divide), log_softmax 5 (maximum, subtract, exp, sum, subtract);
- layer norm is 8 per element (two moments: 1 + 2, normalise: 2, affine: 2, and its share of rsqrt: 1);
- a reduction is 1 per input element; sort and top-k are ceil(log2 n) per element;
- attention over (B, H, Tq, Tk) is 2 B H Tq Tk (d_k + d_v) + 6 B H Tq Tk, causal or not: the CPU kernel's masked half is
  charged because a masked score is computed and thrown away;
- moving, indexing, comparing or making data is 0;
- a convolution is 2 per output element and weight of its channel group, its backward the same per gradient asked for;
- batch and group norm are 8 per element; average pooling is its window per output element, bilinear interpolation 8;
- adding into places (index_add, scatter_add, index_put that accumulates, bincount, fold) is 1 per element added;
- decompositions, transforms, distances, sparse and recurrent layers: see ``decompositions.py``;
- list ops (``_foreach_*``) are 1 per element of their first list, the fused Adam step 12 per parameter.

``torch.utils.flop_counter`` prices only matrix products and convolutions and counts 0 for attention on the CPU
(pytorch issue 195460), so it cannot serve here.
"""

from collections.abc import Callable, Mapping
from math import ceil, log2, prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stages.metering.decompositions import DECOMPOSITIONS, sparse_values

__all__ = ["OpTable", "UnknownOpError", "count_flops"]

Price = Callable[[tuple[Any, ...], Any], int]


class UnknownOpError(ValueError):
    """An op that is in no price list."""


def _numel(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    return sum(_numel(v) for v in value) if isinstance(value, (tuple, list)) else 0


def _free(args: tuple[Any, ...], out: Any) -> int:
    return 0


def _per_output(factor: int) -> Price:
    return lambda args, out: factor * _numel(out[0] if isinstance(out, (tuple, list)) else out)


def _per_input(factor: int) -> Price:
    return lambda args, out: factor * _numel(args[0])


def _sort(args: tuple[Any, ...], out: Any) -> int:
    n = int(args[0].numel())
    return n * max(1, ceil(log2(max(2, args[0].shape[-1] if args[0].dim() else 1))))


def _mm(args: tuple[Any, ...], out: Any) -> int:
    stored = sparse_values(args[0])
    if stored is not None:
        return 2 * stored * (int(out.shape[-1]) if out.dim() > 1 else 1)
    return int(2 * out.numel() * int(args[0].shape[-1]))


def _addmm(args: tuple[Any, ...], out: Any) -> int:
    stored = sparse_values(args[1])
    if stored is not None:
        return 2 * stored * (int(out.shape[-1]) if out.dim() > 1 else 1) + int(out.numel())
    return int(2 * out.numel() * int(args[1].shape[-1]) + out.numel())


def _addbmm(args: tuple[Any, ...], out: Any) -> int:
    """Products of a whole batch, summed into one matrix."""
    return int((2 * args[1].shape[0] * args[1].shape[-1] + 1) * out.numel())


def _accumulate(index: int, factor: int = 1) -> Price:
    """Adding into places: ``factor`` per element that is added, however small what they are added to."""
    return lambda args, out: factor * _numel(args[index])


def _index_put(args: tuple[Any, ...], out: Any) -> int:
    """Moving, unless it accumulates: then one addition per element addressed. A mask counts in full."""
    if not (len(args) > 3 and args[3]):
        return 0
    shape, rest, dim, masked = args[0].shape, 1, 0, 1
    shapes = []
    for index in args[1]:
        if index is None:
            rest *= shape[dim]
        elif index.dtype == torch.bool:
            masked = max(masked, index.numel())
        else:
            shapes.append(index.shape)
        dim += index.dim() if index is not None and index.dtype == torch.bool else 1
    addressed = max(masked, prod(torch.broadcast_shapes(*shapes)))  # type: ignore[no-untyped-call]
    return int(addressed * rest * prod(shape[dim:]))


def _window(kernel: int, dims: int, value: int | None = None) -> Price:
    """Average pooling over ``dims`` dimensions: the window's elements are added and divided once, for each element of
    the output (or of the gradient, which is argument ``value``)."""

    def price(args: tuple[Any, ...], out: Any) -> int:
        given = args[kernel]
        size = [given] * dims if isinstance(given, int) else list(given) * (dims if len(given) == 1 else 1)
        return _numel(out if value is None else args[value]) * prod(size)

    return price


def _dot(args: tuple[Any, ...], out: Any) -> int:
    return 2 * int(args[0].numel())


def _convolution(args: tuple[Any, ...], out: Any) -> int:
    weight, bias, transposed = args[1], args[2], args[6]
    macs = (args[0].numel() // args[0].shape[1]) * weight.numel() if transposed else None
    if macs is None:
        macs = (out.numel() // out.shape[1]) * weight.numel()
    return 2 * int(macs) + (out.numel() if bias is not None else 0)


def _convolution_backward(args: tuple[Any, ...], out: Any) -> int:
    grad_out, weight, mask = args[0], args[2], args[10]
    once = 2 * (grad_out.numel() // grad_out.shape[1]) * weight.numel()
    return int(once) * (int(mask[0]) + int(mask[1])) + (grad_out.numel() if mask[2] else 0)


def _attention(args: tuple[Any, ...], out: Any) -> int:
    query, key, value = args[:3]
    batch_heads = prod(query.shape[:-2])
    pairs = batch_heads * query.shape[-2] * key.shape[-2]
    return int(2 * pairs * (query.shape[-1] + value.shape[-1]) + 6 * pairs)


def _attention_backward(args: tuple[Any, ...], out: Any) -> int:
    _, query, key, value = args[:4]
    pairs = prod(query.shape[:-2]) * query.shape[-2] * key.shape[-2]
    # Recomputes the scores, then d_value, d_pattern, d_query, d_key.
    return int(2 * pairs * (3 * query.shape[-1] + 2 * value.shape[-1]) + 10 * pairs)


# Names are those of ``torch.ops.aten`` without the overload, so every overload of an op has one price.
_FREE = """
equal _local_scalar_dense _reshape_alias _reshape_copy _to_copy _unsafe_view alias any all arange argmax argmin
as_strided
bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor broadcast_tensors bucketize cat chunk clone constant_pad_nd
contiguous copy copy_ detach detach_ diag diagonal diagonal_backward embedding empty empty_like empty_strided eq eq_
expand eye fill fill_ flatten flip full full_like gather ge gt index index_copy index_select is_same_size isfinite
isinf isnan isin item lift_fresh linspace logical_and logical_not logical_or logical_xor lt le masked_fill
masked_fill_ masked_select max_pool2d_with_indices narrow ne new_empty new_empty_strided new_full new_ones new_zeros
nonzero normal_ one_hot ones ones_like permute rand rand_like randint randn randn_like randperm repeat resize_ roll
scalar_tensor scatter scatter_ searchsorted select select_backward set_ slice slice_backward slice_scatter
select_scatter split split_with_sizes split_with_sizes_copy squeeze squeeze_ stack t t_ transpose tril triu uniform_
unbind unfold unique_dim _unique2 unsqueeze unsqueeze_ unsafe_split view view_as where zero_ zeros zeros_like
random_ exponential_ multinomial _linalg_check_errors
_to_dense _to_sparse _to_sparse_csr _coalesce _indices
_nnz _values block_diag col_indices crow_indices index_fill index_fill_ isneginf isposinf logical_and_
logical_not_ logical_or_ narrow_copy nextafter pixel_shuffle poisson promote_types reflection_pad1d reflection_pad2d
replication_pad1d replication_pad2d rot90 signbit sparse_resize_ take transpose_ triu_ tril_
upsample_nearest1d upsample_nearest2d upsample_nearest1d_backward upsample_nearest2d_backward normal
values indices im2col complex real imag conj _conj
_conj_physical _neg_view view_as_real view_as_complex _sparse_coo_tensor_with_dims_and_tensors
_sparse_coo_tensor_unsafe _sparse_csr_tensor_unsafe coalesce tril_indices
triu_indices scatter_value
""".split()
_POINTWISE = """
abs add add_ addcdiv addcdiv_ addcmul addcmul_ atan2 ceil clamp clamp_ clamp_max clamp_min clamp_min_ cos cosh
cumsum cumprod div div_ elu erf exp exp_ exp2 expm1 floor floor_divide fmod gelu hardtanh heaviside leaky_relu lerp
log log10 log1p log2 masked_scatter maximum minimum mul mul_ neg neg_ pow pow_ reciprocal relu relu_ remainder round
rsqrt rsub sigmoid sigmoid_ sign silu sin sinh softplus sqrt sqrt_ sub sub_ tan tanh tanh_ threshold trunc rsqrt_
hypot acos acosh angle asin asinh atan atanh ceil_ celu copysign cummax cummin deg2rad digamma
erfc erfinv fmax fmin frac glu hardshrink hardsigmoid hardswish i0 ldexp lerp_ lgamma linalg_cross log_
log_sigmoid_forward logcumsumexp logaddexp logaddexp2 logit mish nan_to_num nan_to_num_ polar prelu _prelu_kernel
rad2deg round_ sgn sinc softshrink special_entr special_erfcx special_i1 special_log_ndtr special_ndtri square xlogy
selu trunc_ sign_ cos_ sin_ abs_ exp2_ log1p_ cumsum_ masked_scatter_
floor_ dropout native_dropout
""".split()
_BACKWARD = """
elu_backward gelu_backward leaky_relu_backward sigmoid_backward silu_backward tanh_backward threshold_backward
softplus_backward hardtanh_backward hardswish_backward mish_backward log_sigmoid_backward
glu_backward hardsigmoid_backward _prelu_kernel_backward _adaptive_avg_pool2d_backward
""".split()
_REDUCE = """
_adaptive_avg_pool2d adaptive_max_pool2d amax amin count_nonzero linalg_vector_norm logsumexp max mean median min mode
nanmedian nansum norm prod sum trace
""".split()
_LISTS = """
abs add addcdiv addcmul clamp_max clamp_min copy div exp lerp log maximum minimum mul neg norm pow reciprocal round
sigmoid sign sqrt sub tanh zero
""".split()
_BOOKKEEPING = frozenset({"profiler::_record_function_enter_new", "profiler::_record_function_exit"})
"""Ops of other libraries that compute nothing."""


def _default_prices() -> dict[str, Price]:
    prices: dict[str, Price] = dict.fromkeys(_FREE, _free)
    prices |= {name: _per_output(1) for name in _POINTWISE}
    prices |= {name: _per_output(2) for name in _BACKWARD}
    prices |= {name: _per_input(1) for name in _REDUCE}
    prices |= {f"_foreach_{name}{tail}": _per_input(1) for name in _LISTS for tail in ("", "_")}
    prices |= {f"_fused_{name}_": _per_input(12) for name in ("adam", "adamw", "sgd")}
    prices |= DECOMPOSITIONS
    prices["aminmax"] = _per_input(2)
    prices |= {"var": _per_input(3), "std": _per_input(3), "var_mean": _per_input(3), "std_mean": _per_input(3)}
    prices |= dict.fromkeys(("sort", "argsort", "topk", "kthvalue", "msort"), _sort)
    prices |= {"mm": _mm, "bmm": _mm, "mv": _mm, "addmm": _addmm, "baddbmm": _addmm, "addmv": _addmm}
    prices |= {"addmm_": _addmm, "baddbmm_": _addmm, "addmv_": _addmm, "addbmm": _addbmm, "addbmm_": _addbmm}
    prices |= dict.fromkeys(("addr", "addr_"), _per_output(2))
    prices |= dict.fromkeys(("index_add", "index_add_"), _accumulate(3))
    prices |= dict.fromkeys(("scatter_add", "scatter_add_"), _accumulate(2))
    # By mean it is a sum, a count and a division.
    prices |= dict.fromkeys(("scatter_reduce", "scatter_reduce_", "index_reduce", "index_reduce_"), _accumulate(3, 3))
    prices |= dict.fromkeys(("put", "put_"), _accumulate(2))
    prices |= dict.fromkeys(("index_put", "index_put_", "_index_put_impl_"), _index_put)
    added = ("bincount", "histc", "histogram", "embedding_dense_backward", "unfold_backward", "col2im")
    prices |= dict.fromkeys(added, _accumulate(0))
    prices |= dict.fromkeys(("max_pool2d_with_indices_backward", "adaptive_max_pool2d_backward"), _accumulate(0))
    prices |= {"avg_pool2d": _window(1, 2), "avg_pool3d": _window(1, 3)}
    prices |= {"avg_pool2d_backward": _window(2, 2, 0), "avg_pool3d_backward": _window(2, 3, 0)}
    prices |= {"dot": _dot, "vdot": _dot}
    prices |= {
        "_softmax": _per_output(5),
        "_log_softmax": _per_output(5),
        "_softmax_backward_data": _per_output(4),
        "_log_softmax_backward_data": _per_output(4),
        "_embedding_bag": lambda args, out: int(args[1].numel() * args[0].shape[-1]),
        "_embedding_bag_forward_only": lambda args, out: int(args[1].numel() * args[0].shape[-1]),
        "_fused_rms_norm": _per_output(5),
        "binary_cross_entropy": _per_input(7),
        "binary_cross_entropy_with_logits": _per_input(7),
        "dist": _per_input(3),
        "grid_sampler_2d": _per_output(16),
        "huber_loss": _per_input(4),
        "smooth_l1_loss": _per_input(4),
        "native_batch_norm": _per_output(8),
        "native_batch_norm_backward": _per_output(14),
        "native_group_norm": _per_output(8),
        "native_group_norm_backward": _per_output(14),
        "nll_loss2d_forward": _per_input(1),
        "nll_loss2d_backward": _free,
        "renorm": _per_input(3),
        "upsample_bicubic2d": _per_output(32),
        "upsample_bilinear2d": _per_output(8),
        "upsample_bilinear2d_backward": _per_input(8),
        "upsample_linear1d": _per_output(4),
        "native_layer_norm": _per_output(8),
        "native_layer_norm_backward": _per_output(14),
        "nll_loss_forward": _per_input(1),
        "nll_loss_backward": _free,
        "mse_loss": _per_input(2),
        "mse_loss_backward": _per_output(2),
        "convolution": _convolution,
        "convolution_backward": _convolution_backward,
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    }
    return prices


class OpTable:
    """Prices by op name. Immutable once made; ``extended`` returns a larger one.

    Args:
        prices: op name (as in ``torch.ops.aten``) -> function of (args, output) giving FLOPs; None: the default list.
    """

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        self._prices = dict(_default_prices() if prices is None else prices)

    def extended(self, prices: Mapping[str, Price]) -> "OpTable":
        return OpTable(self._prices | dict(prices))

    def fingerprint(self) -> int:
        """Changes when any price does."""
        return hash(tuple(sorted((name, id(price)) for name, price in self._prices.items())))

    def price(self, op: Any) -> Price:
        """FLOPs of a call, given its arguments and output. Ask before the op runs: what one in place wrote stays.

        Raises:
            UnknownOpError: the op has no price.
        """
        if op._schema.name in _BOOKKEEPING:
            return _free
        namespace, _, name = op._schema.name.partition("::")
        function = self._prices.get(name) if namespace == "aten" else None
        if function is None:
            raise UnknownOpError(
                f"op {op._schema.name} has no price, so it may not be used: compute it from priced ops,"
                " or add a price with a test in stages/metering/op_table.py"
            )
        return function


class count_flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the FLOPs of every op inside the ``with`` block, backward passes included.

    What it cannot see: other threads and processes, numpy, code that disables dispatch modes. It prices trusted code;
    code nobody has reviewed needs a process boundary as well.
    """

    def __init__(self, table: OpTable | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.ops = 0
        self.seen = 0
        """The count when it was last added to: a count below it was tampered with."""
        self._table = table or OpTable()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        price = self._table.price(func)
        out = func(*args, **(kwargs or {}))
        self.flops += price(args, out)
        self.ops += 1
        self.seen = max(self.seen, self.flops)
        return out
