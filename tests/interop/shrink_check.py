"""`halfbyte shrink` to budgets: the file uses its budget up, loads in llama.cpp or mlx-lm, and diverges less from the source than
every uniform type that takes no more.

    shrink_check.py HALFBYTE SCRATCH [CHECKPOINT…]

The embedded models, unless checkpoints are given. A uniform type is that type for every tensor whose rows it divides.
"""

import json
import sys
from pathlib import Path

from checks import FIXTURES, Checks, run
from llama import Llama
from mlx_model import MlxModel

# Bits per weight of the budgets.
BUDGETS = (4.7, 5.5)
UNIFORM = {
    "gguf": ["q2_k", "q3_k", "mxfp4", "nvfp4", "iq4_xs", "iq4_nl", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k"],
    "mlx": [f"{bits}bit-g{group}" for bits in (2, 3, 4, 5) for group in (32, 64, 128)] + ["mxfp4", "nvfp4"],
}
BASE = {"gguf": "f16", "mlx": "bf16"}
SHARE = 0.995
BESIDE = {"README.md", "halfbyte.json", "recipe.toml", "report.html", "SHA256SUMS", "verification.json", "verification.txt"}


def size(path):
    """Bytes of the model, which the budget is for: a GGUF, or an MLX folder's files but for what shrink puts beside them."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.iterdir() if f.name not in BESIDE)


def verify(halfbyte, model, source, text):
    return json.loads(run(halfbyte, "verify", model, "--against", source, "--text", text, "--chunks", 16, "--json").stdout)["mean_kld"]


def uniform(halfbyte, source, to, scratch, text):
    """[(bytes, mean divergence, type)]"""
    measured = []
    for kind in UNIFORM[to]:
        out = scratch / f"uniform-{to}-{kind}{'.gguf' if to == 'gguf' else ''}"
        run(halfbyte, "quantize", source, "--to", to, "--format", BASE[to], "--tensor", f".*={kind}", "--out", out, "--json")
        measured.append((size(out), verify(halfbyte, out, source, text), kind))
    return measured


def weights(halfbyte, source):
    plan = run(halfbyte, "quantize", source, "--format", "bf16", "--out", "unused.gguf", "--dry-run", "--json")
    return json.loads(plan.stdout)["weights"]


def runs(to, model, ids):
    """The next eight tokens, from the engine that the file is for."""
    if to == "gguf":
        return Llama(model).greedy(ids, 8)
    return MlxModel(model).greedy(ids, 8)


def one(checks, halfbyte, source, to, scratch):
    name, ids = source.name, [1, 5, 9, 20]
    others = None
    for bits in BUDGETS:
        budget = int(weights(halfbyte, source) * bits / 8)
        out = scratch / f"{name}-{to}-{bits}"
        answer = json.loads(run(halfbyte, "shrink", source, "--to", to, "--max-size", budget, "--out", out, "--json").stdout)
        model = Path(answer["model"])
        taken = size(model)
        checks.that(
            SHARE * budget <= taken <= budget, f"{name} {to} {bits} bits: {taken} bytes of {budget}, {taken / budget:.2%}"
        )
        if others is None:
            others = uniform(halfbyte, source, to, scratch, out / "verification.txt")
        kld = answer["verification"]["mean_kld"]
        best = min((kld, kind) for bytes, kld, kind in others if bytes <= budget)
        checks.that(kld <= best[0], f"{name} {to} {bits} bits: KLD {kld:.5f}, best uniform type no larger {best[0]:.5f} ({best[1]})")
        checks.that(len(runs(to, model, ids)) == 8, f"{name} {to} {bits} bits: runs in its engine")
    calibrated(checks, halfbyte, source, to, scratch, budget, kld)


def calibrated(checks, halfbyte, source, to, scratch, budget, uncalibrated):
    """The same budget with calibration, on the text that comes with the tool."""
    label, out = f"{source.name} {to} calibrated", scratch / f"{source.name}-{to}-calibrated"
    text = ["--calibrate", "default", "--calibration-context", 256, "--calibration-chunks", 48]
    answer = json.loads(run(halfbyte, "shrink", source, "--to", to, "--max-size", budget, *text, "--out", out, "--json").stdout)
    model, kld = Path(answer["model"]), answer["verification"]["mean_kld"]
    checks.that(size(model) <= budget, f"{label}: {size(model)} bytes of {budget}")
    checks.that(kld <= 0.7 * uncalibrated, f"{label}: KLD {kld:.5f}, {kld / uncalibrated:.2f} of what it is without")
    checks.that(len(runs(to, model, [1, 5, 9, 20])) == 8, f"{label}: runs in its engine")


def main(halfbyte, scratch, *checkpoints):
    checks = Checks()
    for source in map(Path, checkpoints or (FIXTURES / "tiny-llama", FIXTURES / "tiny-deepseek")):
        for to in ("gguf", "mlx"):
            folder = Path(scratch) / f"shrink-{source.name}-{to}"
            folder.mkdir(parents=True, exist_ok=True)
            one(checks, halfbyte, source, to, folder)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
