"""How much quality halfbyte keeps at a peer's bytes: calibrated files of llama.cpp and mlx-lm against ours of no more bytes.

    quality.py HALFBYTE LLAMA_BIN WORK CALIBRATION TEXT NAME=CHECKPOINT… [--peers TYPE,…] [--by verify,engine]
        [--peers-only] [--ours LABEL COMMAND]… [--made LABEL DIR]… [--threads N]

NAME is one of PROTOCOLS, which says how that model is measured. For each peer's file:

- llama.cpp: `llama-imatrix` on CALIBRATION, `llama-quantize --imatrix` of the F16 file that `halfbyte quantize --format f16` makes, so that all
  have the same metadata. mlx-lm: `mlx_lm.convert -q`.
- Both, and ours, are measured on TEXT, which nothing was calibrated on, by `halfbyte verify --against CHECKPOINT`, which computes in F32, and by
  the engine: `llama-perplexity --kl-divergence` against its F16 logits, or mlx-lm in F32 against the checkpoint. llama.cpp rounds activations
  to 8 bits, which adds to what it finds: the floor that its Q8_0 row shows.
- Bytes are those of the weights' files, which hold GGUF's metadata and safetensors' headers.

--ours makes our file, the folder {out} or the file {out}.gguf, with {halfbyte}, {source}, {container}, {bytes}, {calibration}, {context}, {chunks}
(of the calibration) and {type} (the peer's) standing for what they say. {bytes} are the peer's, and for MLX also those that lie beside our
weights (tokenizer, configuration), for --max-size counts them. --made takes what is there already, DIR/NAME/TYPE or DIR/NAME/TYPE.gguf.
Each may be given several times, for an ablation. Without either, ours are made with CALIBRATED. LLAMA_BIN is the folder of llama-imatrix,
llama-quantize and llama-perplexity.

Peers are measured once and kept in WORK/peers.json and WORK/peers, ours in WORK/ours.json and WORK/ours; remove WORK to begin anew. Prints a
table in Markdown for each model.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import Checks, checked, command, number, remove
from tokenizers import Tokenizer

# mlx_lm.convert takes the best device there is; on the CPU it rounds as it does everywhere.
MLX_CONVERT = "import mlx.core as mx; mx.set_default_device(mx.cpu); from mlx_lm.convert import main; main()"
# The largest share of the peer's mean divergence that is wanted of ours.
GOALS = {"gguf": 0.4, "mlx": 0.25}
# How our file is made, unless the command line says.
CALIBRATED = "{halfbyte} shrink {source} --to {container} --max-size {bytes} --calibrate {calibration} --calibration-context {context} --calibration-chunks {chunks} --no-verify --out {out}"


class Protocol(NamedTuple):
    """Windows of `context` tokens, the second half of each scored; the peers' files; and which of them ours is to beat.

    mlx-lm computes with some GFLOP/s on a CPU, and is given the first `mlx_chunks` windows only.
    """

    context: int
    chunks: int
    mlx_chunks: int
    calibration_chunks: int
    gguf: tuple
    mlx: tuple
    goals: tuple


TINY = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q4_0", "Q3_K_M")
PROTOCOLS = {
    "smollm2": Protocol(
        512, 16, 2, 64,
        gguf=("Q8_0", "Q5_K_M", "Q4_K_M", "Q4_1", "Q3_K_M", "Q4_0", "IQ4_NL", "IQ4_XS"),
        mlx=("5bit-g64", "4bit-g32", "4bit-g64"),
        goals=("Q5_K_M", "Q4_K_M", "Q4_1", "Q3_K_M", "Q4_0", "IQ4_NL", "IQ4_XS", "4bit-g32", "4bit-g64"),
    ),
    "tiny-llama": Protocol(256, 32, 32, 128, gguf=TINY, mlx=("4bit-g32", "4bit-g64"), goals=("Q4_K_M", "4bit-g64")),
    "tiny-deepseek": Protocol(256, 32, 32, 128, gguf=TINY, mlx=("4bit-g64",), goals=("Q4_K_M",)),
}  # fmt: skip


class Store:
    """Figures in a JSON file, saved at each change, with the way in which they were measured."""

    def __init__(self, path, way):
        self.path, self.way = path, way
        if path.exists() and json.loads(path.read_text())["way"] != way:
            raise SystemExit(f"{path} holds figures of other texts or another protocol: take another folder, or remove it")

    def rows(self):
        return json.loads(self.path.read_text())["rows"] if self.path.exists() else {}

    def get(self, *keys):
        return self.rows().get("/".join(keys))

    def put(self, row, *keys):
        unfinished = self.path.with_suffix(".partial")
        unfinished.write_text(json.dumps({"way": self.way, "rows": self.rows() | {"/".join(keys): row}}, indent=1))
        unfinished.replace(self.path)

    def measured(self, model, path, *keys):
        """{"bytes", "sha256", and by each of what `--by` asks for, its figures}, kept as long as the file has the same bytes."""
        row, sums = self.get(*keys), digest(path)
        if not row or row["sha256"] != sums:
            row = {"bytes": weights_bytes(path), "sha256": sums}
        for by in model.options.by:
            if by not in row:
                row[by] = model.by_verify(path) if by == "verify" else model.by_engine(path)
                self.put(row, *keys)
        return row


class Model:
    """One checkpoint with what its peers' files and its measurements need, made where it is missing."""

    def __init__(self, name, checkpoint, options):
        self.name, self.checkpoint, self.options, self.protocol = name, Path(checkpoint), options, PROTOCOLS[name]
        self.folder = options.work / "peers" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.windows = ["-c", self.protocol.context, "-b", 4 * self.protocol.context, "-t", options.threads]

    def made(self, name, make):
        """The path of a file that `make(path)` writes, kept from an earlier run if there is one."""
        path = self.folder / name
        if not path.exists():
            unfinished = self.folder / f"unfinished-{name}"
            remove(unfinished)
            make(unfinished)
            unfinished.rename(path)
        return path

    def llama(self, tool, *arguments):
        return checked([self.options.llama_bin / tool, *arguments])

    def f16(self):
        return self.made("f16.gguf", lambda out: checked(command(self.options.halfbyte, self.checkpoint, "gguf", "f16", out)))

    def importance(self):
        how = [*self.windows, "--chunks", self.protocol.calibration_chunks, "-f", self.options.calibration]
        return self.made("imatrix.gguf", lambda out: self.llama("llama-imatrix", "-m", self.f16(), *how, "-o", out))

    def logits(self):
        how = ["-m", self.f16(), *self.text()]
        return self.made("f16.kld", lambda out: self.llama("llama-perplexity", *how, "--kl-divergence-base", out))

    def text(self):
        return [*self.windows, "--chunks", self.protocol.chunks, "-f", self.options.text]

    def peer(self, kind):
        """The peer's file, or folder, of a type."""
        if "bit-g" not in kind:
            how = ["--imatrix", self.importance(), self.f16()]
            return self.made(f"{kind}.gguf", lambda out: self.llama("llama-quantize", *how, out, kind, self.options.threads))
        bits, group = kind.split("bit-g")
        convert = [sys.executable, "-c", MLX_CONVERT, "--hf-path", self.checkpoint, "-q", "--q-bits", bits, "--q-group-size", group]
        return self.made(kind, lambda out: checked([*convert, "--mlx-path", out]))

    def beside(self):
        """Bytes of what we put beside the weights of an MLX folder."""
        plain = self.made("ours-beside", lambda out: checked(command(self.options.halfbyte, self.checkpoint, "mlx", "4bit-g64", out)))
        return sum(file.stat().st_size for file in plain.iterdir()) - weights_bytes(plain)

    def by_verify(self, path):
        how = ["--text", self.options.text, "--context", self.protocol.context, "--chunks", self.protocol.chunks, "--threads", self.options.threads]
        line = [self.options.halfbyte, "verify", path, "--against", self.checkpoint, *how, "--json"]
        found = json.loads(checked(line, errors=False))
        scored = f"positions {self.protocol.context // 2} to {self.protocol.context - 2} of each scored"
        if not found["protocol"].endswith(scored):
            raise RuntimeError(f"{path}: verify's protocol is {found['protocol']}, not {scored}")
        return {
            "perplexity": found["perplexity"],
            "mean_kld": found["mean_kld"],
            "kld_99_9": found["kld_percentiles"]["99.9"],
            "same_top1": found["same_top1"],
        }

    def by_engine(self, path):
        return self.by_mlx_lm(path) if path.is_dir() else self.by_llama_cpp(path)

    def by_llama_cpp(self, path):
        how = [*self.text(), "--kl-divergence-base", self.logits(), "--kl-divergence"]
        # Another thread prints, and what it has not printed when the process ends is lost: on a busy machine, the statistics.
        for _ in range(8):
            said = self.llama("llama-perplexity", "-m", path, *how)
            if "Same top p:" in said:
                break
        return {
            "perplexity": number(r"Mean PPL\(Q\) +: +([\d.]+)", said),
            "mean_kld": number(r"Mean +KLD: +(-?[\d.]+)", said),
            "kld_99_9": number(r"99\.9% +KLD: +([\d.]+)", said),
            "same_top1": number(r"Same top p: +([\d.]+)", said) / 100,
        }

    def by_mlx_lm(self, path):
        ids, truth = self.ids(), np.load(self.made("mlx-lm.npy", self.save_distributions))
        found = self.distributions(path)
        following = np.concatenate([window[self.protocol.context // 2 + 1 :] for window in ids])
        divergences = (np.exp(truth) * (truth - found)).sum(-1)
        return {
            "perplexity": float(np.exp(-found[np.arange(len(following)), following].mean())),
            "mean_kld": float(divergences.mean()),
            "kld_99_9": float(np.quantile(divergences, 0.999)),
            "same_top1": float(np.mean(truth.argmax(-1) == found.argmax(-1))),
        }

    def ids(self):
        """The tokens of mlx-lm's windows."""
        words = Tokenizer.from_file(str(self.checkpoint / "tokenizer.json"))
        ids = words.encode(self.options.text.read_text(), add_special_tokens=False).ids
        return np.array(ids[: self.protocol.mlx_chunks * self.protocol.context]).reshape(-1, self.protocol.context)

    def distributions(self, path):
        """ln p at each scored position, by mlx-lm: float64 [positions, vocabulary]."""
        from mlx_model import MlxModel

        model, scored = MlxModel(path), slice(self.protocol.context // 2, self.protocol.context - 1)
        return np.concatenate([model.log_probabilities(window.tolist())[scored] for window in self.ids()])

    def save_distributions(self, out):
        with open(out, "wb") as file:
            np.save(file, self.distributions(self.checkpoint))


def weights_files(path):
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def weights_bytes(path):
    return sum(file.stat().st_size for file in weights_files(path))


def digest(path):
    sums = hashlib.sha256()
    for part in weights_files(path):
        with open(part, "rb") as file:
            sums.update(hashlib.file_digest(file, "sha256").digest())
    return sums.hexdigest()


def container(kind):
    return "mlx" if "bit-g" in kind else "gguf"


def model_of(out):
    """The model that our command wrote: OUT.gguf, or in the folder OUT a GGUF file or what mlx-lm loads."""
    file = out.with_name(f"{out.name}.gguf")
    if file.exists():
        return file
    found = sorted(out.glob("*.gguf")) + [out] * (out / "config.json").exists()
    if len(found) != 1:
        raise RuntimeError(f"{out} holds {len(found)} models, expected one")
    return found[0]


def our_file(model, kind, label, template, peer):
    """Runs our command at the bytes of the peer's file."""
    out = model.options.work / "ours" / label / model.name / kind
    for old in (out, out.with_name(f"{kind}.gguf")):
        remove(old)
    out.parent.mkdir(parents=True, exist_ok=True)
    budget = peer["bytes"] + (model.beside() if container(kind) == "mlx" else 0)
    values = {
        "halfbyte": model.options.halfbyte, "source": model.checkpoint, "container": container(kind), "bytes": budget, "out": out,
        "calibration": model.options.calibration, "context": model.protocol.context, "chunks": model.protocol.calibration_chunks, "type": kind,
    }  # fmt: skip
    checked([part.format(**values) for part in shlex.split(template)])
    return model_of(out)


def candidates(model, kind, peer):
    """(label, path) of each of our files for one of the peer's."""
    for label, template in model.options.ours:
        yield label, our_file(model, kind, label, template, peer)
    for label, folder in model.options.made:
        yield label, model_of(Path(folder) / model.name / kind)


def judge(checks, model, kind, label, peer, ours):
    """Whether ours is no larger, and where a goal is set, as much better as wanted, by both measurements; returns the table's verdict."""
    what = f"{model.name} {kind}, {label}"
    fits = ours["bytes"] <= peer["bytes"]
    checks.that(fits, f"{what}: {ours['bytes']:,} bytes <= {peer['bytes']:,}")
    if kind not in model.protocol.goals:
        return "" if fits else "larger"
    goal, verdicts = GOALS[container(kind)], []
    for by in model.options.by:
        here, there = ours[by], peer[by]
        ratio = here["mean_kld"] / there["mean_kld"]
        holds = ratio <= goal and here["kld_99_9"] <= there["kld_99_9"] and here["same_top1"] >= there["same_top1"]
        checks.that(
            holds,
            f"{what}, by {by}: mean KLD {here['mean_kld']:.5f} is {ratio:.3f} of {there['mean_kld']:.5f}, at most {goal} is wanted; "
            f"99.9 % {here['kld_99_9']:.3f} <= {there['kld_99_9']:.3f}; same top-1 {here['same_top1']:.4f} >= {there['same_top1']:.4f}",
        )
        verdicts.append("holds" if holds else "no")
    return f"≤ {goal}: " + " / ".join(verdicts) if fits else "larger"


def cells(row, by):
    """Bytes, and as each of `by` finds them: mean KLD, 99.9 % KLD, same top-1."""
    figures = [("mean_kld", "{:.5f}", 1), ("kld_99_9", "{:.3f}", 1), ("same_top1", "{:.2f} %", 100)]
    return [f"{row['bytes']:,}", *(" / ".join(form.format(scale * row[way][key]) for way in by) for key, form, scale in figures)]


def table(rows, by):
    """Of (kind, peer's figures, label, our figures, verdict), ours None where there are none."""
    head = ["peer's file", "bytes", "KLD", "99.9 %", "top-1"]
    if any(ours for *_, ours, _ in rows):
        head += ["ours", "bytes", "KLD", "99.9 %", "top-1", "ratio", "goal"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for kind, peer, label, ours, verdict in rows:
        line = [kind, *cells(peer, by)]
        if ours:
            ratio = " / ".join(f"{ours[way]['mean_kld'] / peer[way]['mean_kld']:.3f}" for way in by)
            line += [label, *cells(ours, by), ratio, verdict]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("halfbyte", "llama_bin", "work", "calibration", "text"):
        parser.add_argument(name, type=lambda path: Path(path).resolve())
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--peers", type=lambda names: names.split(","))
    parser.add_argument("--ours", nargs=2, action="append", default=[], metavar=("LABEL", "COMMAND"))
    parser.add_argument("--made", nargs=2, action="append", default=[], metavar=("LABEL", "DIR"))
    parser.add_argument("--peers-only", action="store_true")
    parser.add_argument("--by", type=lambda names: names.split(","), default=["verify", "engine"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    if not (options.peers_only or options.ours or options.made):
        options.ours = [("calibrated", CALIBRATED)]
    options.work.mkdir(parents=True, exist_ok=True)
    checks, tables = Checks(), []
    windows = {name: [it.context, it.chunks, it.mlx_chunks, it.calibration_chunks] for name, it in PROTOCOLS.items()}
    way = {"calibration": digest(options.calibration), "text": digest(options.text), "windows": windows}
    peers, ours = (Store(options.work / f"{name}.json", way) for name in ("peers", "ours"))

    def one(model, kind, rows):
        peer = peers.measured(model, model.peer(kind), model.name, kind)
        print(f"       {model.name} {kind}: {', '.join(cells(peer, options.by))}", flush=True)
        compared = len(rows)
        for label, path in candidates(model, kind, peer):
            row = ours.measured(model, path, label, model.name, kind)
            rows.append((kind, peer, label, row, judge(checks, model, kind, label, peer, row)))
        if len(rows) == compared:
            rows.append((kind, peer, None, None, None))

    for pair in options.models:
        name, checkpoint = pair.split("=", 1)
        model, rows = Model(name, checkpoint, options), []
        for kind in model.protocol.gguf + model.protocol.mlx:
            if not options.peers or kind in options.peers:
                checks.case(f"{name} {kind}", one, model, kind, rows)
        tables.append(f"\n{name}, by {' / by the '.join(options.by)}:\n\n{table(rows, options.by)}")
    print(*tables, sep="\n", end="\n\n")
    checks.close()


if __name__ == "__main__":
    main()
