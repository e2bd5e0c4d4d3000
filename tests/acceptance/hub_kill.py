"""SIGKILL at twenty random moments of a fetch, and of a run whose source passes through --disk: each goes on when it is run again, fetches
less than a tenth of what it had a second time each time, and ends with the right bytes.

    hub_kill.py HALFBYTE MOCK_HUB SCRATCH CHECKPOINT

CHECKPOINT is some hundred megabytes in several shards (`make_big.py OUT 6`). The mock Hub sends it slowly.
"""

import filecmp
import os
import random
import shutil
import sys
import time
from pathlib import Path

from common import Checks, killed, partial_of, remove, run
from hub import Hub, bytes_of, held

KILLS = 20
REPO = "owner/model"
SLOW = 18446744073709551615  # every time


def kills(checks, hub, label, line, environment, size, seconds):
    """Kills the command twenty times within the time that it takes; what went over the network, beyond the files' size, is what was lost."""
    hub.reset()
    moments, count, runs = random.Random(7), 0, 0
    while count < KILLS:
        runs += 1
        if not killed(line, moments.uniform(0.1, 2 * seconds / KILLS), environment):
            break
        count += 1
    while count == KILLS and killed(line, 600, environment):
        pass
    sent = bytes_of(hub.stats(), ".safetensors")
    # The moments are drawn so that the kills fill the whole of it: half of the bytes are there on average. What is sent counts as
    # the server sends it, what lies between the two included.
    each = (sent - size) / max(count, 1)
    checks.that(count >= KILLS or runs > KILLS // 2, f"{label}: {count} kills in {runs} runs")
    checks.that(
        0 <= each < 0.1 * size / 2,
        f"{label}: {sent / 1e6:.1f} MB were sent for {size / 1e6:.1f} MB: a kill costs {each / 1e6:.2f} MB, {200 * each / size:.2f} % of what was there "
        f"on average",
    )


def main(halfbyte, mock_hub, scratch, checkpoint):
    checks, scratch, checkpoint = Checks(), Path(scratch), Path(checkpoint)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shards = sorted(checkpoint.glob("*.safetensors"))
    size = sum(shard.stat().st_size for shard in shards)
    seconds = 20
    with Hub(mock_hub, "--repo", f"{REPO}={checkpoint}") as hub:
        # Four connections for a file, two files at a time.
        pace = int(size / seconds / 8)
        hub.fault(path=".safetensors", host="cdn", times=SLOW, kind={"trickle": {"bytes_per_second": pace}})
        home = scratch / "fetched"
        environment = hub.environment(home)
        fetch = [str(halfbyte), "fetch", REPO]
        kills(checks, hub, "fetch", fetch, environment, size, seconds)
        hub.clear()
        done = run(fetch, env=environment)
        folder = Path(done.stdout.strip())
        same = all(filecmp.cmp(shard, folder / shard.name, shallow=False) for shard in shards)
        checks.that(done.returncode == 0 and same, f"fetch: the bytes of {len(shards)} files {done.stderr.strip()}")

        largest = max(shard.stat().st_size for shard in shards)
        budget = int(2.2 * largest)
        whole, out = scratch / "whole" / "m.gguf", scratch / "broken" / "m.gguf"
        for path in (whole, out):
            path.parent.mkdir()
            remove(path)

        def command(path):
            return [str(part) for part in (halfbyte, "quantize", REPO, "--format", "q4_k_m", "--disk", budget, "--out", path)]

        begin = time.monotonic()
        unbroken = run(command(whole), env=hub.environment(scratch / "whole-home"))
        took = time.monotonic() - begin
        if unbroken.returncode != 0:
            raise RuntimeError(unbroken.stderr)
        pace = int(size / seconds / 4)
        hub.fault(path=".safetensors", host="cdn", times=SLOW, kind={"trickle": {"bytes_per_second": pace}})
        home = scratch / "streamed"
        environment = hub.environment(home)
        kills(checks, hub, "--disk", command(out), environment, size, max(took, seconds))
        hub.clear()
        last = run(command(out), env=environment)
        checks.that(last.returncode == 0, f"--disk: the last run ends well {last.stderr.strip()}")
        checks.that(filecmp.cmp(whole, out, shallow=False), "--disk: the bytes of an unbroken run")
        checks.that(not partial_of(out).exists() and held(home / "halfbyte") == 0, "--disk: nothing is left of output or source")
        checks.that(not list((home / "hub").glob("*/blobs/*.incomplete")), "--disk: no weights in the cache")
        leaked = hub.stats()["leaked"]
        checks.that(not leaked, f"no token went to another host {leaked}")
    shutil.rmtree(scratch)
    checks.close()


if __name__ == "__main__":
    os.environ.pop("HF_TOKEN", None)
    main(*sys.argv[1:5])
