"""Tables of a run.

    python -m benchmarks.report run.json

Prints the tables; writes benchmarks/results/<device>.{json,md}; and puts the tables between the
markers `<!-- benchmarks:<device>:begin -->` and `<!-- benchmarks:<device>:end -->` of README.md, in
brief, and of docs/benchmarks.md (not with --results elsewhere). <device> is cpu, or the GPU's name.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import tables
from benchmarks.stored import RESULTS, ROOT, Results, dump, load
from discfused._files import write_atomically

PAGES = {ROOT / "README.md": tables.brief, ROOT / "docs" / "benchmarks.md": tables.summary}


def markers(slug: str) -> tuple[str, str]:
    return f"<!-- benchmarks:{slug}:begin -->", f"<!-- benchmarks:{slug}:end -->"


def between(text: str, slug: str) -> str | None:
    """What stands between the markers; None where they are missing."""
    begin, end = map(re.escape, markers(slug))
    found = re.search(f"{begin}(.*?){end}", text, re.DOTALL)
    return found and found[1]


def write(results: Results, folder: Path) -> str:
    """Both files, each whole or not at all. Returns a sentence on what it did."""
    slug = results.slug
    write_atomically(folder / f"{slug}.json", lambda path: path.write_text(dump(results)))
    write_atomically(folder / f"{slug}.md", lambda path: path.write_text(tables.report(results)))
    return f"wrote {folder / slug}.json and .md"


def show(results: Results, page: Path, tables_of: Callable[[Results], str]) -> str:
    """Puts the tables into a page. Returns a sentence on what it did."""
    text = page.read_text()
    old = between(text, results.slug)
    begin, end = markers(results.slug)
    if old is None:
        return f"{page.name} has no place for it: put in the lines {begin} and {end}"
    text = text.replace(f"{begin}{old}{end}", f"{begin}\n{tables_of(results)}\n{end}", 1)
    write_atomically(page, lambda path: path.write_text(text))
    return f"refreshed the tables in {page.name}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("json", type=Path, help="of --benchmark-json, or a former report's")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write into")
    options = parser.parse_args(arguments)
    results = load(options.json)
    print(tables.report(results))
    done = [write(results, options.results)]
    if options.results.resolve() == RESULTS:  # a run kept elsewhere leaves the pages alone
        done += [show(results, page, tables_of) for page, tables_of in PAGES.items()]
    print("\n".join(done))


if __name__ == "__main__":
    main()
