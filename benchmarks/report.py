"""Tables and the plot of a run.

    python -m benchmarks.report run.json

Prints the tables; writes benchmarks/results/<device>.{json,md,png}; puts the summary between the
README's markers `<!-- benchmarks:<device>:begin -->` and `<!-- benchmarks:<device>:end -->` (with
--results elsewhere, only if --readme names one). <device> is cpu, or the name of the GPU.
"""

import argparse
import re
from pathlib import Path

from benchmarks import tables
from benchmarks.stored import RESULTS, ROOT, Results, dump, load
from discfused.recipes._files import write_atomically

README = ROOT / "README.md"


def markers(slug: str) -> tuple[str, str]:
    return f"<!-- benchmarks:{slug}:begin -->", f"<!-- benchmarks:{slug}:end -->"


def between(text: str, slug: str) -> str | None:
    """What stands between the markers; None where they are missing."""
    begin, end = map(re.escape, markers(slug))
    found = re.search(f"{begin}(.*?){end}", text, re.DOTALL)
    return found and found[1]


def write(results: Results, folder: Path, readme: Path | None) -> list[str]:
    """Every file, each whole or not at all. Sentences that tell what was done."""
    slug = results.slug
    write_atomically(folder / f"{slug}.json", lambda path: path.write_text(dump(results)))
    write_atomically(folder / f"{slug}.md", lambda path: path.write_text(tables.report(results)))
    done = [f"wrote {folder / slug}.json and .md"]
    try:
        from benchmarks.plots import draw  # matplotlib is an extra
    except ImportError as error:
        done.append(f"no plot ({error}): pip install 'discfused[demo]'")
    else:
        write_atomically(folder / f"{slug}.png", lambda path: draw(results, path))
        done.append(f"wrote {folder / slug}.png")
    if readme is None:
        return done
    text = readme.read_text()
    old = between(text, slug)
    begin, end = markers(slug)
    if old is None:
        return [*done, f"{readme.name} has no place for it: put in the lines {begin} and {end}"]
    text = text.replace(f"{begin}{old}{end}", f"{begin}\n{tables.summary(results)}\n{end}", 1)
    write_atomically(readme, lambda path: path.write_text(text))
    return [*done, f"refreshed the table in {readme.name}"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("json", type=Path, help="of --benchmark-json, or a former report's")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write into")
    parser.add_argument("--readme", type=Path, help="default: the README, with its own results")
    options = parser.parse_args(arguments)
    results = load(options.json)
    print(tables.report(results))
    # The README tells what benchmarks/results/ holds: a run kept elsewhere leaves it alone.
    own = options.results.resolve() == RESULTS
    for sentence in write(results, options.results, options.readme or (README if own else None)):
        print(sentence)


if __name__ == "__main__":
    main()
