"""Report: one HTML page with all figures and numbers, and the same as files."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

from discfused._discriminability import Discriminability
from discfused._files import write_atomically
from discfused._version import __version__
from discfused.inspection import figures
from discfused.inspection.measure import Run

PAGE, NUMBERS, FEATURES, CLASSES = "report.html", "report.json", "features.csv", "classes.csv"
OF_FEATURES = (
    "mass", "gini", "effective_classes", "selectivity", "strongest_class", "strongest_share", "live"
)  # fmt: skip
OF_CLASSES = "samples_per_class", "features_per_class"
PURE, MIXED = 8, 4  # numbers of features whose images are shown
DPI = 144
OPTIONAL = re.compile(r"images-\d+\.png|layers\.png")  # figures that not every report has


class Picture(NamedTuple):
    """A figure as PNG, in the light and the dark appearance."""

    kind: str
    run: str | None  # None: all runs
    light: bytes
    dark: bytes

    @property
    def file(self) -> str:
        return f"{self.kind}.png"

    def uri(self, appearance: str) -> str:
        encoded = base64.b64encode(getattr(self, appearance)).decode()
        return f"data:image/png;base64,{encoded}"


@dataclasses.dataclass(frozen=True)
class Report:
    """The features of one or several runs. A notebook displays it.

    Args:
        runs: runs on the same classes. Each is a model on a data set, measured by
            `discfused.report`.

    Attributes:
        partial: whether a run was stopped before the last batch.
    """

    runs: Sequence[Run]

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("runs is empty, expected at least one")
        names = [run.class_names for run in self.runs]
        if any(each != names[0] for each in names):
            counts = ", ".join(str(len(each)) for each in names)
            raise ValueError(
                f"compare has runs on other classes ({counts} of them, or other names): expected "
                "the same class_names"
            )
        runs: dict[str, Run] = {}
        for run in self.runs:  # names must differ
            free = (f"{run.name} ({number})" for number in itertools.count(2))
            name = next(name for name in itertools.chain([run.name], free) if name not in runs)
            runs[name] = run._replace(name=name)
        object.__setattr__(self, "runs", tuple(runs.values()))

    @property
    def partial(self) -> bool:
        return any(run.partial for run in self.runs)

    @property
    def class_names(self) -> list[str]:
        return self.runs[0].class_names

    def summary(self) -> dict[str, dict[str, float]]:
        """{run: summary of the features of its last layer}."""
        return {run.name: run.last.summary() for run in self.runs}

    @cached_property
    def pictures(self) -> list[Picture]:
        last, names = {run.name: run.last for run in self.runs}, self.class_names
        drawn = [
            _picture("heat-map", None, figures.heat_maps, last, names),
            _picture("distributions", None, figures.distributions, last),
            _picture("features-per-class", None, figures.features_per_class, last, names),
        ]
        for index, run in enumerate(self.runs):
            if run.exciting.samples_with_picture and (chosen := features_shown(run)):
                kind = f"images-{index + 1}"
                drawn.append(_picture(kind, run.name, figures.exciting_images, run, chosen))
        if any(len(run.layers) > 1 for run in self.runs):
            drawn.append(_picture("layers", None, figures.layer_curves, self.runs))
        return drawn

    @cached_property
    def page(self) -> str:
        """HTML without other files and without a network."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("discfused.inspection", "."),
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        )  # fmt: skip
        environment.filters |= {"number": number, "name": lambda c: self.class_names[c]}
        of_all = {picture.kind: picture for picture in self.pictures if picture.run is None}
        return environment.get_template("report.html.jinja").render(
            report=self, version=__version__, pictures=of_all,
            images=[picture for picture in self.pictures if picture.run is not None],
            shown={run.name: features_shown(run) for run in self.runs},
            without={run.name: _without(run) for run in self.runs},
            files=(NUMBERS, FEATURES, CLASSES),
        )  # fmt: skip

    def save(self, folder: Path | str) -> Path:
        """Writes page, figures (PNG) and numbers (JSON, CSV). Returns the path of the page.

        Figures of an earlier report in this folder that this one lacks are removed.
        """
        files = {picture.file: picture.light for picture in self.pictures}
        texts = {
            NUMBERS: json.dumps(self.document(), allow_nan=False) + "\n",
            FEATURES: _table(self._features()),
            CLASSES: _table(self._classes()),
            PAGE: self.page,
        }
        files |= {name: text.encode() for name, text in texts.items()}
        for name, content in files.items():
            write_atomically(Path(folder, name), partial(_write, content))
        for path in Path(folder).glob("*.png"):
            if path.name not in files and OPTIONAL.fullmatch(path.name):
                path.unlink()
        return Path(folder, PAGE)

    def document(self) -> dict[str, Any]:
        """All numbers as JSON types. Numbers that are not finite are None."""
        return {
            "discfused": __version__,
            "classes": list(self.class_names),
            "runs": [
                {
                    "name": run.name, "samples": run.samples, "partial": run.partial,
                    "layers": [
                        {"name": layer, "summary": _finite(values.summary()),
                         "features": _columns(values, OF_FEATURES),
                         "classes": _columns(values, OF_CLASSES)}
                        for layer, values in run.layers.items()
                    ],
                    "images": [
                        {"feature": feature, "samples": [
                            {"sample": each.sample, "label": each.label,
                             "activation": _finite(each.activation)}
                            for each in run.exciting.of(feature)]}
                        for feature in features_shown(run)
                    ],
                }
                for run in self.runs
            ],
        }  # fmt: skip

    def _features(self) -> Iterator[list[Any]]:
        yield ["run", "layer", "feature", *OF_FEATURES, "strongest_class_name"]
        for run in self.runs:
            for layer, values in run.layers.items():
                columns = [getattr(values, field).tolist() for field in OF_FEATURES]
                for feature, row in enumerate(zip(*columns, strict=True)):
                    strongest = row[OF_FEATURES.index("strongest_class")]
                    called = run.class_names[strongest] if strongest >= 0 else ""
                    yield [run.name, layer, feature, *row, called]

    def _classes(self) -> Iterator[list[Any]]:
        yield ["run", "layer", "class", "name", "samples", "features"]
        for run in self.runs:
            for layer, values in run.layers.items():
                counts = values.samples_per_class.tolist(), values.features_per_class.tolist()
                for c, (samples, features) in enumerate(zip(*counts, strict=True)):
                    yield [run.name, layer, c, run.class_names[c], samples, features]

    def _repr_html_(self) -> str:
        page = html.escape(self.page)  # a frame keeps its style from the notebook
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 48em; border: 0"></iframe>'

    def __repr__(self) -> str:
        lines = [
            f"{run.name}: {', '.join(f'{name} {number(x)}' for name, x in values.items())}"
            + (f" (partial: {run.samples} samples)" if run.partial else "")
            for run, values in zip(self.runs, self.summary().values(), strict=True)
        ]
        return "\n".join(lines)


