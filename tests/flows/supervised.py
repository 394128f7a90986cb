"""Supervises small HTTP servers in a process of its own: `python supervised.py FOLDER KIND...`.

Each kind is a way to behave: well, mute (no longer answers after the first time), dead (ends at once with a
last word), short (ends after its first answer). Prints what the supervisor says; ends when told to.
"""

import os
import signal
import sys
from pathlib import Path

import flows.supervisor as supervisor
from flows.supervisor import Service, Supervisor
from validation.errors import InputError

SERVER = """
import http.server, signal, sys, time
port, kind, journal = int(sys.argv[1]), sys.argv[2], open(sys.argv[3], "a")
def note(what):
    journal.write(f"{kind} {what}\\n")
    journal.flush()
def end(*_):
    note("ended")
    sys.exit(0)
class Handler(http.server.BaseHTTPRequestHandler):
    answered = 0
    def do_GET(self):
        Handler.answered += 1
        self.send_response(500 if kind == "mute" and Handler.answered > 1 else 200)
        self.end_headers()
        if kind == "short":
            sys.exit(3)
    def log_message(self, *_):
        pass
if kind == "dead":
    print("no room at the inn", file=sys.stderr)
    sys.exit(4)
signal.signal(signal.SIGTERM, end)
note("started")
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
server.handle_request() if kind == "short" else server.serve_forever()
if kind == "short":
    sys.exit(3)
"""


def main() -> None:
    folder, *kinds = sys.argv[1:]
    supervisor.LOOK_EVERY_S = 0.05
    supervisor.MAX_SILENCE_S = 1.0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with Supervisor(lambda text: print(text, flush=True)) as running:
            for place, kind in enumerate(kinds):
                running.start(_service(Path(folder), kind, place))
            print("up", flush=True)
            running.watch()
    except InputError as error:
        print(f"refused: {error}", flush=True)
        sys.exit(2)


def _service(folder: Path, kind: str, place: int) -> Service:
    port = int((folder / "ports").read_text().split()[place])
    command = [sys.executable, "-c", SERVER, str(port), kind, str(folder / "journal")]
    return Service(kind, command, os.environ, f"http://127.0.0.1:{port}/", folder / f"{kind}.log")


if __name__ == "__main__":
    main()
