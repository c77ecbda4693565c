"""Torch operators by kind."""

from __future__ import annotations

from typing import Any

KINDS = {
    "matrix products": "mm bmm addmm baddbmm addbmm matmul linear einsum dot mv addmv",
    "copies, gathers and fills": (
        "copy clone cat index index_select index_add index_put _index_put_impl gather scatter_add fill zero empty "
        "empty_strided contiguous stack nonzero masked_select repeat repeat_interleave arange empty_like zeros zeros_like "
        "resize argsort sort unsafe_index take index_copy constant_pad_nd searchsorted bincount"
    ),
    "elementwise, sums and norms": (
        "mul add sub rsub div neg tanh tanh_backward exp pow sqrt rsqrt sum mean where native_layer_norm "
        "native_layer_norm_backward addcmul addcdiv reciprocal clamp max amax min norm linalg_vector_norm _softmax "
        "_softmax_backward_data square sigmoid sign abs eq lt gt le ge ne bitwise_and cumsum any all sgn threshold var_mean "
        "masked_fill lerp maximum minimum fmod floor"
    ),
}
KERNELS = "kernels of this package"
OTHER = "everything else (Python, autograd, neighbour list, optimizer)"


def grouped(case: dict[str, Any]) -> dict[str, float]:
    """Seconds by kind of operator; what no operator accounts for goes to the last."""
    kind_of = {"dpa1::product": "matrix products"} | {
        f"aten::{name}": kind for kind, names in KINDS.items() for name in names.split()
    }
    out: dict[str, float] = {}
    for operator, seconds in case["operators"].items():
        # ``mul_`` is ``mul`` in place.
        kind = kind_of.get(operator.rstrip("_"), KERNELS if "dpa1" in operator else OTHER)
        out[kind] = out.get(kind, 0.0) + seconds
    out[OTHER] = out.get(OTHER, 0.0) + max(case["wall_s"] - sum(case["operators"].values()), 0.0)
    return out