def features_shown(run: Run) -> list[int]:
    """The purest feature of each class, then the most mixed features."""
    values = run.last
    order = values.order()
    by_purity = order[values.gini[order].argsort(stable=True)].tolist()
    of_class: dict[int, int] = {}
    for feature in by_purity:
        of_class.setdefault(int(values.strongest_class[feature]), feature)
    pure = [*of_class.values()][:PURE]
    mixed = [feature for feature in by_purity[::-1][:MIXED] if feature not in pure]
    return pure + mixed[::-1]


def number(value: float) -> str:
    """The number as text for the page."""
    if math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    return f"{value:.4g}"


def _without(run: Run) -> list[str]:
    values = run.last
    none = (values.samples_per_class > 0) & (values.features_per_class == 0)
    return [run.class_names[c] for c in none.nonzero().flatten().tolist()]


def _picture(kind: str, run: str | None, draw: Callable[..., Figure], *arguments: Any) -> Picture:
    drawn = []
    for name in figures.APPEARANCES:
        with figures.appearance(name):
            buffer = io.BytesIO()
            draw(*arguments).savefig(buffer, format="png", dpi=DPI)
            drawn.append(buffer.getvalue())
    return Picture(kind, run, *drawn)


def _columns(values: Discriminability, fields: Sequence[str]) -> dict[str, list[Any]]:
    return {field: _finite(getattr(values, field).tolist()) for field in fields}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value if math.isfinite(value) else None


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _table(rows: Iterator[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
