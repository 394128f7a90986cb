"""kill -9 at every write of every move of a release, on files and on PostgreSQL, counted.

    PYTHONPATH=. python tests/benchmarks/release_crashes.py [OUT.json]

Longer than the tests may take; they try the moves that write most. Fails at the first crash that leaves two
champions, none, a log that does not hold, or aliases that the next start does not put right.
"""

import json
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pipelines.clock import now
from pipelines.fingerprint import git_commit
from tests import postgres
from tests.faults.back_ends import BackEnd, host, open_back_end
from tests.faults.release_host import MOVES
from tests.faults.test_release_crashes import check_crash


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = {"files and SQLite": tried(open_back_end(Path(folder) / "files"))}
        if why := postgres.lacking():
            print(why, file=sys.stderr)
        else:
            with postgres.server() as address:
                home, database = Path(folder) / "postgres", postgres.new_database(address)
                results["PostgreSQL"] = tried(open_back_end(home, database))
    for place, counts in results.items():
        total = sum(each["kills"] for each in counts.values())
        print(f"{place}: {total} kills, one champion after each, aliases put right after each")
        for move, each in counts.items():
            print(f"  {move:10} {each['kills']:3} kills")
    if len(sys.argv) > 1:
        conditions = {"date": now(), "commit": git_commit(), "python": platform.python_version()}
        content = {**conditions, "platform": platform.platform(), "results": results}
        Path(sys.argv[1]).write_text(json.dumps(content, indent=1) + "\n")


def tried(back_end: BackEnd) -> dict[str, Any]:
    """Kills of each move, and at which kinds of write."""
    counts = {}
    for move in MOVES:
        began = time.monotonic()
        crashes = host(back_end, "crash", move)
        assert {crash["status"] for crash in crashes} == {-signal.SIGKILL, 0}
        for crash in crashes:
            check_crash(back_end, crash)
        points = Counter(crash["point"] for crash in crashes if crash["status"])
        counts[move] = {"kills": sum(points.values()), "points": dict(points)}
        print(f"{move}: {sum(points.values())} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return counts


if __name__ == "__main__":
    main()
