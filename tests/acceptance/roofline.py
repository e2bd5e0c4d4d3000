"""How long evaluating 1,000 tokens of DeepSeek-R1 should take on an M3 Ultra, by a roofline of every kernel. An ESTIMATE: nothing was measured on a Mac.

    roofline.py [--tokens 4096] [--context 2048] [--weights q4_k_m|fp8] [--operands f16|f32] [--unit cooperative|plain] [--markdown]

All tokens in one block, in sequences of the context's length. `--operands f16` is `halfbyte verify --fast`, `f32` is without. A kernel's time is
the longer of FLOPs / (peak × efficiency) and bytes / (bandwidth × efficiency); the table counts all layers. Bytes are given three times:

- once: what is read and written if every value comes from memory once,
- tiles: what the workgroups ask for, each for its own tile,
- used: what the time is computed from. A value that is asked for again comes from the system cache if what is gone through in between is no more
  than half of it, else from memory. A cache's own bandwidth is taken for endless; what it would be without one is in the totals.

Ends with an error if the FLOPs are not 2 × active parameters × tokens, and attention's.
"""

import argparse
import sys
from math import ceil, floor
from typing import NamedTuple

# The machine. Hugging Face's table of hardware has 14.2 TFLOPS for the M3 Max with 40 cores of the same kind, philipturner/applegpuinfo (issue 4) shows 14.3
# at 1.398 GHz; 80 have twice that, 80 × 128 lanes × 2 × 1.39 GHz. Half precision is no faster on these lanes (philipturner/metal-benchmarks, of the M1: "F16 is
# neither faster nor slower than F32"), nor are matrices of 8 × 8, which are multiplied by them too.
PEAK = {"f32": 28.4e12, "f16": 28.4e12}
CORES = 80
BANDWIDTH = 819e9
# 48 MB reported of an M3 Max (the same issue), of which this is two.
CACHE = 96e6

# Assumptions. What products reach of the peak: llama.cpp's kernel, of the same design (64 × 32, weights decoded on the way, halves), had 0.51 (Q4_K_M) and
# 0.58 (Q4_0) of an M2 Ultra's 27.2 TFLOPS: 1028 and 1164 tokens/s of 7B (ggml-org/llama.cpp, pull request 3084). Decoding and staging are in it. Single
# precision moves twice as much through workgroup memory. Without matrices: the best WGSL of FL33TW00D/wgpu-mm had 0.35 of an M1.
PRODUCT = {("cooperative", "f16"): 0.5, ("cooperative", "f32"): 0.4, ("plain", "f16"): 0.3, ("plain", "f32"): 0.3}
# Attention multiplies without matrices, and brings 0.5 to 0.75 values from workgroup memory for every multiplication.
ATTENTION = 0.25
# Of the bandwidth: clpeak reads at 0.94 of it on an M3 Max, but kernels write as well.
STREAM = 0.8
# A dispatch has a pass of its own, and waits for the one before.
DISPATCH = 5e-6
# The internal SSD: 5.5 GB/s were measured with the smallest one in 2025's Mac Studio (macg.co); larger ones have more chips.
SSD = 6e9
# What was read is copied to the device's buffer by one core, before more is read.
COPY = 20e9
# Hidden states between host and device: an allocation and two copies by one core.
TRANSFER = 10e9
# A token's experts are chosen by one core, which sorts 256 scores.
CHOICE = 10e-6

# The kernels.
TILE = 64
SCORES = 2048
BINDING = 4 * 2**30 - 2**20
STRETCH = 2048
SCORED = 4096

# DeepSeek-R1.
LAYERS, DENSE, WIDTH, HEADS, Q_RANK, LATENT, NOPE, ROPE, VALUE = 61, 3, 7168, 128, 1536, 512, 128, 64, 128
DENSE_INNER, INNER, EXPERTS, CHOSEN, VOCABULARY = 18432, 2048, 256, 8, 129280
KEY, SPARSE = NOPE + ROPE, LAYERS - DENSE
ACTIVE = 37e9
PARAMETERS = 671e9

