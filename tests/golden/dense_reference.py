"""DeePMD-kit's DPA-1 written down literally: padded to ``sel`` slots, dense, phantom rows and all. Slow on purpose.

It reads the dict of a neutral model file and shares no code with the package.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

ACTIVATIONS = {
    "tanh": torch.tanh, "relu": torch.relu, "relu6": torch.nn.functional.relu6, "sigmoid": torch.sigmoid,
    "softplus": torch.nn.functional.softplus, "silu": lambda x: x * torch.sigmoid(x), "linear": lambda x: x,
    "none": lambda x: x,
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}  # fmt: skip


def silut(x: Tensor, threshold: float = 3.0) -> Tensor:
    t = torch.tensor(threshold, dtype=x.dtype)
    s = torch.sigmoid(t)
    slope = s + t * s * (1 - s)
    return torch.where(x < t, x * torch.sigmoid(x), torch.tanh(slope * (x - t)) + t * s)


def tensor(value: object) -> Tensor:
    return torch.as_tensor(np.asarray(value), dtype=torch.float64)


def dense(layer: dict, x: Tensor) -> Tensor:
    v, name = layer["@variables"], layer["activation_function"].lower()
    y = x @ tensor(v["w"])
    if v["b"] is not None:
        y = y + tensor(v["b"])
    y = silut(y, float(name.partition(":")[2] or 3)) if name.startswith("silut") else ACTIVATIONS[name](y)
    if v["idt"] is not None:
        y = y * tensor(v["idt"])
    if layer["resnet"] and y.shape[-1] == x.shape[-1]:
        y = y + x
    elif layer["resnet"] and y.shape[-1] == 2 * x.shape[-1]:
        y = y + torch.cat([x, x], -1)
    return y


def network(net: dict, x: Tensor) -> Tensor:
    for layer in net["layers"]:
        x = dense(layer, x)
    return x


def slots(types: list[int], coord: Tensor, box: Tensor | None, model: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Neighbour of each slot (N, S) as extended index (−1: none), extended coordinates and types."""
    rcut, sel = model["descriptor"]["rcut"], sum(model["descriptor"]["sel"])
    shifts = torch.zeros(1, 3, dtype=torch.float64)
    if box is not None:
        b = box.detach()
        heights = [
            abs(torch.linalg.det(b)) / torch.linalg.norm(torch.linalg.cross(b[i - 2], b[i - 1])) for i in range(3)
        ]
        ranges = [range(-math.ceil(rcut / h) - 1, math.ceil(rcut / h) + 2) for h in heights]
        images = sorted(itertools.product(*ranges), key=lambda s: sum(k * k for k in s))
        shifts = tensor(images) @ box
    extended = (coord.unsqueeze(0) + shifts.unsqueeze(1)).reshape(-1, 3)
    kinds = torch.tensor(types * len(shifts))
    table = torch.full((len(types), sel), -1)
    for i in range(len(types)):
        r = torch.linalg.norm(extended - coord[i], dim=-1)
        r[i] = math.inf
        near = [int(j) for j in torch.argsort(r, stable=True) if r[j] <= rcut][:sel]
        for k, j in enumerate(near):
            pair = {(types[i], int(kinds[j])), (int(kinds[j]), types[i])}
            hidden = pair & {tuple(p) for p in model["pair_exclude_types"]}
            table[i, k] = -1 if hidden else j
    return table, extended, kinds


