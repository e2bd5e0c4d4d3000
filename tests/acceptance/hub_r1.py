"""DeepSeek-R1 from the mock Hub: 163 shards, 91,991 tensors, 688.6 GB at their real names, types and shapes, made up as they are read.

    hub_r1.py plan HALFBYTE MOCK_HUB CACHE
    hub_r1.py stream HALFBYTE MOCK_HUB CACHE SCRATCH [DISK]
    hub_r1.py publish HALFBYTE MOCK_HUB CACHE SCRATCH MINUTES [RUNS]
    hub_r1.py fetch HALFBYTE MOCK_HUB SCRATCH

`plan` shows what planning takes: requests, bytes, seconds. `stream` quantizes the first five and the last two layers with embedding and
head to Q4_K_M through DISK (8GB): peak memory, peak scratch, weights per second, and how long all 61 layers would take at that
pace. `publish` quantizes the whole model while finished files are published to the mock, which drops them: in RUNS runs (1) that are each
interrupted after MINUTES, and says how far each came. `fetch` fetches 4 GB into the cache, beside sha256sum of the same bytes. CACHE keeps the shards' SHA-256 (`mock-hub hash-r1`, and for
`stream` a minute at the first listing). Needs a disk of 40 GB for `stream`, 80 GB for `publish`.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import Checks
from hub import Hub, bytes_of, held

REPO = "deepseek-ai/DeepSeek-R1"
PART = "deepseek-ai/DeepSeek-R1-part"
LAYERS = (0, 1, 2, 3, 4, 59, 60)
SEED = 1
# What one of R1's weights is of.
WEIGHTS = 671_026_404_352
GB = 1e9


def watched(line, environment, folders, until=None):
    """Runs a command; its output, seconds of wall clock and CPU, peak memory, and the peak of each folder. After `until` seconds it gets Ctrl-C."""
    peaks, over = [0] * len(folders), threading.Event()

    def watch():
        while not over.wait(0.5):
            for at, folder in enumerate(folders):
                peaks[at] = max(peaks[at], held(folder))

    thread = threading.Thread(target=watch)
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(part) for part in line], stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment)
        thread.start()
        if until:
            threading.Timer(until, lambda: process.poll() is None and process.send_signal(signal.SIGINT)).start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        over.set()
        thread.join()
        out.seek(0)
        errors.seek(0)
        return process.returncode, out.read(), errors.read(), wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, peaks


def plan(checks, halfbyte, mock_hub, cache):
    with Hub(mock_hub, "--r1", REPO, "--seed", SEED, "--cache", cache) as hub, tempfile.TemporaryDirectory() as home:
        hub.ask(f"/api/models/{REPO}/tree/main")  # hashes are looked up once
        hub.reset()
        line = [halfbyte, "plan", REPO, "--fit", "mac-studio-512", "--context", 32768, "--json"]
        code, out, errors, wall, cpu, peak, _ = watched(line, hub.environment(home), [])
        checks.that(code == 0, f"plan: {errors.strip()[-300:]}")
        stats = hub.stats()
        heads = bytes_of(stats, ".safetensors")
        plan = json.loads(out)
        checks.that(plan["fits"], f"plan: {plan['bytes'] / GB:.2f} GB fit mac-studio-512")
        print(
            f"plan: {wall:.1f} s ({cpu:.1f} s of CPU), {peak / 1e6:.0f} MB of memory, {stats['requests']} requests, {stats['bytes'] / 1e6:.1f} MB "
            f"in all, {heads / 1e6:.1f} MB of it headers of weights, of 688.6 GB"
        )


def stream(checks, halfbyte, mock_hub, cache, scratch, disk="8GB"):
    scratch = Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    layers = ",".join(map(str, LAYERS))
    home, out = scratch / "home", scratch / "r1-part.gguf"
    with Hub(mock_hub, "--r1", PART, "--r1-layers", layers, "--seed", SEED, "--cache", cache) as hub:
        hub.ask(f"/api/models/{PART}/tree/main")
        hub.reset()
        line = [halfbyte, "quantize", PART, "--format", "q4_k_m", "--disk", disk, "--out", out, "--json"]
        code, text, errors, wall, cpu, peak, peaks = watched(line, hub.environment(home), [home / "halfbyte"])
        checks.that(code == 0, f"stream: {errors.strip()[-400:]}")
        if code != 0:
            return
        done, stats = json.loads(text), hub.stats()
        rate = done["weights"] / wall
        source = bytes_of(stats, ".safetensors")
        checks.that(peak <= 4e9, f"peak memory {peak / 1e6:.0f} MB, 4 GB allowed")
        checks.that(peaks[0] <= 8e9, f"peak scratch {peaks[0] / GB:.2f} GB, 8 GB allowed")
        shares = {stage: round(share, 2) for stage, share in done["busy_shares"].items()}
        print(
            f"stream: layers {layers}, embedding and head: {done['weights'] / GB:.2f} B weights, {source / GB:.2f} GB over the network, "
            f"{done['bytes'] / GB:.2f} GB written in {wall:.0f} s ({cpu:.0f} s of CPU): {rate / 1e6:.1f} M weights/s; busy {shares}\n"
            f"        at this pace all {WEIGHTS / GB:.0f} B weights take {WEIGHTS / rate / 60:.0f} minutes"
        )


def publish(checks, halfbyte, mock_hub, cache, scratch, minutes, runs=1):
    scratch = Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    home, out = scratch / "home", scratch / "r1"
    with Hub(mock_hub, "--r1", REPO, "--seed", SEED, "--cache", cache, "--discard-uploads", "--store", scratch / "store") as hub:
        hub.ask(f"/api/models/{REPO}/tree/main")
        hub.reset()
        line = [halfbyte, "shrink", REPO, "--fit", "mac-studio-512", "--context", 32768, "--disk", "40GB", "--publish", "me/R1-GGUF", "--no-verify", "--out", out]
        for number in range(int(runs)):
            watch = [home / "halfbyte", out]
            code, text, errors, wall, cpu, peak, peaks = watched(line, hub.environment(home, token=True), watch, 60 * float(minutes))
            source = bytes_of(hub.stats(), ".safetensors")
            checks.that(code in (0, 130), f"publish, run {number + 1}: exit code {code}")
            last = [line for line in errors.splitlines() if line.startswith("read ")][-1:]
            journal = next(out.glob("*.partial/journal.jsonl"), None)
            files = journal.read_text().count('{"shipped"') if journal else 0
            print(
                f"publish, run {number + 1}: {source / GB:.1f} of 688.6 GB fetched in all, {files} files uploaded and dropped, after {wall / 60:.1f} minutes "
                f"({cpu / 60:.1f} of CPU); peak memory {peak / 1e6:.0f} MB, peak of source {peaks[0] / GB:.1f} and of output {peaks[1] / GB:.1f} GB; {last}",
                flush=True,
            )
            if code == 0:
                break


def fetch(checks, halfbyte, mock_hub, scratch):
    scratch = Path(scratch)
    model = scratch / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}")
    with open(model / "model.safetensors", "wb") as file:
        # Random, and no more than is quickly made.
        block = os.urandom(64 << 20)
        for _ in range(64):
            file.write(block)
    size = (model / "model.safetensors").stat().st_size
    rates = {}
    with Hub(mock_hub, "--repo", f"owner/model={model}") as hub:
        hub.ask("/api/models/owner/model/tree/main")
        for number in range(3):
            code, _, errors, wall, cpu, _, _ = watched(["sha256sum", model / "model.safetensors"], None, [])
            rates.setdefault("sha256sum", []).append(size / wall)
            home = scratch / f"home{number}"
            code, _, errors, wall, cpu, peak, _ = watched([halfbyte, "fetch", "owner/model"], hub.environment(home), [])
            checks.that(code == 0, f"fetch {number + 1}: {size / wall / GB:.2f} GB/s, {cpu:.1f} s of CPU in {wall:.1f} s, {peak / 1e6:.0f} MB of memory")
            rates.setdefault("fetch", []).append(size / wall)
            shutil.rmtree(home)
    median = {what: statistics.median(found) for what, found in rates.items()}
    print(f"fetch: {median['fetch'] / GB:.2f} GB/s with its hash, synced; sha256sum alone {median['sha256sum'] / GB:.2f} GB/s: {median['fetch'] / median['sha256sum']:.2f} x")
    shutil.rmtree(scratch)


def main(what, *arguments):
    checks = Checks()
    checks.case(what, {"plan": plan, "stream": stream, "publish": publish, "fetch": fetch}[what], checks, *arguments)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
