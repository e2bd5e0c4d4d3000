"""From the Hub and back, through a mock of it: a repository is shrunk and published, checked, damaged, and what a stranger fetches runs in
llama.cpp.

    hub_check.py HALFBYTE SCRATCH MOCK_HUB
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from checks import FIXTURES, Checks
from llama import Llama

sys.path.append(str(Path(__file__).resolve().parent.parent / "acceptance"))

from hub import TOKEN, Hub  # noqa: E402

SOURCE, RESULT, DROPPED = "owner/tiny-deepseek", "me/tiny-deepseek-GGUF", "me/tiny-deepseek-dropped"


def run(environment, *arguments):
    line = [str(part) for part in arguments]
    return subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)


def fetched(checks, label, halfbyte, hub, scratch, repo):
    """The model as a stranger without a token fetches it, run in llama.cpp."""
    environment = hub.environment(scratch / f"{label}-stranger")
    check = run(environment, halfbyte, "check", repo, "--json")
    checks.that(check.returncode == 0, f"{label}: check of the repository passes {check.stderr.strip()}")
    fetch = run(environment, halfbyte, "fetch", repo)
    checks.that(fetch.returncode == 0, f"{label}: fetched {fetch.stderr.strip()}")
    path = Path(fetch.stdout.strip())
    tokens = Llama(path).greedy([1, 5, 9, 20], 8)
    checks.that(len(tokens) == 8, f"{label}: llama.cpp runs what was fetched: {tokens}")
    return environment, path


def published(checks, halfbyte, hub, scratch):
    mine, out = hub.environment(scratch / "mine", token=True), scratch / "out"
    done = run(mine, halfbyte, "shrink", SOURCE, "--fit", "575MiB", "--publish", RESULT, "--chunks", 4, "--out", out)
    checks.that(done.returncode == 0, f"shrink --publish {done.stderr.strip()[-300:]}")
    check = run(mine, halfbyte, "check", out)
    checks.that(check.returncode == 0, f"check of the folder passes {check.stderr.strip()}")
    manifest = json.loads((out / "halfbyte.json").read_text())
    checks.that(manifest["source"]["repo"] == SOURCE and len(manifest["source"]["commit"]) == 40, f"made from {manifest['source']['repo']} at a commit")
    checks.that(manifest["verification"] is not None, "the manifest has what was measured")
    written = b"".join(path.read_bytes() for path in out.iterdir() if path.suffix not in (".gguf",)) + done.stdout.encode() + done.stderr.encode()
    checks.that(TOKEN.encode() not in written, "the token is in no card, manifest or message")
    checks.that(str(scratch).encode() not in b"".join(path.read_bytes() for path in out.iterdir() if path.suffix != ".gguf"), "no path of this machine is published")

    environment, path = fetched(checks, "published", halfbyte, hub, scratch, RESULT)
    # A flipped byte in the middle of a tensor.
    model = next(out.glob("*.gguf"))
    tensor = max(manifest["tensors"], key=lambda tensor: tensor["planes"][0]["bytes"])
    plane = tensor["planes"][0]
    with open(model, "r+b") as file:
        file.seek(plane["offset"] + plane["bytes"] // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    check = run(mine, halfbyte, "check", out)
    said = check.stdout + check.stderr
    checks.that(check.returncode == 1 and model.name in said and tensor["name"] in said, f"a flipped byte is found in {model.name}, {tensor['name']}")
    again = run(mine, halfbyte, "publish", out, "--repo", RESULT)
    checks.that(again.returncode == 1, f"what is damaged is not published {again.stderr.strip()[-200:]}")


def dropped(checks, halfbyte, hub, scratch):
    """The files leave one by one, while the next ones are made."""
    mine, out = hub.environment(scratch / "mine-too", token=True), scratch / "dropped"
    line = [halfbyte, "shrink", SOURCE, "--max-size", "8MB", "--disk", "30MB", "--publish", DROPPED, "--no-verify", "--out", out]
    done = run(mine, *line)
    checks.that(done.returncode == 0, f"shrink --disk --publish {done.stderr.strip()[-300:]}")
    checks.that(not list(out.glob("*.gguf")) and not out.with_name("tiny-deepseek.gguf.partial").exists(), "no weights are left on the disk")
    fetched(checks, "dropped", halfbyte, hub, scratch, DROPPED)
    again = run(mine, *line)
    checks.that(again.returncode == 0 and "published already" in again.stdout, f"again: nothing to do {again.stderr.strip()[-200:]}")


def main(halfbyte, scratch, mock_hub):
    checks, scratch = Checks(), Path(scratch) / "hub"
    scratch.mkdir(parents=True)
    with Hub(mock_hub, "--repo", f"{SOURCE}={FIXTURES / 'tiny-deepseek'}") as hub:
        checks.case("published", published, checks, halfbyte, hub, scratch)
        checks.case("dropped", dropped, checks, halfbyte, hub, scratch)
        checks.that(not hub.stats()["leaked"], "no token went to another host")
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