def atomic_energies(model: dict, types: list[int], coord: Tensor, box: Tensor | None, econf: Tensor) -> Tensor:
    """(N,) eV. econf (T, 118): the electron configurations of the model's types."""
    d = model["descriptor"]
    table, extended, kinds = slots(types, coord, box, model)
    real = table >= 0
    index = table.clamp(min=0)  # an empty slot borrows the type of atom 0
    t = torch.tensor(types)
    excluded = {tuple(p) for p in d["exclude_types"]} | {tuple(p[::-1]) for p in d["exclude_types"]}
    hidden = torch.tensor([[(a, int(kinds[j])) in excluded for j in row] for a, row in zip(types, index, strict=True)])
    hidden = hidden & real
    far = coord.unsqueeze(1) + tensor([2 * d["rcut"], 0, 0])
    vector = torch.where(real.unsqueeze(-1), extended[index], far) - coord.unsqueeze(1)
    r = torch.linalg.norm(vector, dim=-1)
    u = ((r - d["rcut_smth"]) / (d["rcut"] - d["rcut_smth"])).clamp(0, 1)
    sw = (u**3 * (-6 * u**2 + 15 * u - 10) + 1) * real
    p = d["env_protection"]
    row = sw.unsqueeze(-1) * torch.cat([1 / (r + p).unsqueeze(-1), vector / (r + p).unsqueeze(-1) ** 2], -1)
    R = (row - tensor(d["@variables"]["davg"])[t]) / tensor(d["@variables"]["dstd"])[t]
    R = R * ~hidden.unsqueeze(-1)
    mask = real & ~hidden
    sw = sw * mask

    inputs = (
        econf / math.sqrt(econf.shape[1]) if d["use_econf_tebd"] else torch.eye(len(model["type_map"]), dtype=R.dtype)
    )
    E = network(d["type_embedding"]["embedding"], inputs)
    parts = [E[kinds[index]]]
    if not d["type_one_side"]:
        parts.append(E[t].unsqueeze(1).expand_as(parts[0]))
    if d["tebd_input_mode"] == "concat":
        G = network(d["embeddings"]["networks"][0], torch.cat([R[..., :1], *parts], -1))
    else:
        g = network(d["embeddings"]["networks"][0], R[..., :1])
        f = network(d["embeddings_strip"]["networks"][0], torch.cat(parts, -1))
        G = g * (f * sw.unsqueeze(-1) if d["smooth_type_embedding"] else f) + g
    direction = torch.nn.functional.normalize(R[..., 1:], dim=-1, eps=1e-12)
    for layer in d["attention_layers"]["attention_layers"]:
        G = attention(layer, G, mask, sw, direction)
    M = G.transpose(1, 2) @ R / sum(d["sel"])
    D = (M @ M[:, : d["axis_neuron"]].transpose(1, 2)).flatten(1)
    if d["concat_output_tebd"]:
        D = torch.cat([D, E[t]], -1)
    fitting = model["fitting"]
    e = network(fitting["nets"]["networks"][0], D)[:, 0]
    if any(x is not None for x in fitting["atom_ener"] or []):
        e = e - network(fitting["nets"]["networks"][0], torch.zeros_like(D))[:, 0]
    e = e + tensor(fitting["@variables"]["bias_atom_e"])[t, 0] + tensor(model["@variables"]["out_bias"])[0, t, 0]
    kept = torch.tensor([k not in model["atom_exclude_types"] for k in types])
    return torch.where(kept, e, 0.0)


def attention(layer: dict, G: Tensor, mask: Tensor, sw: Tensor, direction: Tensor) -> Tensor:
    a, norm = layer["attention_layer"], layer["attn_layer_norm"]
    q, k, v = dense(a["in_proj"], G).chunk(3, -1)
    if a["normalize"]:
        q, k, v = (torch.nn.functional.normalize(x, dim=-1, eps=1e-12) for x in (q, k, v))
    factor = a["temperature"] if a["temperature"] is not None else (a["hidden_dim"] * a["scaling_factor"]) ** -0.5
    A = (q * factor) @ k.transpose(1, 2)
    pair = sw.unsqueeze(2) * sw.unsqueeze(1)
    if a["smooth"]:
        P = torch.softmax((A + 20) * pair - 20, -1)
    else:
        some = mask.any(-1)[:, None, None]
        P = torch.softmax(torch.where(mask.unsqueeze(1) | ~some, A, -math.inf), -1)
    P = P * mask.unsqueeze(2)
    if a["smooth"]:
        P = P * pair
    if a["dotr"]:
        P = P * (direction @ direction.transpose(1, 2))
    X = G + dense(a["out_proj"], P @ v)
    mean, var = X.mean(-1, keepdim=True), X.var(-1, unbiased=False, keepdim=True)
    return (X - mean) / torch.sqrt(var + norm["eps"]) * tensor(norm["@variables"]["w"]) + tensor(
        norm["@variables"]["b"]
    )


def evaluate(model: dict, types: list[int], coord: np.ndarray, box: np.ndarray | None, econf: np.ndarray) -> dict:
    """Energy, atomic energies, forces and virial as numpy."""
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    x = tensor(coord).requires_grad_(True)
    deform = torch.eye(3, dtype=torch.float64) + strain
    cell = None if box is None else tensor(box) @ deform
    e = atomic_energies(model, types, x @ deform, cell, tensor(econf))
    gradient, dstrain = torch.autograd.grad(e.sum(), (x, strain))
    return {
        "energy": e.sum().detach().numpy(), "atomic_energy": e.detach().numpy(),
        "forces": -gradient.numpy(), "virial": -dstrain.numpy(),
    }  # fmt: skip
