"""What a conversion to Q4_K_M costs per weight, by the model's size and the number of threads, and which stage is the limit.

    scaling.py HALFBYTE SCRATCH CHECKPOINT…

Every checkpoint with one thread and with two; each runs three times and the fastest counts. The stages work at the same time, so their shares
of the time do not add up to 100 %. Prints the table of docs/benchmarks.md.
"""

import json
import sys
from pathlib import Path

from common import Checks, command, measure, remove

RUNS = 3
STAGES = ("reading", "encoding", "hashing", "writing", "syncing")


def main(halfbyte, scratch, *checkpoints):
    checks, scratch = Checks(), Path(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    out = scratch / "scaling.gguf"
    rows = [
        f"| checkpoint | weights | threads | s | M weights/s | CPU ns per weight | peak memory MB | {' % | '.join(STAGES)} % |",
        "|---" * (7 + len(STAGES)) + "|",
    ]

    def once(checkpoint, threads):
        remove(out)
        return measure(command(halfbyte, checkpoint, "gguf", "q4_k_m", out, "--threads", threads, "--json"))

    def one(checkpoint):
        seconds = []
        for threads in (1, 2):
            cost = min(once(checkpoint, threads) for _ in range(RUNS))
            result = json.loads(cost.said)
            weights, shares = result["weights"], result["busy_shares"]
            seconds.append(cost.wall)
            limit = max(shares, key=shares.get)
            checks.that(limit == "encoding", f"{checkpoint.name}, {threads} threads: the limit is {limit}")
            rows.append(
                f"| {checkpoint.name} | {weights / 1e6:.0f} M | {threads} | {cost.wall:.2f} | {weights / cost.wall / 1e6:.0f} "
                f"| {cost.cpu / weights * 1e9:.2f} | {cost.peak / 1e6:.0f} | {' | '.join(f'{100 * shares[stage]:.0f}' for stage in STAGES)} |"
            )
        print(f"{checkpoint.name}: two threads are {seconds[0] / seconds[1]:.2f} times as fast as one", flush=True)

    for checkpoint in checkpoints:
        checks.case(checkpoint, one, Path(checkpoint))
    remove(out)
    print("\n", *rows, sep="\n", end="\n\n")
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