# Bits per weight: in the file, and in the device's buffer, where FP8's scales are written out for every row.
BITS = {"q4_k_m": (4.82, 4.82), "fp8": (8 + 32 / 128**2, 8 + 32 / 128)}
ROUTER_BITS = {"q4_k_m": 32, "fp8": 16}
HEAD_BITS = {"q4_k_m": 4.82, "fp8": 16}
TOTALS = (4096, 65536)
SETTINGS = (("f16", "cooperative"), ("f32", "cooperative"), ("f16", "plain"))


class Case(NamedTuple):
    weights: str
    operands: str
    unit: str
    tokens: int
    context: int

    def size(self):
        """Bytes of an operand's value."""
        return 2 if self.operands == "f16" else 4


class Kernel(NamedTuple):
    """One kernel, with the figures of a single run; `runs` of them are made."""

    name: str
    runs: float
    once: float
    tiles: float
    used: float
    flops: float = 0.0
    executed: float = 0.0
    rate: float = 1.0
    dispatches: int = 1
    # Of routed experts: runs while weights are read.
    hidden: bool = False

    def compute(self):
        return self.runs * self.executed / self.rate

    def memory(self, moved=None):
        return self.runs * (self.used if moved is None else moved) / (BANDWIDTH * STREAM)

    def seconds(self, traffic="used"):
        return max(self.compute(), self.memory(getattr(self, traffic))) + self.runs * self.dispatches * DISPATCH


def fits(size):
    return size <= CACHE / 2


def tiles_of(tokens, routed):
    """Tiles of tokens, and how likely each number is: how many tokens an expert gets is not a multiple of a tile, on average half of one more."""
    if not routed:
        return [(ceil(tokens / TILE), 1.0)]
    mean = max(tokens / TILE + 0.5, 1.0)
    low = floor(mean)
    return [(low, 1 - (mean - low)), (low + 1, mean - low)]


def product(case, name, runs, tokens, rows, columns, bits, batch=1, routed=False):
    """x · wᵀ: a workgroup makes 64 tokens × 64 rows, tiles of rows first, then of tokens, then of the batch's matrices, which share x."""
    counts = tiles_of(tokens, routed)
    token_tiles, row_tiles = sum(count * p for count, p in counts), ceil(rows / TILE)
    # The cores are done together only if the workgroups are a multiple of them.
    waves = sum(ceil(count * row_tiles * batch / CORES) * p for count, p in counts)
    busy = token_tiles * row_tiles * batch / (CORES * waves)
    weights, x, out = rows * columns * bits / 8, tokens * columns * case.size(), tokens * rows * batch * 4
    again = fits(x) or batch == 1
    return Kernel(
        name,
        runs,
        once=batch * weights + x + out,
        tiles=batch * weights * token_tiles + x * row_tiles * batch + out,
        used=batch * weights * (1 if fits(weights) else token_tiles) + x * (1 if again else batch) + out,
        flops=2 * tokens * rows * columns * batch,
        executed=2 * token_tiles * TILE * row_tiles * TILE * columns * batch,
        rate=PEAK[case.operands] * PRODUCT[case.unit, case.operands] * busy,
        hidden=routed,
    )


def stream(name, runs, values, once, tiles=None, hidden=False, dispatches=1):
    """A kernel that goes through values once: bytes for each of them."""
    return Kernel(name, runs, values * once, values * (tiles or once), values * once, dispatches=dispatches, hidden=hidden)


def linear(case, name, runs, tokens, rows, columns, bits=None, batch=1, routed=False):
    """A product and what comes with it: activations to half precision before, results times their scales after."""
    made = product(case, name, runs, tokens, rows, columns, bits or BITS[case.weights][1], batch, routed)
    if case.operands == "f32":
        return [made]
    prefix = "experts: " if routed else ""
    # Rows are halved in two passes, the second from a cache.
    halve = stream(f"{prefix}halve", runs, tokens * columns, 6, 10, routed)
    return [halve, made, stream(f"{prefix}rescale", runs, tokens * rows * batch, 8, hidden=routed)]


