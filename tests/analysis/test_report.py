"""Report pages: complete, escaped, self-contained, and alive in a browser."""

import html
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.data import chemical_symbols

from dpa1.analysis.element_plots import element_page
from dpa1.analysis.elements import element_map
from dpa1.analysis.page import Scene, Section, Table, write_page
from dpa1.analysis.report import survey, write_report
from dpa1.analysis.worst import MOST_ATOMS, Worst, WorstFrame, scene
from dpa1.frames import make_frame
from tests.contracts.systems import example_options, predict, random_frame, random_potential

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=2000"
).split()
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")


def opened(path, folder, *options):
    """The page after its scripts ran, and what the browser's console said."""
    command = [BROWSER, *OPTIONS, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def assert_self_contained(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\(|@import|<link(?! rel=\"icon\" href=\"data:,\")|fetch\(|XMLHttpRequest", text)
    assert all(address.startswith("data:") for address in re.findall(r"(?:src|href)=\"([^\"]*)", text))
    assert "default-src 'none'" in text
    assert path.stat().st_size < 6_000_000


@pytest.fixture(scope="module")
def potential():
    return random_potential(example_options(attention_layers=1))


@pytest.fixture(scope="module")
def frames(potential):
    """Known errors: 10 meV/atom, and forces 0.1·(k + 1) eV/Å; the last frame has no forces, the one before no energy."""
    out = []
    for k in range(5):
        frame = random_frame(k, atoms=4 + k, pbc=k != 2)
        own = predict(potential, frame)
        out.append(
            frame.replace(
                energy=None if k == 3 else float(own["energy"][0]) + 0.01 * len(frame),
                forces=None if k == 4 else own["forces"] + 0.1 * (k + 1),
                source="<script>alert(1)</script>",
                index=k,
            )
        )
    return out


@pytest.fixture(scope="module")
def report(potential, frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "metrics.csv").write_text("step,train_force_rmse,valid_force_rmse\n1,0.3,0.4\n2,0.2,0.3\n3,0.1,0.2\n")
    before = Section("Before and after", ["A & B"], tables=[Table(("", "meV/Å"), [["before", 200], ["after", 50]])])
    path = folder / "report.html"
    write_report(
        path, title="Run <b>1</b>", evaluated=[survey(potential, frames, "test")], metrics=folder / "metrics.csv",
        sections=[before], config="training: {steps: 3}\n", facts=[("steps", "3")],
    )  # fmt: skip
    return path


def test_sections_stand_in_order(report):
    text = report.read_text(encoding="utf-8")
    assert [html.unescape(title) for title in re.findall("<h2>(.*?)</h2>", text)] == [
        "Learning curves", "Before and after", "Errors on test data", "Worst frames of the test data",
        "Configuration and versions",
    ]  # fmt: skip
    assert "Run &lt;b&gt;1&lt;/b&gt;" in text
    assert "<script>alert" not in text
    assert "A &amp; B" in text
    assert "training: {steps: 3}" in text
    assert text.count("data:image/png;base64,") == 2
    assert_self_contained(report)


def test_only_what_was_given_appears(tmp_path):
    write_report(tmp_path / "r.html", title="Empty")
    text = (tmp_path / "r.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["Configuration and versions"]
    assert "<canvas" not in text
    assert "<img" not in text


def test_a_file_name_that_is_not_utf_8(tmp_path):
    write_report(tmp_path / "r.html", title=f"Run {os.fsdecode(bytes([0x61, 0xE4]))}")
    assert "Run a\\udce4" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_without_matplotlib_the_page_says_so(potential, frames, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_report(tmp_path / "r.html", title="No pictures", evaluated=[survey(potential, frames, "test")])
    text = html.unescape((tmp_path / "r.html").read_text())
    assert text.count("pip install 'dpa1[plots]'") == 1
    assert '<td class="text">Cu</td>' in text
    assert "<img" not in text


def test_worst_frames(potential, frames):
    kept = survey(potential, frames, "test").worst
    assert [worst.frame.index for worst in kept] == [3, 2, 1, 0, 4]
    assert [worst.rmse for worst in kept] == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.01])
    assert kept[0].energy is None
    assert kept[-1].forces is None
    collector = Worst(2)
    for frame in frames:
        item = {"energy": torch.zeros(1), "forces": torch.zeros(len(frame), 3)}
        collector.observe([frame], item, None)
    assert len(collector.frames()) == 2


def test_a_scene_shows_atoms_cell_and_errors(frames):
    frame = make_frame([1, 8], [[-1.0, 0.5, 0.5], [2.0, 2.0, 2.0]], np.eye(3) * 4.0, (True, True, False))
    forces = np.array([[0.0, 0.0, 0.0], [0.0, 0.2, 0.0]])
    shown = scene(WorstFrame(frame, -0.005, forces))
    assert shown.points[0][:3] == [3.0, 0.5, 0.5]
    assert len(shown.lines) == 13
    assert shown.lines[-1] == [2.0, 2.0, 2.0, 2.0, 3.5, 2.0, "#7a1fd1"]
    assert [text for text, _ in shown.key] == ["H", "O"]
    assert dict(shown.key)["O"] == shown.points[1][4]
    assert "energy -5 meV/atom" in shown.caption
    assert "largest 200 meV/Å on O, atom 1" in shown.caption
    assert len(scene(WorstFrame(frame.replace(pbc=np.zeros(3, bool)), 0.0, None)).lines) == 0
    many = make_frame(np.full(1500, 1), np.random.default_rng(0).uniform(0, 50, (1500, 3)), np.zeros((3, 3)), False)
    drawn = scene(WorstFrame(many, 0.0, np.ones((1500, 3))))
    assert len(drawn.points) == MOST_ATOMS
    assert "1000 of 1500 atoms are drawn" in drawn.caption


@needs_browser
def test_report_in_a_browser(report, frames, tmp_path):
    text, said = opened(report, tmp_path)
    assert said == []
    assert [int(n) for n in re.findall(r'data-drawn="(\d+)"', text)] == [len(frames[k]) for k in (3, 2, 1, 0, 4)]
    assert "<h2>Before and after</h2>" in text


@needs_browser
def test_a_page_of_96_elements_fits_a_phone(tmp_path):
    """Long cells are wrapped: no table needs more than the width of the page, which itself never scrolls sideways."""
    symbols = " ".join(chemical_symbols[1:97])
    row = ("training", "15,000", "400,000", "1–300", "energy 15,000, forces 15,000, virial 15,000", symbols)
    wide = Section("Data", tables=[Table([f"c{k}" for k in range(6)], [row], text=(0, 4, 5))])
    write_page(tmp_path / "p.html", "P" * 90, "", [wide])
    ask = "<script>document.body.dataset.widths = [document.documentElement.scrollWidth, document.querySelector('table').offsetWidth]</script>"
    text = (tmp_path / "p.html").read_text()
    (tmp_path / "p.html").write_text(text.replace("</body>", ask + "</body>"))
    for width in (1100, 500):
        text, said = opened(tmp_path / "p.html", tmp_path, f"--window-size={width},900")
        assert said == []
        page, table = map(int, re.search(r'data-widths="(\d+),(\d+)"', text).groups())
        assert page <= width
        assert table <= (width if width > 1000 else 800)


@needs_browser
def test_a_broken_page_is_noticed(tmp_path):
    write_page(tmp_path / "p.html", "Broken", "", [Section("S", scenes=[Scene("c", [[0, 0, 0, 1, "#000", "", ""]])])])
    whole = (tmp_path / "p.html").read_text()
    (tmp_path / "p.html").write_text(whole.replace("JSON.parse(", "JSON.parsed("))
    text, said = opened(tmp_path / "p.html", tmp_path)
    assert "data-drawn" not in text
    assert "JSON.parsed is not a function" in said[0]


@needs_browser
def test_a_page_may_load_nothing(report, tmp_path):
    path = tmp_path / "loads.html"
    path.write_text(report.read_text().replace("<h1>", '<img src="http://127.0.0.1:9/x.png"><h1>'))
    assert any("Content Security Policy" in line for line in opened(path, tmp_path)[1])


@needs_browser
def test_elements_in_a_browser(tmp_path):
    found = element_map(random_potential(example_options(elements=("H", "O", "Al", "Cu", "Au"), type_embedding=6)))
    page = tmp_path / "elements.html"
    element_page(found, page, title="T", subtitle="S", tables=[], texts=["five elements"])
    assert_self_contained(page)
    text, said = opened(page, tmp_path)
    assert said == []
    assert re.findall(r'data-drawn="(\d+)"', text) == ["5", "5"]
    stored = json.loads(re.search(r'<script type="application/json" id="section-1-scene-1">(.*?)</script>', text)[1])
    assert "period 4</span>" in text
    assert "group 13</span>" in text
    assert [point[5] for point in stored["points"]] == ["H", "O", "Al", "Cu", "Au"]
    np.testing.assert_allclose([p[:3] for p in stored["points"]], found.components[:, :3], rtol=1e-4)
