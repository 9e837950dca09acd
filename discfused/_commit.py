"""The commit of the running sources. setup.py runs this file, so it must not import discfused."""

import subprocess
from pathlib import Path


def of_checkout(package: Path) -> str | None:
    """The commit of the checkout that contains the folder discfused, with "+changes" if the code
    differs from it. None if git does not track the folder."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ".", "../csrc")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
