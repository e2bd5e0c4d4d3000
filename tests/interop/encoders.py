"""Tables of our encoders against ggml's and mlx's: speed on one core, and root mean square errors.

    encoders.py ERRORS SPEEDS

ERRORS is what the test `oracle_encode` prints, SPEEDS what the benchmark `encode` prints. The peers are timed here: ggml's
`ggml_quantize_chunk` in the library of `xllamacpp`, `mx.quantize` on the CPU. Each figure is the fastest of many
runs over 16 rows of 4096 weights.
"""

import ctypes
import glob
import os
import re
import sys
import time
from collections import defaultdict

import gguf
import mlx.core as mx
import numpy as np
import xllamacpp

ROWS, COLUMNS = 16, 4096


def main(errors_path, speeds_path):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    errors, ours = read_errors(errors_path), read_speeds(speeds_path)
    isas = sorted({isa for _, _, isa in ours})
    ggml = Ggml()
    mx.set_default_device(mx.cpu)
    print("| format | " + " | ".join(f"{isa} M/s" for isa in isas) + " | peer M/s | ratio | with importance M/s | peer M/s"
          " | ratio | RMSE ratio | with importance |")
    print("|---|" + "---|" * (len(isas) + 8))
    formats = dict.fromkeys(format for _, format, _ in ours)
    for format in sorted(formats, key=lambda format: format.startswith("mlx/")):
        peer = peers_name(format)
        if peer not in errors:
            continue
        cells = [f"{ours['encode', format, isa]:.0f}" for isa in isas]
        for table, importance in (("encode", False), ("encode_importance", True)):
            best = max(ours[table, format, isa] for isa in isas)
            if mlx_form(format):
                theirs = None if importance else mlx_speed(format)
            else:
                theirs = ggml.speed(format.upper(), importance)
            if importance:
                cells.append(f"{best:.0f}")
            cells += [f"{theirs:.1f}", f"{best / theirs:.1f}"] if theirs else ["", ""]
        for way in ("plain", "importance"):
            ratios = errors[peer][way]
            cells.append(f"{min(ratios):.3f}–{max(ratios):.3f}" if ratios else "")
        print(f"| {peer} | " + " | ".join(cells) + " |", flush=True)


def read_errors(path):
    """{peer's name: {"plain" | "importance": [ours / peer's of each input]}}"""
    out = defaultdict(lambda: defaultdict(list))
    for line in open(path):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 8 and cells[1] != "format" and cells[3] in ("plain", "importance"):
            out[cells[1]][cells[3]].append(float(cells[6]))
    return out


def read_speeds(path):
    """{(table, format, instruction set): M weights/s}, from divan's tree."""
    out, table, case = {}, None, None
    for line in open(path):
        if found := re.match(r"[├╰]─ (\w+) ", line):
            table = found[1]
        elif found := re.match(r"[│ ] +[├╰]─ (\S+) (\w+) ", line):
            case = found[1], found[2]
        elif case and (found := re.search(r"([\d.]+) ([KMG]?)item/s", line)):
            out[table, *case] = float(found[1]) * {"": 1e-6, "K": 1e-3, "M": 1.0, "G": 1e3}[found[2]]
            case = None
    return out


def fastest(run):
    """M weights/s of the fastest run within a second."""
    best, end = float("inf"), time.perf_counter() + 1
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return ROWS * COLUMNS / best / 1e6


def weights():
    return np.random.default_rng(0).normal(0, 0.02, (ROWS, COLUMNS)).astype(np.float32)


class Ggml:
    """ggml's encoders, out of the extension module of xllamacpp."""

    def __init__(self):
        (path,) = glob.glob(xllamacpp.__path__[0] + "/*.so")
        self.encode = ctypes.CDLL(path).ggml_quantize_chunk
        self.encode.restype = ctypes.c_size_t
        pointer, long = ctypes.c_void_p, ctypes.c_int64
        self.encode.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]

    def speed(self, name, importance):
        source = weights()
        columns = np.random.default_rng(1).lognormal(size=COLUMNS).astype(np.float32)
        out = np.zeros(ROWS * COLUMNS * 4, np.uint8)
        type, pointer = gguf.GGMLQuantizationType[name].value, columns.ctypes.data if importance else None
        return fastest(
            lambda: self.encode(type, source.ctypes.data, out.ctypes.data, 0, ROWS, COLUMNS, pointer)
        )


def mlx_form(format):
    """How `mx.quantize` is asked for one of our MLX formats; None if it is not one."""
    if found := re.fullmatch(r"mlx/(\d)bit-g(\d+)", format):
        return {"bits": int(found[1]), "group_size": int(found[2])}
    return {"mode": format[4:]} if format in ("mlx/mxfp4", "mlx/mxfp8", "mlx/nvfp4") else None


def peers_name(format):
    """What the errors call it."""
    if not format.startswith("mlx/"):
        return format.upper()
    form = mlx_form(format) or {}
    if "bits" in form:
        return "mlx_affine_b{bits}_g{group_size}".format(**form)
    return f"mlx_{format[4:]}"


def mlx_speed(format):
    source, form = mx.array(weights()), mlx_form(format)
    return fastest(lambda: mx.eval(mx.quantize(source, **form)))


if __name__ == "__main__":
    main(*sys.argv[1:])
