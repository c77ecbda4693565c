"""Pictures are drawn without touching matplotlib's global state."""

import matplotlib
import numpy as np
import pytest

from dpa1.analysis.plots import learning_curve, parity, read_csv, save, thermo
from dpa1.errors import UserError


def test_parity(tmp_path):
    before = dict(matplotlib.rcParams)
    rng = np.random.default_rng(0)
    points = {key: (x := rng.normal(size=50), x + 0.1) for key in ("energy", "force")}
    points["virial"] = (np.zeros(0), np.zeros(0))
    result = {f"{key}_{kind}": 0.1 for key in ("energy", "force") for kind in ("rmse", "mae")}
    figure = parity(points, result)
    assert [axis.get_title() for axis in figure.axes] == [
        "RMSE 100, MAE 100 meV/atom", "RMSE 100, MAE 100 meV/Å"
    ]  # fmt: skip
    save(figure, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes()[:4] == b"\x89PNG"
    assert dict(matplotlib.rcParams) == before


def test_parity_of_a_single_point_shows_no_rounding_errors(tmp_path):
    figure = parity(
        {"energy": (np.array([-2.0]), np.array([-2.0 + 1e-13]))}, {"energy_rmse": 1e-13, "energy_mae": 1e-13}
    )
    (axis,) = figure.axes
    assert np.ptp(axis.get_xlim()) > 1e-3
    assert axis.lines[0].get_markersize() > 5
    figure.canvas.draw()
    assert axis.xaxis.get_offset_text().get_text() == ""


def test_learning_curve(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("step,train_energy_rmse,valid_energy_rmse,train_force_rmse\n10,0.2,,1.0\n20,0.1,0.15,0.5\n")
    figure = learning_curve(log)
    energy, force = figure.axes
    assert {line.get_label() for line in energy.lines} == {"train", "valid"}
    assert [list(line.get_ydata()) for line in energy.lines] == [[200.0, 100.0], [150.0]]
    assert force.get_title() == "force RMSE (meV/Å)"
    assert all(line.get_marker() == "." for line in energy.lines)  # a curve of one point is seen
    log.write_text("step,train_energy_rmse,valid_energy_rmse\n10,0.2,0\n20,inf,0\n")
    assert [list(line.get_xdata()) for line in learning_curve(log).axes[0].lines] == [[10.0]]
    log.write_text("step,loss\n1,2\n")
    with pytest.raises(UserError, match="no column of errors"):
        learning_curve(log)


def test_thermo(tmp_path):
    log = tmp_path / "thermo.csv"
    columns = "step,time_fs,temperature_K,potential_eV,kinetic_eV,total_eV,drift_meV_per_atom,pressure_GPa,volume_A3"
    log.write_text(columns + "\n0,0,300,-5,1,-4,0,,\n10,10,290,-5.1,1.1,-4,0.01,,\n")
    labels = [axis.get_ylabel() for axis in thermo(log).axes]
    assert labels == ["temperature (K)", "Δ energy (eV)", "drift (meV/atom)"]
    log.write_text(columns + "\n0,0,300,-5,1,-4,0,1,100\n10,10,290,-5.1,1.1,-4,0.01,1.1,101\n")
    assert len(thermo(log).axes) == 5
    log.write_text(columns + "\n")
    with pytest.raises(UserError, match="no rows"):
        thermo(log)


def test_an_empty_field_is_nan(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,\n2,3\n")
    table = read_csv(tmp_path / "a.csv")
    assert np.isnan(table["b"][0])
    assert table["a"][1] == 2
