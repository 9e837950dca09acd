"""Which commit of the sources runs here. setup.py runs this file, so it imports nothing of ours."""

import subprocess
from pathlib import Path


def of_checkout(package: Path) -> str | None:
    """Of the checkout that the folder discfused is in, marked where the code differs from it; None
    for a folder that git does not track."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ".", "../csrc")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
