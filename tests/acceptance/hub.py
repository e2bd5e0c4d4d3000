"""The mock Hub as a process, for the scripts beside it. The standard library only."""

import json
import os
import subprocess
import urllib.request
from pathlib import Path

TOKEN = "hf_acceptance"


class Hub:
    """`mock-hub serve` with these options, until the block ends."""

    def __init__(self, mock_hub, *options):
        self.line = [str(part) for part in (mock_hub, "serve", "--token", TOKEN, *options)]

    def __enter__(self):
        self.process = subprocess.Popen(self.line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        first = self.process.stdout.readline().split()
        if len(first) != 2:
            raise RuntimeError(f"{' '.join(self.line)} did not start")
        self.endpoint = first[1]
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def environment(self, home, token=False):
        """What a client's process needs: this Hub, a cache of its own, and a token if it may have one."""
        mine = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        plain = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return plain | mine | ({"HF_TOKEN": TOKEN} if token else {})

    def ask(self, path, method="GET", body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.endpoint + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def stats(self):
        return self.ask("/_mock/stats")

    def reset(self):
        self.ask("/_mock/reset-stats", "POST", {})

    def fault(self, **fault):
        self.ask("/_mock/faults", "POST", fault)

    def clear(self):
        self.ask("/_mock/faults", "DELETE")


def bytes_of(stats, part):
    """Bytes of bodies that were sent for paths with this in them."""
    return sum(seen["bytes"] for path, seen in stats["paths"].items() if part in path)


def held(folder):
    """Bytes that a folder takes on the disk."""
    total = 0
    for base, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(base) / name).lstat().st_blocks * 512
            except FileNotFoundError:
                pass  # removed while we looked
    return total
