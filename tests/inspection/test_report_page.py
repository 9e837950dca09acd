"""The report's page and files: numbers equal those of the metric, and figures are readable."""

import base64
import csv
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch

from report_cases import run_of  # isort: skip
from discfused.inspection import figures, page
from discfused.inspection.page import OF_CLASSES, OF_FEATURES, Report, features_shown

RUNS = [run_of(12, 40, "one"), run_of(12, 30, "<two>")]


class Tables(HTMLParser):
    """Parses the cells of all tables, and all addresses that the page loads."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.loaded, self._cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = ""
        given = dict(attributes)
        self.loaded += [given[name] for name in ("src", "srcset", "data") if name in given]
        if tag == "link":
            self.loaded.append(given["href"])

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self._cell)
            self._cell = None


def shown(value) -> str:
    """A number of the metric as text of the page."""
    return format(float(value), ".4g")


def test_every_number_of_the_page_is_the_metrics():
    rows = Tables(Report(RUNS).page).rows
    values = [run.last for run in RUNS]
    live = [each.live for each in values]
    assert rows[:7] == [
        ["", "one", "<two>"],
        ["mean Gini impurity", *(shown(v.mean_gini) for v in values)],
        ["mean effective number of classes",
         *(shown(v.effective_classes[k].mean()) for v, k in zip(values, live, strict=True))],
        ["mean class selectivity index",
         *(shown(v.selectivity[k].mean()) for v, k in zip(values, live, strict=True))],
        ["KL to the classes of the data, nats", *(shown(v.kl) for v in values)],
        ["live fraction of the features", "1", "1"],
        ["classes without a feature", *(shown(v.classes_without_feature) for v in values)],
    ]  # fmt: skip
    assert values[0].classes_without_feature > 0
    of_features = iter(rows[7:])
    for run in RUNS:
        next(of_features)  # the head
        for feature in features_shown(run):
            v = run.last
            numbers = (v.strongest_share, v.gini, v.effective_classes, v.selectivity, v.mass)
            assert next(of_features) == [
                str(feature), f"class {v.strongest_class[feature]}",
                *(shown(number[feature]) for number in numbers),
            ]  # fmt: skip
    assert next(of_features, None) is None


def test_the_numbers_of_layers():
    runs = [run._replace(layers={"early": RUNS[1].last, **run.layers}) for run in RUNS[:1]]
    *_, first, second = Tables(Report(runs).page).rows
    for row, name, values in (
        (first, "early", RUNS[1].last), (second, "input of fc", RUNS[0].last)
    ):  # fmt: skip
        assert row == [f"one, {name}", *map(shown, values.summary().values())]


def test_the_files_hold_every_number(tmp_path):
    path = Report(RUNS).save(tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "classes.csv", "distributions.png", "features-per-class.png", "features.csv",
        "heat-map.png", "images-1.png", "images-2.png", "report.html", "report.json",
    ]  # fmt: skip
    document = json.loads((path.parent / "report.json").read_text())
    features = [*csv.DictReader((path.parent / "features.csv").open())]
    classes = [*csv.DictReader((path.parent / "classes.csv").open())]
    for run, written in zip(RUNS, document["runs"], strict=True):
        (layer,) = written["layers"]
        assert layer["summary"] == run.last.summary()
        of_run = [row for row in features if row["run"] == run.name]
        for field in OF_FEATURES:
            expected = getattr(run.last, field).tolist()
            assert layer["features"][field] == expected
            assert [row[field] for row in of_run] == [str(value) for value in expected]
        of_run = [row for row in classes if row["run"] == run.name]
        for field, column in zip(OF_CLASSES, ("samples", "features"), strict=True):
            expected = getattr(run.last, field).tolist()
            assert layer["classes"][field] == expected
            assert [row[column] for row in of_run] == [str(value) for value in expected]
    image = document["runs"][0]["images"][0]
    assert image["samples"][0]["activation"] == RUNS[0].exciting.of(image["feature"])[0].activation


def test_figures_of_an_earlier_report_in_the_folder_are_removed(tmp_path):
    of_layers = RUNS[0]._replace(layers={"early": RUNS[0].last, **RUNS[0].layers})
    Report([of_layers, RUNS[1]]).save(tmp_path)
    (tmp_path / "images-of-mine.png").write_bytes(b"")
    earlier = {file.name for file in tmp_path.iterdir()}
    Report(RUNS[:1]).save(tmp_path)
    left = {file.name for file in tmp_path.iterdir()}
    assert earlier - left == {"images-2.png", "layers.png"} and not left - earlier


def test_how_a_number_is_written():
    assert [*map(page.number, (12345.0, 12345, 0.0, 1 / 3, 1e-7, float("inf")))] == [
        "12,345", "12,345", "0", "0.3333", "1e-07", "inf"
    ]  # fmt: skip


def test_what_is_not_finite_is_null():
    histogram = RUNS[0].last._replace(mean_gini=torch.tensor(torch.nan))
    run = RUNS[0]._replace(layers={"fc": histogram})
    (layer,) = Report([run]).document()["runs"][0]["layers"]
    assert layer["summary"]["mean_gini"] is None
    assert ["mean Gini impurity", "nan"] in Tables(Report([run]).page).rows


def test_the_page_needs_no_other_file_and_no_network():
    report = Report(RUNS)
    text = report.page
    loaded = Tables(text).loaded
    assert len(loaded) == 2 * len(report.pictures)
    pictures = [*(picture.dark for picture in report.pictures),
                *(picture.light for picture in report.pictures)]  # fmt: skip
    for address in loaded:
        kind, _, data = address.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data) in pictures
    assert all(picture.light != picture.dark for picture in report.pictures)
    assert not re.search(r"<script|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "&lt;two&gt;" in text and "<two>" not in text


def test_in_a_notebook_it_is_a_frame_of_its_own():
    report = Report(RUNS)
    frame = report._repr_html_()
    assert Tables(frame).loaded == []
    (inside,) = re.findall(r'^<iframe srcdoc="([^"]*)" ', frame)
    assert html.unescape(inside) == report.page
    gini = shown(RUNS[0].last.mean_gini)
    assert repr(report).startswith(f"one: mean_gini {gini}, mean_effective_classes ")


def test_features_shown_are_the_purest_of_a_class_each_and_the_most_mixed():
    run = RUNS[0]
    gini, strongest = run.last.gini, run.last.strongest_class
    chosen = features_shown(run)
    pure, mixed = chosen[: page.PURE], chosen[page.PURE :]
    assert len({int(strongest[feature]) for feature in pure}) == page.PURE
    for feature in pure:
        assert gini[feature] == gini[strongest == strongest[feature]].min()
    assert len(mixed) == page.MIXED and set(mixed) == set(gini.argsort()[-page.MIXED :].tolist())
    few = run_of(3, 3)  # each once
    assert sorted(features_shown(few)) == sorted(set(features_shown(few)))


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("C", "D"), [(10, 512), (101, 2048), (1000, 4096)])
def test_a_heat_map_can_be_read_however_many_classes_and_features_there_are(C, D):
    """It shows every class with a feature, and as many names as fit. Its height fits a screen."""
    run = run_of(C, D)
    values = run.last
    figure = figures.heat_maps({"a": values, "b": values}, run.class_names)
    axis = figure.axes[0]
    (image,) = axis.images
    cells = torch.as_tensor(image.get_array())
    assert cells.shape == (min(C, figures.CELLS[0]), min(D, figures.CELLS[1]))
    largest = values.shares().max(1).values
    step = -(-C // len(cells))
    bounds = [(row * C // len(cells), -(-(row + 1) * C // len(cells))) for row in range(len(cells))]
    expected = torch.stack([largest[low:high].max() for low, high in bounds])
    torch.testing.assert_close(cells.max(1).values, expected)
    assert step in (1, 2) and image.norm.vmax == figures.brightest([values])
    named = [label.get_text() for label in axis.get_yticklabels()]
    assert named == [f"class {c}" for c in range(0, C, 1 if C < 110 else 25)]
    assert figure.get_figheight() <= 9
    figures.features_per_class({"a": values}, run.class_names)
    figures.distributions({"a": values})


def test_colours_end_where_19_of_20_features_do():
    values = RUNS[0].last
    vmax = figures.brightest([values])
    above = (values.strongest_share > vmax).double().mean()
    assert above <= 0.05 and vmax < values.strongest_share.max() + 0.01
    dead = values._replace(strongest_class=torch.full_like(values.strongest_class, -1))
    assert figures.brightest([dead]) == 1


def test_features_that_are_all_dead_are_no_error():
    from discfused.inspection.exciting import MostExciting
    from discfused.metrics import feature_discriminability

    dead = feature_discriminability(torch.zeros(6, 5), torch.arange(6) % 3, 3)
    run = RUNS[0]._replace(layers={"fc": dead}, class_names=["a", "b", "c"],
                           exciting=MostExciting(5))  # fmt: skip
    report = Report([run])
    assert "a, b, c" in report.page and len(report.pictures) == 3


def test_names_of_classes_that_are_not_shown_whole():
    names = [f"a class with a long name {c}" for c in range(12)]
    figure = figures.features_per_class({"a": RUNS[0].last}, names)
    assert figure.axes[0].get_xticklabels()[3].get_text() == "a class with a lo…"
    assert figure.axes[0].get_xticklabels()[3].get_rotation() == 90


def test_dollar_signs_in_names_are_no_formulas():
    names = ["$^$", "$x^$", *RUNS[0].class_names[2:]]
    run = RUNS[0]._replace(name="$^$", class_names=names, layers={"$_$": RUNS[0].last})
    layers = run._replace(layers={"$^$": run.last, **run.layers})
    assert len(Report([run, layers]).pictures) == 6


# --- the page in a browser ------------------------------------------------------------------------

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser() -> str:
    for name in CHROMIUM:
        if path := shutil.which(name):
            return path
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            path = playwright.chromium.executable_path
    except Exception as error:  # not installed, or without its browser
        pytest.skip(f"no Chromium: none of {', '.join(CHROMIUM)}, nor playwright's ({error})")
    if not shutil.which(path):
        pytest.skip(f"no Chromium: none of {', '.join(CHROMIUM)}, and {path} is not there")
    return path


def test_the_page_in_a_browser_is_not_blank_in_light_and_dark(tmp_path):
    """It shows the figures of the right appearance in full width."""
    chromium = browser()
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the screenshots")
    numpy = pytest.importorskip("numpy")
    path = Report(RUNS).save(tmp_path)
    for scheme, (appearance, ground) in enumerate((("dark", 0x16), ("light", 0xFF))):
        shot = tmp_path / f"{appearance}.png"
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / appearance}", "--window-size=1000,1400",
            f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={shot}",
            path.as_uri(),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert shot.exists(), run.stderr
        pixels = numpy.asarray(image.open(shot).convert("RGB")).astype(int)
        assert pixels.shape == (1400, 1000, 3)
        assert (pixels[:, :10, 0] == ground).all()  # the margin
        written = (abs(pixels[:400] - pixels[0, 0]).sum(2) > 200).mean()
        assert 0.005 < written < 0.3  # the head and the table
        drawn = abs(pixels[400:] - pixels[0, 0]).sum(2) > 50
        assert drawn[:, 50:950].any(0).mean() > 0.9 and drawn.any(1).mean() > 0.5
