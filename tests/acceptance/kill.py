"""SIGKILL at twenty random moments: the same command, run again each time, gives the bytes of an unbroken run, and no final name
ever holds a partial file.

    kill.py HALFBYTE SCRATCH [CHECKPOINT]

On tiny-deepseek and, when one is given, on a larger checkpoint.
"""

import os
import random
import sys
import time
from pathlib import Path

from common import FIXTURES, Checks, command, digest, killed, partial_of, remove, run

KILLS = 20
SLOW = os.environ | {"HALFBYTE_ISA": "scalar"}
CASES = [
    ("a GGUF file", "gguf", "q4_k_m", ".gguf", []),
    ("a split GGUF", "gguf", "q4_k_m", ".gguf", ["--shard-size"]),
    ("an MLX folder", "mlx", "4bit-g64", "-mlx", ["--shard-size"]),
]


def finished_tensors(out):
    """How many tensors the journal of an unfinished output holds."""
    journal = partial_of(out) / "journal.jsonl"
    return journal.read_text().count('"done"') if journal.exists() else 0


def survives(checks, halfbyte, source, scratch, label, to, form, ending, options):
    shard = ["1MB" if source.parent == FIXTURES else "16MB"] if options else []
    # In two folders and not under two names: a split's parts are called after the whole.
    whole, broken = scratch / "whole" / f"model{ending}", scratch / "broken" / f"model{ending}"
    for out in (whole, broken):
        out.parent.mkdir(exist_ok=True)
        remove(out)
    done = run(command(halfbyte, source, to, form, whole, *options, *shard))
    if done.returncode != 0:
        raise RuntimeError(f"the unbroken run failed: {done.stderr}")
    expected = digest(whole)
    # Finished tensors are noted every two seconds: in plain code on one thread there is something to kill, and the same bytes come out.
    line = command(halfbyte, source, to, form, broken, *options, *shard, "--threads", "1")
    begin = time.monotonic()
    run(line, env=SLOW)
    took, moments = time.monotonic() - begin, random.Random(20)
    remove(broken)
    kills = resumed = runs = 0
    intact = True
    while kills < KILLS:
        runs += 1
        if killed(line, moments.uniform(0, took), SLOW):
            kills += 1
            resumed += finished_tensors(broken) > 0
        else:
            # Done before the moment came: what was resumed must be right and nothing else be there; the next round begins anew.
            intact = intact and digest(broken) == expected
            remove(broken)
        # A kill in the moment after the last move may leave the journal beside the whole files, until the next run.
        intact = intact and all(found == expected[name] for name, found in digest(broken).items() if name in expected)
    last = run(line, env=SLOW)
    found = digest(broken)
    checks.that(last.returncode == 0, f"{label}: the last run ends well {last.stderr.strip()}")
    # How many kills hit a run with finished tensors is a matter of the machine's speed; that those are kept, the tests of the pass hold.
    checks.that(intact, f"{label}: no final name held a partial file after {kills} kills, {resumed} of them with finished tensors, "
                f"in {runs} runs of up to {took:.2f} s")
    checks.that(found == expected, f"{label}: SHA-256 of {len(found)} files as in the unbroken run")
    checks.that(not partial_of(broken).exists(), f"{label}: nothing is left beside the output")
    for out in (whole, broken):
        remove(out)


def main(halfbyte, scratch, *larger):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    for source in [FIXTURES / "tiny-deepseek", *map(Path, larger)]:
        for label, *case in CASES:
            label = f"{source.name}, {label}"
            checks.case(label, survives, checks, halfbyte, source, scratch, label, *case)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
