"""What every op costs, in FLOPs. Conventions, the same as counting by hand:

- a multiply-accumulate is 2 FLOPs, so (m, k) @ (k, n) costs 2 m k n; a bias adds m n;
- arithmetic, comparing, logic, rounding and converting to another dtype are 1 per output element, transcendental ones
  too; drawing a random number is 1;
- a reduction is 1 per input element; sort and top-k are ceil(log2 n) per element along the axis they sort;
- looking up or choosing by a tensor (index, gather, where, scatter) is 1 per element that is looked up or placed: a
  table of results is work as well;
- adding into places (index_add, scatter_add, index_put that accumulates, bincount, fold) is 1 per element added;
- moving whole tensors by a fixed rule (view, slice, permute, cat, pad, copy) and making constants are 0;
- softmax is 5 per element (maximum, subtract, exp, sum, divide), log_softmax 5 (maximum, subtract, exp, sum, subtract);
- layer norm is 8 per element (two moments: 1 + 2, normalise: 2, affine: 2, and its share of rsqrt: 1);
- attention over (B, H, Tq, Tk) is 2 B H Tq Tk (d_k + d_v) + 6 B H Tq Tk, causal or not: the CPU kernel's masked half is
  charged because a masked score is computed and thrown away;
- a convolution is 2 per output element and weight of its channel group, its backward the same per gradient asked for;
- batch and group norm are 8 per element; average and maximum pooling are their window per output element, bilinear
  interpolation 8;
- decompositions, transforms, distances, sparse and recurrent layers: see ``decompositions.py``;
- list ops (``_foreach_*``) are 1 per element of their first list, the fused Adam step 12 per parameter.

Numbers of 8 bytes cost twice, since two of 4 bytes can be packed into one. Complex numbers cost what their real parts
do: a product of two 6, a product with a sum 8 (so matrix products 4 times the real ones), anything else 2.

``torch.utils.flop_counter`` prices only matrix products and convolutions and counts 0 for attention on the CPU
(pytorch issue 195460), so it cannot serve here.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, log2, prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from stages.metering.decompositions import DECOMPOSITIONS, sparse_values

__all__ = ["COMPLEX_PRODUCTS", "COMPLEX_SUMS", "INDEX_RESULTS", "RULES", "Bound", "Price", "Rule"]


class Bound(tuple[Any, ...]):
    """Arguments of a call in the order of its schema, named ones and defaults filled in."""

    named: Mapping[str, Any]

    @classmethod
    def of(cls, schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        values = {
            argument.name: args[i] if i < len(args) else kwargs.get(argument.name, argument.default_value)
            for i, argument in enumerate(schema.arguments)
        }
        bound = cls(values.values())
        bound.named = values
        return bound


Price = Callable[[Any, Any], int]
"""(bound arguments, output) -> FLOPs; tensors need no values."""


class Rule(NamedTuple):
    """Ops of one price. A name is that of ``torch.ops.aten``; "name.overload" is one overload alone."""

    words: str
    names: tuple[str, ...]
    price: Price


def _numel(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    return sum(_numel(v) for v in value) if isinstance(value, (tuple, list)) else 0


def _free(args: Any, out: Any) -> int:
    return 0


def _per_output(factor: int) -> Price:
    return lambda args, out: factor * _numel(out[0] if isinstance(out, (tuple, list)) else out)


def _per_input(factor: int) -> Price:
    return lambda args, out: factor * _numel(args[0])


def _sort(args: Any, out: Any) -> int:
    value = args[0]
    n = value.shape[args.named.get("dim") or 0 if args.named.get("dim") is not None else -1] if value.dim() else 1
    if "dim" not in args.named:
        n = value.numel()  # unique and the like sort everything
    return int(value.numel()) * max(1, ceil(log2(max(2, n))))


def _search(args: Any, out: Any) -> int:
    """Values into sorted boundaries: log2 of them per value."""
    sorted_first = "sorted_sequence" in args.named
    boundaries, values = (args[0], args[1]) if sorted_first else (args[1], args[0])
    return max(1, _numel(values)) * max(1, ceil(log2(max(2, boundaries.shape[-1] if boundaries.dim() else 1))))


def _membership(args: Any, out: Any) -> int:
    n = sum(max(1, _numel(value)) for value in args[:2])
    return n * max(1, ceil(log2(max(2, n))))


def _converted(args: Any, out: Any) -> int:
    """Copying is moving; to another dtype it is a function of each value."""
    source = args[1] if "src" in args.named else args[0]
    return _numel(out) if isinstance(source, Tensor) and source.dtype != out.dtype else 0


def _filled(args: Any, out: Any) -> int:
    """index_fill: the elements that are addressed."""
    dim = args[1]
    return int(_numel(args[2]) * _numel(args[0]) // max(1, args[0].shape[dim] if args[0].dim() else 1))


def _mm(args: Any, out: Any) -> int:
    stored = sparse_values(args[0])
    if stored is not None:
        return 2 * stored * (int(out.shape[-1]) if out.dim() > 1 else 1)
    return int(2 * out.numel() * int(args[0].shape[-1]))


def _addmm(args: Any, out: Any) -> int:
    stored = sparse_values(args[1])
    if stored is not None:
        return 2 * stored * (int(out.shape[-1]) if out.dim() > 1 else 1) + int(out.numel())
    return int(2 * out.numel() * int(args[1].shape[-1]) + out.numel())


def _addbmm(args: Any, out: Any) -> int:
    """Products of a whole batch, summed into one matrix."""
    return int((2 * args[1].shape[0] * args[1].shape[-1] + 1) * out.numel())


def _accumulate(index: int, factor: int = 1) -> Price:
    """Adding into places: ``factor`` per element that is added, however small what they are added to."""
    return lambda args, out: factor * _numel(args[index])


def _index_put(args: Any, out: Any) -> int:
    """One per element addressed, whether it is placed or added. A mask counts in full."""
    shape, rest, dim, masked = args[0].shape, 1, 0, 1
    shapes = []
    for index in args[1]:
        if index is None:
            rest *= shape[dim]
        elif index.dtype in (torch.bool, torch.uint8):
            masked = max(masked, index.numel())
        else:
            shapes.append(index.shape)
        dim += index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
    addressed = max(masked, prod(torch.broadcast_shapes(*shapes)))  # type: ignore[no-untyped-call]
    return int(addressed * rest * prod(shape[dim:]))


def _window(kernel: int, dims: int, value: int | None = None) -> Price:
    """Average pooling over ``dims`` dimensions: the window's elements are added and divided once, for each element of
    the output (or of the gradient, which is argument ``value``)."""

    def price(args: Any, out: Any) -> int:
        given = args[kernel]
        given = given if isinstance(given, int) or len(given) else 1
        size = [given] * dims if isinstance(given, int) else list(given) * (dims if len(given) == 1 else 1)
        over = out[0] if isinstance(out, (tuple, list)) else out
        return _numel(over if value is None else args[value]) * prod(size)

    return price


def _dot(args: Any, out: Any) -> int:
    return 2 * int(args[0].numel())


def _convolution(args: Any, out: Any) -> int:
    weight, bias, transposed = args[1], args[2], args[6]
    macs = (args[0].numel() // args[0].shape[1]) * weight.numel() if transposed else None
    if macs is None:
        macs = (out.numel() // out.shape[1]) * weight.numel()
    return 2 * int(macs) + (out.numel() if bias is not None else 0)


def _convolution_backward(args: Any, out: Any) -> int:
    grad_out, weight, mask = args[0], args[2], args[10]
    once = 2 * (grad_out.numel() // grad_out.shape[1]) * weight.numel()
    return int(once) * (int(mask[0]) + int(mask[1])) + (grad_out.numel() if mask[2] else 0)


def _attention(args: Any, out: Any) -> int:
    query, key, value = args[:3]
    batch_heads = prod(query.shape[:-2])
    pairs = batch_heads * query.shape[-2] * key.shape[-2]
    return int(2 * pairs * (query.shape[-1] + value.shape[-1]) + 6 * pairs)


def _attention_backward(args: Any, out: Any) -> int:
    _, query, key, value = args[:4]
    pairs = prod(query.shape[:-2]) * query.shape[-2] * key.shape[-2]
    # Recomputes the scores, then d_value, d_pattern, d_query, d_key.
    return int(2 * pairs * (3 * query.shape[-1] + 2 * value.shape[-1]) + 10 * pairs)


_MOVES = """
  _coalesce _indices _linalg_check_errors  _nnz _reshape_alias _reshape_copy
