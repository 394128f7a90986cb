"""Runs every command block of the README in a fresh clone: `python -m tests.repository.readme_blocks`.

A block is fenced as ```bash. One that takes long, or needs servers, stands below a comment that says so:
`<!-- not run: REASON -->`. With `--venv FOLDER` an environment that is installed already is used; without,
`make install` makes one in the clone.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 300
_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?```bash\n(?P<commands>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """Commands as a reader would type them."""

    line: int
    commands: str
    reason: str
    """Why it is not run; "" where it is."""


def blocks(text: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(text):
        line = text[: found.start("commands")].count("\n") + 1
        yield Block(line, found["commands"], found["reason"] or "")


def run(block: Block, clone: Path) -> str:
    """What went wrong, "" where nothing did."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("DANKAI_", "MLFLOW_"))}
    environ |= {"PYTHONPATH": str(clone)}
    command = ["bash", "-euo", "pipefail", "-c", block.commands]
    try:
        ended = subprocess.run(
            command,
            cwd=clone,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"over {SECONDS} s"
    return "" if ended.returncode == 0 else f"status {ended.returncode}\n{ended.stdout}{ended.stderr}"


def prepare(clone: Path, venv: Path | None) -> None:
    """The committed state, and an environment in it."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    if venv is not None:
        (clone / ".venv").symlink_to(venv.resolve())
    else:
        subprocess.run(["make", "install"], cwd=clone, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path)
    venv, failed = parser.parse_args().venv, 0
    with tempfile.TemporaryDirectory(prefix="dankai-readme-") as folder:
        clone = Path(folder) / "dankai"
        prepare(clone, venv)
        for block in blocks((clone / "README.md").read_text()):
            started, first = time.monotonic(), block.commands.splitlines()[0]
            if block.reason:
                print(f"skipped  line {block.line}: {first}  ({block.reason})", flush=True)
                continue
            problem = run(block, clone)
            failed += bool(problem)
            word = "FAILED " if problem else "ran    "
            print(
                f"{word}  line {block.line}: {first}  ({time.monotonic() - started:.1f} s)  {problem}",
                flush=True,
            )
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
