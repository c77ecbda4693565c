"""The passes of an attention layer as compiled loops: each number is read once and stays in the processor's cache.

Fast sibling of ``reference.attention_layer``: ``attention`` with a sibling of each function of ``attention_passes``. Derivatives by
positions and weights at once, which neither a force nor a training step asks for, are left to those.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpa1.compiled import available
from dpa1.kernels import attention, attention_passes
from dpa1.kernels import compiled_attention_loops as loops
from dpa1.kernels.arrays import array, memory
from dpa1.kernels.attention_passes import Given, OptionalTensor, Passes, ScoresBack, ScoresTwice
from dpa1.kernels.reference import AttentionOptions, AttentionWeights, Keys


def supports(features: Tensor, keys: Keys, weights: AttentionWeights, options: AttentionOptions) -> bool:
    """What ``attention`` does."""
    return attention.supports(features, keys, weights, options) and available()


def run(features: Tensor, keys: Keys, weights: AttentionWeights, options: AttentionOptions) -> Tensor:
    """``reference.attention_layer``, twice differentiable in all but ``keys.null_count``."""
    return attention.layer(COMPILED, features, keys, weights, options)


def _array(x: OptionalTensor) -> np.ndarray | None:
    return None if x is None else array(x)


def _memory(x: OptionalTensor) -> np.ndarray | None:
    return None if x is None else memory(x)


def units(p: Tensor) -> tuple[Tensor, Tensor]:
    rho = p.new_empty(*p.shape[:2], 3)
    loops.units(memory(p), memory(rho))
    return p, rho


def scores(s: Tensor, f: OptionalTensor, tau: float, null: float) -> tuple[Tensor, OptionalTensor]:
    if f is None:
        return attention_passes.scores(s, f, tau, null)
    out = torch.empty_like(s)
    loops.scores(memory(s), array(f), tau, null, memory(out))
    return out, s


def weighted(e: Tensor, w: Tensor, g: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    d, eg = torch.empty_like(w), torch.empty_like(e)
    loops.weighted(*map(array, (e, w, g, null)), memory(d), memory(eg))
    return d, eg


def outputs_back(y_bar: Tensor, y: Tensor, d: Tensor, d_extra: OptionalTensor) -> tuple[Tensor, Tensor]:
    ub, db = torch.empty_like(y), torch.zeros_like(d) if d_extra is None else d_extra.clone()
    loops.outputs_back(*map(array, (y_bar, y, d)), memory(ub), memory(db))
    return ub, db


def scores_back(given: Given, e_extra: OptionalTensor, s_extra: OptionalTensor) -> ScoresBack:
    t, e, g, w, f, s, db, tau, geometry = given
    extra = e_extra is not None
    if extra == geometry or (s_extra is not None) != (extra and f is not None):
        return attention_passes.scores_back(given, e_extra, s_extra)
    s_bar, eg = torch.empty_like(e), torch.empty_like(e)
    read = [array(x) for x in (t, e, g, w, db)]
    if extra:
        loops.scores_back_with(*read, *map(_array, (e_extra, s_extra, f)), tau, memory(s_bar), memory(eg))
        return ScoresBack(s_bar, eg, None, None, None)
    g_bar, w_bar, f_bar = torch.empty_like(e), torch.empty_like(w), None if f is None else torch.empty_like(e)
    loops.scores_back(*read, *map(_array, (f, s)), tau, *map(_memory, (s_bar, eg, g_bar, w_bar, f_bar)))
    return ScoresBack(s_bar, eg, g_bar, f_bar, w_bar)


def units_back(u_bar: Tensor, u: Tensor, rho: Tensor, rho_extra: OptionalTensor) -> tuple[Tensor, Tensor]:
    dot, extra = torch.empty_like(rho), torch.zeros_like(rho) if rho_extra is None else rho_extra
    loops.units_back(memory(u_bar), *map(array, (u, rho, extra)), memory(dot))
    return u_bar, dot


def units_along(ap: Tensor, u: Tensor, p_bar: Tensor, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    ap_dot, rho2 = torch.empty_like(rho), torch.empty_like(rho)
    loops.units_along(memory(ap), *map(array, (u, p_bar, rho)), memory(ap_dot), memory(rho2))
    return ap, ap_dot, rho2


def scores_twice(
    given: Given, s_along: Tensor, t_along: Tensor, ag: OptionalTensor, aw: OptionalTensor, af: OptionalTensor
) -> ScoresTwice:
    t, e, g, w, f, s, db, tau, geometry = given
    if geometry or ag is None or aw is None or (af is None) != (f is None):
        return attention_passes.scores_twice(given, s_along, t_along, ag, aw, af)
    b, eg, d_along = torch.empty_like(e), torch.empty_like(e), torch.empty_like(w)
    s2 = None if f is None else torch.empty_like(e)
    changed, read = map(memory, (s_along, t_along)), map(array, (t, e, g, w, db, ag, aw))
    loops.scores_twice(*changed, *read, *map(_array, (f, s, af)), tau, *map(_memory, (b, eg, d_along, s2)))
    return ScoresTwice(s_along, b, t_along, s2, d_along, eg, None, None, None)


def outputs_twice(y_along: Tensor, y: Tensor, d: Tensor, d_along: Tensor, ub: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y2, d2 = torch.empty_like(y), torch.empty_like(d)
    loops.outputs_twice(memory(y_along), *map(array, (y, d, d_along, ub)), memory(y2), memory(d2))
    return y_along, y2, d2


def units_twice(u2: Tensor, u_along: Tensor, p_bar: Tensor, dot: Tensor, ap_dot: Tensor) -> None:
    loops.units_twice(memory(u2), *map(array, (u_along, p_bar, dot, ap_dot)))


def norm_twice(
    az: Tensor, z: Tensor, z_bar: Tensor, o_bar: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    z2, a = torch.empty_like(z), torch.empty_like(z)
    given = map(array, (az, z, z_bar, o_bar, mean[..., 0], rstd[..., 0], scale))
    loops.norm_twice(*given, memory(z2), memory(a))
    return z2, a


COMPILED = Passes(
    units, scores, weighted, outputs_back, scores_back, units_back, units_along, scores_twice, outputs_twice, units_twice,
    norm_twice,
)  # fmt: skip