_sparse_coo_tensor_unsafe _sparse_coo_tensor_with_dims_and_tensors _sparse_csr_tensor_unsafe _to_dense _to_sparse
_to_sparse_csr _unsafe_view _values alias as_strided block_diag broadcast_tensors cat chunk clone coalesce col_indices
complex constant_pad_nd contiguous crow_indices detach detach_ diag diag_embed diagonal diagonal_backward expand
flatten flip im2col imag indices is_same_size item lift lift_fresh lift_fresh_copy _local_scalar_dense narrow
narrow_copy permute pixel_shuffle pixel_unshuffle real reflection_pad1d reflection_pad2d reflection_pad3d repeat
replication_pad1d replication_pad2d replication_pad3d resize_ roll rot90 select select_backward select_scatter set_
slice slice_backward slice_scatter diagonal_scatter sparse_resize_ split split_with_sizes split_with_sizes_copy squeeze
squeeze_ stack t t_ transpose transpose_ tril tril_ triu triu_ unbind unfold unsafe_split unsqueeze unsqueeze_
upsample_nearest1d upsample_nearest2d upsample_nearest3d values view view_as view_as_complex view_as_real
channel_shuffle expand_copy permute_copy select_copy slice_copy squeeze_copy t_copy transpose_copy unbind_copy
unsqueeze_copy view_copy as_strided_copy as_strided_scatter diagonal_copy unfold_copy alias_copy detach_copy
promote_types
""".split()
_MAKES = """
arange empty empty_like empty_permuted empty_strided eye fill fill_ full full_like linspace logspace new_empty
new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices triu_indices zero zero_ zeros
zeros_like
""".split()
_DRAWS = """
bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial normal normal_ poisson rand rand_like
randint randint_like randn randn_like random_ randperm uniform_ native_dropout dropout binomial
""".split()
_COMPARES = """
bitwise_and bitwise_and_ bitwise_left_shift bitwise_not bitwise_not_ bitwise_or bitwise_or_ bitwise_right_shift
bitwise_xor bitwise_xor_ eq eq_ ge ge_ gt gt_ isfinite isinf isnan isneginf isposinf le le_ logical_and logical_and_
logical_not logical_not_ logical_or logical_or_ logical_xor logical_xor_ lt lt_ ne ne_ nextafter signbit one_hot
""".split()
_LOOKUPS = "embedding gather index index_select masked_fill masked_fill_ masked_select take where".split()
_POINTWISE = """
_conj _conj_physical _neg_view conj abs add add_ addcdiv addcdiv_ addcmul addcmul_ atan2 ceil clamp clamp_ clamp_max
clamp_min clamp_min_ cos cosh cumsum cumprod div div_ elu erf exp exp_ exp2 expm1 floor floor_divide fmod gelu
hardtanh heaviside leaky_relu lerp log log10 log1p log2 masked_scatter maximum minimum mul mul_ neg neg_ pow pow_
reciprocal relu relu_ remainder round rsqrt rsub sigmoid sigmoid_ sign silu sin sinh softplus sqrt sqrt_ sub sub_ tan
tanh tanh_ threshold trunc rsqrt_ hypot acos acosh angle asin asinh atan atanh ceil_ celu copysign cummax cummin
deg2rad digamma erfc erfinv fmax fmin frac glu hardshrink hardsigmoid hardswish i0 ldexp lerp_ lgamma linalg_cross
log_ log_sigmoid_forward logcumsumexp logaddexp logaddexp2 logit mish nan_to_num nan_to_num_ polar prelu _prelu_kernel
rad2deg round_ sgn sinc softshrink special_entr special_erfcx special_i1 special_log_ndtr special_ndtri square xlogy
selu trunc_ sign_ cos_ sin_ abs_ exp2_ log1p_ cumsum_ masked_scatter_ floor_ hardtanh_ elu_ silu_ leaky_relu_
clamp_max_ fmod_ remainder_ hypot_ square_ true_divide gcd lcm special_bessel_j0 special_i0e special_i1e polygamma
special_xlog1py special_zeta cumprod_ floor_divide_
""".split()
_BACKWARD = """
elu_backward gelu_backward leaky_relu_backward sigmoid_backward silu_backward tanh_backward threshold_backward
softplus_backward hardtanh_backward hardswish_backward mish_backward log_sigmoid_backward
glu_backward hardsigmoid_backward _prelu_kernel_backward _adaptive_avg_pool2d_backward
""".split()
_REDUCE = """
_adaptive_avg_pool2d adaptive_max_pool2d all any argmax argmin amax amin count_nonzero linalg_vector_norm logsumexp max
mean median min nanmedian nansum nonzero norm prod sum trace equal
""".split()
_LISTS = """
abs add addcdiv addcmul clamp_max clamp_min copy div exp lerp log maximum minimum mul neg norm pow reciprocal round
sigmoid sign sqrt sub tanh zero
""".split()

RULES: tuple[Rule, ...] = (
    Rule("0: moving whole tensors by a fixed rule", tuple(_MOVES), _free),
    Rule("0: making constants", tuple(_MAKES), _free),
    Rule("1 per element drawn", tuple(_DRAWS), _per_output(1)),
    Rule("1 per output element: comparing and logic", tuple(_COMPARES), _per_output(1)),
    Rule("1 per element looked up or chosen", tuple(_LOOKUPS), _per_output(1)),
    Rule("1 per element placed", ("scatter", "scatter_"), _accumulate(2)),
    Rule("1 per element placed or added, of the source", ("scatter.src", "scatter_.src"), _accumulate(3)),
    Rule("2 per element of the source", ("scatter.reduce", "scatter_.reduce"), _accumulate(3, 2)),
    Rule("2 per element addressed", ("scatter.value_reduce", "scatter_.value_reduce"), _accumulate(2, 2)),
    Rule("1 per element placed, of the source", ("index_copy", "index_copy_"), _accumulate(3)),
    Rule("1 per element addressed", ("index_fill", "index_fill_"), _filled),
    Rule("1 per element where the dtype changes, else 0", ("_to_copy", "copy", "copy_"), _converted),
    Rule("1 per output element: arithmetic", tuple(_POINTWISE), _per_output(1)),
    Rule("2 per output element: backward of arithmetic", tuple(_BACKWARD), _per_output(2)),
    Rule("1 per input element: reductions", tuple(_REDUCE), _per_input(1)),
    Rule(
        "1 per element of the first list",
        tuple(f"_foreach_{name}{tail}" for name in _LISTS for tail in ("", "_")),
        _per_input(1),
    ),
    Rule("12 per parameter", ("_fused_adam_", "_fused_adamw_", "_fused_sgd_"), _per_input(12)),
    *(Rule("see decompositions.py", (name,), price) for name, price in DECOMPOSITIONS.items()),
    Rule("2 per input element", ("aminmax", "mse_loss"), _per_input(2)),
    Rule("3 per input element", ("var", "std", "var_mean", "std_mean", "dist", "renorm"), _per_input(3)),
    Rule("4 per input element", ("huber_loss", "smooth_l1_loss"), _per_input(4)),
    Rule("7 per input element", ("binary_cross_entropy", "binary_cross_entropy_with_logits"), _per_input(7)),
    Rule(
        "ceil(log2 n) per element along the sorted axis",
        ("sort", "argsort", "topk", "kthvalue", "msort", "mode", "median.dim", "nanmedian.dim"),
        _sort,
    ),
    Rule("ceil(log2 n) per element", ("_unique", "_unique2", "unique_dim", "unique_consecutive"), _sort),
    Rule("ceil(log2 boundaries) per value", ("searchsorted", "bucketize"), _search),
    Rule("ceil(log2 n) per element of both", ("isin",), _membership),
    Rule("2 m k n", ("mm", "bmm", "mv"), _mm),
    Rule("2 m k n + m n", ("addmm", "baddbmm", "addmv", "addmm_", "baddbmm_", "addmv_"), _addmm),
    Rule("(2 b k + 1) m n", ("addbmm", "addbmm_"), _addbmm),
    Rule("2 n", ("dot", "vdot"), _dot),
    Rule("2 per output element", ("addr", "addr_", "mse_loss_backward"), _per_output(2)),
    Rule("1 per element added", ("index_add", "index_add_"), _accumulate(3)),
    Rule("1 per element added", ("scatter_add", "scatter_add_", "put", "put_"), _accumulate(2)),
    Rule(
        "3 per element added: by mean it is a sum, a count and a division",
        ("scatter_reduce", "scatter_reduce_"),
        _accumulate(2, 3),
    ),
    Rule("3 per element added", ("index_reduce", "index_reduce_"), _accumulate(3, 3)),
    Rule("1 per element addressed", ("index_put", "index_put_", "_index_put_impl_"), _index_put),
    Rule(
        "1 per element added",
        (
            *("bincount", "histc", "histogram", "embedding_dense_backward", "unfold_backward", "col2im"),
            *("max_pool2d_with_indices_backward", "adaptive_max_pool2d_backward"),
            *("upsample_nearest1d_backward", "upsample_nearest2d_backward"),
        ),
        _accumulate(0),
    ),
    Rule("the window per output element", ("avg_pool1d",), _window(1, 1)),
    Rule("the window per output element", ("max_pool2d_with_indices", "avg_pool2d"), _window(1, 2)),
    Rule("the window per output element", ("avg_pool3d", "max_pool3d_with_indices"), _window(1, 3)),
    Rule("the window per element of the gradient", ("avg_pool2d_backward",), _window(2, 2, 0)),
    Rule("the window per element of the gradient", ("avg_pool3d_backward",), _window(2, 3, 0)),
    Rule("5 per output element", ("_softmax", "_safe_softmax", "_log_softmax", "_fused_rms_norm"), _per_output(5)),
    Rule("4 per output element", ("_softmax_backward_data", "_log_softmax_backward_data"), _per_output(4)),
    Rule(
        "the width per index",
        ("_embedding_bag", "_embedding_bag_forward_only"),
        lambda args, out: int(args[1].numel() * args[0].shape[-1]),
    ),
    Rule(
        "8 per output element",
        ("native_layer_norm", "native_batch_norm", "native_group_norm", "upsample_bilinear2d"),
        _per_output(8),
    ),
    Rule(
        "14 per output element",
        ("native_layer_norm_backward", "native_batch_norm_backward", "native_group_norm_backward"),
        _per_output(14),
    ),
    Rule("8 per input element", ("upsample_bilinear2d_backward",), _per_input(8)),
    Rule("4 per output element", ("upsample_linear1d",), _per_output(4)),
    Rule("32 per output element", ("upsample_bicubic2d",), _per_output(32)),
    Rule("16 per output element", ("grid_sampler_2d",), _per_output(16)),
    Rule("30 per output element", ("grid_sampler_3d",), _per_output(30)),
    Rule("1 per input element", ("nll_loss_forward", "nll_loss2d_forward"), _per_input(1)),
    Rule("1 per output element", ("nll_loss_backward", "nll_loss2d_backward"), _per_output(1)),
    Rule("2 per output element and weight of its group", ("convolution",), _convolution),
    Rule("the same per gradient asked for", ("convolution_backward",), _convolution_backward),
    Rule("2 B H Tq Tk (d_k + d_v) + 6 B H Tq Tk", ("_scaled_dot_product_flash_attention_for_cpu",), _attention),
    Rule(
        "2 B H Tq Tk (3 d_k + 2 d_v) + 10 B H Tq Tk",
        ("_scaled_dot_product_flash_attention_for_cpu_backward",),
        _attention_backward,
    ),
)
"""Every priced op. An op that stands in none has no price and may not be used."""

COMPLEX_PRODUCTS = frozenset("mm bmm mv addmm baddbmm addmv addbmm dot vdot convolution convolution_backward".split())
"""Priced as products with sums: 8 real FLOPs in place of 2."""
COMPLEX_SUMS = frozenset(
    "_conj _conj_physical _neg_view conj add add_ sub sub_ rsub neg neg_ sum mean cumsum cumsum_ eq ne"
    " index_add scatter_add".split()
)
"""2 real FLOPs in place of 1; other complex ops are at least a product of two: 6."""
INDEX_RESULTS = frozenset("argmax argmin argsort nonzero searchsorted bucketize bincount count_nonzero isin".split())
"""Their result is a place or a number of things, whatever the width of what they read."""
