"""The loops of ``compiled_attention``: arrays without gaps, the last of which are written to; see ``attention_passes``."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpa1.compiled import loops

Array = np.ndarray
OptionalArray = Any  # an array or None


@loops
def units(p: Array, rho: Array) -> None:
    atoms, slots, wide = p.shape
    width = wide // 3
    least = p.dtype.type(1e-12)
    for a in range(atoms):
        for i in range(slots):
            for k in range(3):
                x = p[a, i, k * width : (k + 1) * width]
                square = p.dtype.type(0)
                for c in range(width):
                    square += x[c] * x[c]
                inverse = p.dtype.type(1) / max(np.sqrt(square), least)
                for c in range(width):
                    x[c] *= inverse
                rho[a, i, k] = inverse


@loops
def scores(s: Array, f: Array, temperature: float, null_score: float, out: Array) -> None:
    tau, null = s.dtype.type(temperature), s.dtype.type(null_score)
    atoms, slots, _ = s.shape
    for a in range(atoms):
        for i in range(slots):
            s_, f_, out_ = s[a, i], f[a, i], out[a, i]
            for j in range(slots):
                x = tau * s_[j] - null
                s_[j] = x
                out_[j] = x * f_[j] + null


@loops
def weighted(e: Array, w: Array, g: Array, null: Array, d: Array, eg: Array) -> None:
    atoms, slots, _ = e.shape
    for a in range(atoms):
        w_ = w[a]
        for i in range(slots):
            e_, g_, eg_ = e[a, i], g[a, i], eg[a, i]
            total = e.dtype.type(0)
            for j in range(slots):
                eg_[j] = e_[j] * g_[j]
                total += e_[j] * w_[j]
            d[a, i] = total + null[a]


@loops
def outputs_back(y_bar: Array, y: Array, d: Array, ub: Array, db: Array) -> None:
    atoms, slots, width = y.shape
    for a in range(atoms):
        for i in range(slots):
            y_bar_, y_, ub_ = y_bar[a, i], y[a, i], ub[a, i]
            inverse, along = y.dtype.type(1) / d[a, i], y.dtype.type(0)
            for c in range(width):
                x = y_bar_[c] * inverse
                ub_[c] = x
                along += x * y_[c]
            db[a, i] -= along


@loops
def scores_back(
    t: Array,
    e: Array,
    g: Array,
    w: Array,
    db: Array,
    f: OptionalArray,
    s: OptionalArray,
    temperature: float,
    s_bar: Array,
    eg: Array,
    g_bar: Array,
    w_bar: Array,
    f_bar: OptionalArray,
) -> None:
    tau = e.dtype.type(temperature)
    atoms, slots, _ = e.shape
    for a in range(atoms):
        w_, w_bar_ = w[a], w_bar[a]
        w_bar_[:] = 0
        for i in range(slots):
            t_, e_, g_, s_bar_, eg_, g_bar_, x = t[a, i], e[a, i], g[a, i], s_bar[a, i], eg[a, i], g_bar[a, i], db[a, i]
            if f is None:
                for j in range(slots):
                    weighted = e_[j] * g_[j]
                    eg_[j] = weighted
                    g_bar_[j] = e_[j] * t_[j]
                    w_bar_[j] += e_[j] * x
                    s_bar_[j] = tau * (weighted * t_[j] + e_[j] * x * w_[j])
            else:
                f_, s_, f_bar_ = f[a, i], s[a, i], f_bar[a, i]
                for j in range(slots):
                    weighted = e_[j] * g_[j]
                    eg_[j] = weighted
                    g_bar_[j] = e_[j] * t_[j]
                    w_bar_[j] += e_[j] * x
                    bar = weighted * t_[j] + e_[j] * x * w_[j]
                    f_bar_[j] = bar * s_[j]
                    s_bar_[j] = tau * bar * f_[j]


@loops
def scores_back_with(
    t: Array,
    e: Array,
    g: Array,
    w: Array,
    db: Array,
    e_extra: Array,
    s_extra: OptionalArray,
    f: OptionalArray,
    temperature: float,
    s_bar: Array,
    eg: Array,
) -> None:
    tau = e.dtype.type(temperature)
    atoms, slots, _ = e.shape
    for a in range(atoms):
        w_ = w[a]
        for i in range(slots):
            t_, e_, g_, more_, s_bar_, eg_, x = (
                t[a, i],
                e[a, i],
                g[a, i],
                e_extra[a, i],
                s_bar[a, i],
                eg[a, i],
                db[a, i],
            )
            if f is None:
                for j in range(slots):
                    eg_[j] = e_[j] * g_[j]
                    s_bar_[j] = tau * e_[j] * (g_[j] * t_[j] + x * w_[j] + more_[j])
            else:
                f_, s_more_ = f[a, i], s_extra[a, i]
                for j in range(slots):
                    eg_[j] = e_[j] * g_[j]
                    s_bar_[j] = tau * (f_[j] * e_[j] * (g_[j] * t_[j] + x * w_[j] + more_[j]) + s_more_[j])


@loops
def units_back(u_bar: Array, u: Array, rho: Array, extra: Array, dot: Array) -> None:
    atoms, slots, wide = u.shape
    width = wide // 3
    for a in range(atoms):
        for i in range(slots):
            for k in range(3):
                x, u_ = u_bar[a, i, k * width : (k + 1) * width], u[a, i, k * width : (k + 1) * width]
                total, factor = u.dtype.type(0), rho[a, i, k]
                for c in range(width):
                    total += x[c] * u_[c]
                dot[a, i, k] = total
                total += factor * extra[a, i, k]
                for c in range(width):
                    x[c] = factor * (x[c] - total * u_[c])


@loops
def units_along(ap: Array, u: Array, p_bar: Array, rho: Array, ap_dot: Array, rho2: Array) -> None:
    atoms, slots, wide = u.shape
    width = wide // 3
    for a in range(atoms):
        for i in range(slots):
            for k in range(3):
                x, u_ = ap[a, i, k * width : (k + 1) * width], u[a, i, k * width : (k + 1) * width]
                p_ = p_bar[a, i, k * width : (k + 1) * width]
                total, other, factor = u.dtype.type(0), u.dtype.type(0), rho[a, i, k]
                for c in range(width):
                    total += x[c] * u_[c]
                    other += x[c] * p_[c]
                ap_dot[a, i, k] = total
                rho2[a, i, k] = other / factor
                for c in range(width):
                    x[c] = factor * (x[c] - total * u_[c])


@loops
def scores_twice(
    s_along: Array,
    t_along: Array,
    t: Array,
    e: Array,
    g: Array,
    w: Array,
    db: Array,
    ag: Array,
    aw: Array,
    f: OptionalArray,
    s: OptionalArray,
    af: OptionalArray,
    temperature: float,
    b: Array,
    eg: Array,
    d_along: Array,
    s2: OptionalArray,
) -> None:
    """S̄ takes the memory of ``s_along``, ∂Φ/∂e that of ``t_along``."""
    tau = e.dtype.type(temperature)
    atoms, slots, _ = e.shape
    for a in range(atoms):
        w_, aw_ = w[a], aw[a]
        for i in range(slots):
            s_along_, t_along_, t_, e_, g_, ag_ = s_along[a, i], t_along[a, i], t[a, i], e[a, i], g[a, i], ag[a, i]
            b_, eg_, x, total = b[a, i], eg[a, i], db[a, i], e.dtype.type(0)
            if f is None:
                for j in range(slots):
                    along = tau * s_along_[j]
                    bar = x * w_[j] + g_[j] * t_[j]
                    s_along_[j] = tau * e_[j] * bar
                    t_along_[j] = bar * along + g_[j] * t_along_[j] + ag_[j] * t_[j] + x * aw_[j]
                    eg_[j] = e_[j] * g_[j]
                    b_[j] = e_[j] * (along * g_[j] + ag_[j])
                    total += e_[j] * (along * w_[j] + aw_[j])
            else:
                f_, s_, af_, s2_ = f[a, i], s[a, i], af[a, i], s2[a, i]
                for j in range(slots):
                    along = tau * s_along_[j] * f_[j] + af_[j] * s_[j]
                    bar = x * w_[j] + g_[j] * t_[j]
                    s2_[j] = e_[j] * bar * af_[j]
                    s_along_[j] = tau * e_[j] * bar * f_[j]
                    t_along_[j] = bar * along + g_[j] * t_along_[j] + ag_[j] * t_[j] + x * aw_[j]
                    eg_[j] = e_[j] * g_[j]
                    b_[j] = e_[j] * (along * g_[j] + ag_[j])
                    total += e_[j] * (along * w_[j] + aw_[j])
            d_along[a, i] = total


@loops
def outputs_twice(y_along: Array, y: Array, d: Array, d_along: Array, ub: Array, y2: Array, d2: Array) -> None:
    atoms, slots, width = y.shape
    for a in range(atoms):
        for i in range(slots):
            y_along_, y_, ub_, y2_ = y_along[a, i], y[a, i], ub[a, i], y2[a, i]
            inverse, along, total = y.dtype.type(1) / d[a, i], d_along[a, i], y.dtype.type(0)
            for c in range(width):
                x = (y_along_[c] - along * y_[c]) * inverse
                y_along_[c] = x
                y2_[c] = -along * ub_[c]
                total -= ub_[c] * x
            d2[a, i] = total


@loops
def units_twice(u2: Array, u_along: Array, p_bar: Array, dot: Array, ap_dot: Array) -> None:
    atoms, slots, wide = u2.shape
    width = wide // 3
    for a in range(atoms):
        for i in range(slots):
            for k in range(3):
                x, u_ = u2[a, i, k * width : (k + 1) * width], u_along[a, i, k * width : (k + 1) * width]
                p_ = p_bar[a, i, k * width : (k + 1) * width]
                first, second = dot[a, i, k], ap_dot[a, i, k]
                for c in range(width):
                    x[c] -= first * u_[c] + second * p_[c]


@loops
def norm_twice(
    az: Array, z: Array, z_bar: Array, o_bar: Array, mean: Array, rstd: Array, scale: Array, z2: Array, a: Array
) -> None:
    atoms, slots, channels = z.shape
    zero, count = z.dtype.type(0), z.dtype.type(channels)
    for n in range(atoms):
        for i in range(slots):
            az_, z_, z_bar_, o_bar_, z2_, a_ = az[n, i], z[n, i], z_bar[n, i], o_bar[n, i], z2[n, i], a[n, i]
            m, r = mean[n, i], rstd[n, i]
            total, an, hn, phi = zero, zero, zero, zero
            for c in range(channels):
                x = (z_[c] - m) * r
                total += az_[c]
                an += az_[c] * x
                hn += o_bar_[c] * scale[c] * x
                phi += az_[c] * z_bar_[c]
            total, an, hn, phi = total / count, an / count, hn / count, phi / count
            for c in range(channels):
                x = (z_[c] - m) * r
                y = r * (az_[c] - total - x * an)
                a_[c] = y
                z2_[c] = -r * (x * phi + y * hn + z_bar_[c] * an)