def mlp(case, name, runs, tokens, inner, routed=False):
    names = ["experts: gate", "experts: up", "experts: down"] if routed else [name] * 3
    return [
        *linear(case, names[0], runs, tokens, inner, WIDTH, routed=routed),
        *linear(case, names[1], runs, tokens, inner, WIDTH, routed=routed),
        stream("experts: silu" if routed else "elementwise", runs, tokens * inner, 12, hidden=routed),
        *linear(case, names[2], runs, tokens, WIDTH, inner, routed=routed),
    ]


def sequences(case):
    length = min(case.context, case.tokens)
    return case.tokens / length, length


def attend(case):
    """A workgroup has 32 queries of a head (64 of narrow ones), and goes through all keys up to the last of them, 64 or 32 at a time. Scores are made of all keys
    of a tile, sums of values only of those up to the last query."""
    count, length = sequences(case)
    queries = 64 if VALUE <= 64 else 32
    keys = SCORES // queries
    executed = asked = asked_again = flops = 0
    for first in range(0, length, queries):
        end = min(first + queries, length)
        tiles = ceil(end / keys)
        executed += 2 * queries * (tiles * keys * KEY + end * VALUE)
        asked += 4 * end * (KEY + VALUE)
        asked_again += 4 * tiles * queries * KEY
        flops += sum(2 * (query + 1) * (KEY + VALUE) for query in range(first, end))
    # Keys and values, as well as queries and results. A tile's queries are read again for every tile of keys, but they are few.
    once = 4 * length * (KEY + VALUE)
    # Tiles are sorted by how much they see, of all sequences that can be bound at once: their keys and values are gone through in turn.
    bound = min(count, max(1, BINDING // (4 * HEADS * KEY * length)))
    again = fits(bound * 4 * length * (KEY + VALUE))
    scale = count * HEADS
    return Kernel(
        "attention",
        LAYERS,
        once=scale * 2 * once,
        tiles=scale * (asked + asked_again + 4 * length * VALUE),
        used=scale * ((once if again else asked) + once),
        flops=scale * flops,
        executed=scale * executed,
        rate=PEAK["f32"] * ATTENTION,
    )


def latent_attention(case):
    """As in verify/src/families/mla.rs, in its order. k_b is transposed, and so in single precision."""
    tokens = case.tokens

    def norm(columns):
        return stream("norm", LAYERS, tokens * columns, 8, 12)

    return [
        norm(WIDTH),
        *linear(case, "q_a", LAYERS, tokens, Q_RANK, WIDTH),
        norm(Q_RANK),
        *linear(case, "q_b", LAYERS, tokens, HEADS * KEY, Q_RANK),
        stream("rope", LAYERS, tokens * (HEADS + 1) * ROPE, 8, dispatches=2),
        *linear(case, "kv_a", LAYERS, tokens, LATENT + ROPE, WIDTH),
        stream("copy", LAYERS, tokens * (LATENT + ROPE), 8, dispatches=2),
        norm(LATENT),
        *linear(case, "k_b", LAYERS, tokens, NOPE, LATENT, 32, HEADS),
        stream("copy", LAYERS, tokens * HEADS * NOPE, 8),
        stream("copy", LAYERS, tokens * HEADS * ROPE, 4, 8),
        *linear(case, "v_b", LAYERS, tokens, VALUE, LATENT, batch=HEADS),
        attend(case),
        *linear(case, "o", LAYERS, tokens, WIDTH, HEADS * VALUE),
        stream("elementwise", LAYERS, tokens * WIDTH, 12),
    ]


def dense(case):
    tokens = case.tokens
    return [
        stream("norm", DENSE, tokens * WIDTH, 8, 12),
        *mlp(case, "dense MLP", DENSE, tokens, DENSE_INNER),
        stream("elementwise", DENSE, tokens * WIDTH, 12),
    ]


def mixture(case):
    """As in verify/src/mixture.rs: two banks, the router and the shared expert over all tokens, then one expert after the other."""
    tokens, runs, each = case.tokens, SPARSE * EXPERTS, case.tokens * CHOSEN / EXPERTS
    return [
        stream("norm", SPARSE, tokens * WIDTH, 8, 12),
        # Two are cleared and written, one is taken.
        stream("copy", SPARSE, tokens * WIDTH, 2 * 4 + 3 * 8, dispatches=5),
        *linear(case, "router", SPARSE, tokens, EXPERTS, WIDTH, ROUTER_BITS[case.weights]),
        *mlp(case, "shared expert", SPARSE, tokens, INNER),
        stream("experts: gather", runs, each * WIDTH, 8, hidden=True),
        *mlp(case, "", runs, each, INNER, routed=True),
        stream("experts: scatter", runs, each * WIDTH, 12, hidden=True),
        stream("elementwise", SPARSE, tokens * WIDTH, 12),
    ]


def ends(case):
    """4,096 tokens at a time, 2,048 of the vocabulary at a time; activations are made halves each time anew. The logits are read twice."""
    runs = case.tokens / min(SCORED, case.tokens)
    tokens, stretches = min(SCORED, case.tokens), ceil(VOCABULARY / STRETCH)
    rows = VOCABULARY / stretches
    return [
        stream("norm", runs, tokens * WIDTH, 8, 12),
        *linear(case, "head", runs * stretches, tokens, rows, WIDTH, HEAD_BITS[case.weights]),
        stream("divergence", runs * stretches, tokens * rows, 8),
    ]


def kernels(case):
    """All kernels, those of the same name together."""
    found = {}
    for kernel in [*latent_attention(case), *dense(case), *mixture(case), *ends(case)]:
        found.setdefault(kernel.name, []).append(kernel)
    return found


def stored(case):
    """Bytes of the file that are read: all but the embedding, of which some rows are."""
    bits = BITS[case.weights][0]
    router, head = SPARSE * EXPERTS * WIDTH, VOCABULARY * WIDTH
    return ((PARAMETERS - router - 2 * head) * bits + router * ROUTER_BITS[case.weights] + head * HEAD_BITS[case.weights]) / 8


class Times(NamedTuple):
    """Seconds for all tokens; the experts' kernels and the reading of weights go on at the same time, nothing else does."""

    experts: float
    rest: float
    host: float
    read: float
    copied: float

    def gpu(self):
        return self.experts + self.rest

    def streamed(self):
        return self.rest + self.host + max(self.experts, self.read + self.copied)


def times(case, traffic="used"):
    every = [kernel for group in kernels(case).values() for kernel in group]
    states = 4 * case.tokens * WIDTH
    # To the device and back for attention and for a dense MLP; for experts twice there and once back. One more to be able to begin again, and to look for NaN.
    passes = LAYERS * 3 + DENSE * 2 + SPARSE * 3
    return Times(
        sum(kernel.seconds(traffic) for kernel in every if kernel.hidden),
        sum(kernel.seconds(traffic) for kernel in every if not kernel.hidden),
        passes * states / TRANSFER + SPARSE * case.tokens * CHOICE,
        stored(case) / SSD,
        stored(case) / COPY,
    )


def table(rows, markdown):
    """Rows of text, the first of them the titles; numbers to the right."""
    if markdown:
        line = "|---|" + "---:|" * (len(rows[0]) - 1)
        return [f"| {' | '.join(row)} |" for row in rows[:1]] + [line] + [f"| {' | '.join(row)} |" for row in rows[1:]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows]


def kernel_row(name, group, per):
    """The kernels of one name: FLOPs that are needed and that are done, in tiles that are not full."""
    flops, done, *moved = (sum(kernel.runs * getattr(kernel, part) for kernel in group) * per for part in ("flops", "executed", "once", "tiles", "used"))
    compute, memory, seconds = (sum(getattr(kernel, part)() for kernel in group) * per for part in ("compute", "memory", "seconds"))
    launches = sum(kernel.runs * kernel.dispatches for kernel in group) * per
    longest = max((compute, "compute"), (memory, "memory"), (launches * DISPATCH, "launches"))[1]
    computed = (f"{flops / 1e12:.2f}", f"{done / 1e12:.2f}") if flops else ("", "")
    intensity = (f"{done / moved[2]:.0f}", f"{1e3 * compute:.0f}") if flops else ("", "")
    return (name, f"{launches:,.0f}", *computed, *(f"{size / 1e9:.1f}" for size in moved), *intensity, f"{1e3 * memory:.0f}", f"{1e3 * seconds:.0f}", longest)


def kernel_rows(case):
    """A row for each kernel, for 1,000 tokens."""
    titles = ("kernel", "launches", "TFLOP", "done", "GB once", "GB tiles", "GB used", "FLOP/B", "compute ms", "memory ms", "ms", "bound by")
    return [titles, *(kernel_row(name, group, 1000 / case.tokens) for name, group in kernels(case).items())]


def total_rows(case):
    """Seconds for 1,000 tokens, for as many tokens at once as `TOTALS` says, side by side."""
    parts = ("GPU", "reading", "copying", "host", "in all", "tokens/s")
    rows = [("weights, operands, unit", *(f"{tokens:,}: {part}" if part == "GPU" else part for tokens in TOTALS for part in parts))]
    for weights in BITS:
        for operands, unit in SETTINGS:
            row = [f"{weights}, {operands}, {unit}"]
            for tokens in TOTALS:
                found, per = times(Case(weights, operands, unit, tokens, case.context)), 1000 / tokens
                seconds = found.streamed() * per
                row += [f"{part * per:.1f}" for part in (found.gpu(), found.read, found.copied, found.host, found.streamed())] + [f"{1000 / seconds:.0f}"]
            rows.append(tuple(row))
    return rows


def check(case):
    """The FLOPs of all products are 2 × active parameters × tokens, and attention's what a triangle has."""
    every = [kernel for group in kernels(case).values() for kernel in group]
    attention = sum(kernel.runs * kernel.flops for kernel in every if kernel.name == "attention")
    products = sum(kernel.runs * kernel.flops for kernel in every) - attention
    count, length = sequences(case)
    triangle = LAYERS * HEADS * 2 * (KEY + VALUE) * count * length * (length + 1) / 2
    active = products / (2 * case.tokens)
    if abs(active / ACTIVE - 1) > 0.02 or abs(attention / triangle - 1) > 1e-9:
        sys.exit(f"products are of {active / 1e9:.2f} B parameters, not {ACTIVE / 1e9:.0f}; attention has {attention:.4g} FLOPs, not {triangle:.4g}")
    return (
        f"checked: products are 2 × {active / 1e9:.2f} B × tokens (published: {ACTIVE / 1e9:.0f} B active), "
        f"attention {attention / case.tokens / 1e9:.2f} GFLOP a token at {length:,}"
    )


def main(arguments):
    case = Case(arguments.weights, arguments.operands, arguments.unit, arguments.tokens, arguments.context)
    print("ESTIMATE by rooflines: nothing here was measured on a Mac.", end="\n\n")
    print(f"{case.weights}, {case.operands}, {case.unit}: {case.tokens:,} tokens in sequences of {sequences(case)[1]:,}; all layers, for 1,000 tokens", end="\n\n")
    print(*table(kernel_rows(case), arguments.markdown), sep="\n", end="\n\n")
    busy = [times(case, traffic).gpu() * 1000 / case.tokens for traffic in ("once", "used", "tiles")]
    print("GPU: {1:.2f} s; {0:.2f} if every value came from memory once, {2:.2f} if every tile did".format(*busy), end="\n\n")
    print("Seconds for 1,000 tokens, if so many share one reading of the weights; reading and copying go on while experts are computed", end="\n\n")
    print(*table(total_rows(case), arguments.markdown), sep="\n", end="\n\n")
    for weights in BITS:
        size = stored(case._replace(weights=weights))
        print(f"{weights}: {size / 1e9:.0f} GB to read, {size / SSD:.0f} s at {SSD / 1e9:.0f} GB/s, {size / COPY:.0f} s to copy at {COPY / 1e9:.0f} GB/s")
    print(check(case))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--weights", choices=BITS, default="q4_k_m")
    parser.add_argument("--operands", choices=PEAK, default="f16")
    parser.add_argument("--unit", choices=("cooperative", "plain"), default="cooperative")
    parser.add_argument("--markdown", action="store_true")
    main(parser.parse_args())
