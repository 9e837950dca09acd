"""The fixed split of Caltech-101 into training and test images.

`python -m discfused.recipes.splits ROOT` writes `caltech101_split.json` reproducibly. The images of
a class are sorted by a hash of their names. The first 30 are for training, the next 50 (or as many
as there are) for the test.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

from discfused._files import write_atomically

COMMITTED = Path(__file__).with_name("caltech101_split.json")
SEED, TRAIN, TEST = 0, 30, 50


class Split(NamedTuple):
    train: dict[str, list[str]]  # folder of the class -> file names in it
    test: dict[str, list[str]]


def draw(names: dict[str, list[str]], seed: int = SEED) -> Split:
    """The split of {class: file names}. It depends only on these names and the seed."""

    def order(folder: str) -> list[str]:
        return sorted(
            names[folder],
            key=lambda name: hashlib.sha256(f"{seed}/{folder}/{name}".encode()).digest(),
        )

    shuffled = {folder: order(folder) for folder in sorted(names)}
    return Split(
        {folder: sorted(files[:TRAIN]) for folder, files in shuffled.items()},
        {folder: sorted(files[TRAIN : TRAIN + TEST]) for folder, files in shuffled.items()},
    )


def load(path: Path = COMMITTED) -> Split:
    content = json.loads(path.read_text(encoding="utf-8"))
    return Split(content["train"], content["test"])


def save(split: Split, path: Path) -> None:
    """Writes one line per class, for readable diffs."""

    def lines(part: dict[str, list[str]]) -> str:
        return ",\n".join(f"  {json.dumps(name)}: {json.dumps(files)}"
                          for name, files in part.items())  # fmt: skip

    parts = (f' "{name}": {{\n{lines(part)}\n }}' for name, part in split._asdict().items())
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def main(root: str) -> None:
    images = Path(root, "caltech101", "101_ObjectCategories")
    save(draw({folder.name: [path.name for path in folder.glob("*.jpg")]
               for folder in images.iterdir() if folder.is_dir()}), COMMITTED)  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
