"""A real model: SmolLM2-135M converted, and run by llama.cpp against mlx-lm on the unconverted checkpoint; halfbyte verify against
llama.cpp on the same files, and on a graphics processor (Mesa's software one, where there is no other) against itself.

    smollm2_check.py HALFBYTE CHECKPOINT SCRATCH
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from checks import TEXT, Checks, quantize
from llama import Llama
from measure import divergence, log_softmax
from mlx_model import MlxModel
from tokenizers import Tokenizer
from verify_check import perplexity, verify, widened

# Format -> the largest mean divergence (nats) from the unconverted model in float32: two to three times what llama-quantize's
# own files show on this passage.
FORMATS = {"f16": 0.001, "bf16": 0.001, "q8_0": 0.02, "q4_k_m": 0.4, "q4_0": 0.9, "iq4_xs": 0.8, "mxfp4": 3.0}
# Format -> the largest mean divergence (nats) of halfbyte verify from llama.cpp, which rounds activations, to F16 or to 8 bits: three
# times what is found. Q4_K_M's weights cost 0.12.
VERIFIED = {"f16": 6e-6, "q4_k_m": 0.02}
# And where it doesn't round, because the same weights are given to it in F32: three times what single precision makes of 30 layers.
EXACT = 2e-10
EXACT_POSITIONS = 4
# Figure -> how far a graphics processor's may be from the processor's.
DEVICE = {"perplexity": 1e-5, "reference_perplexity": 1e-5, "mean_kld": 1e-4}
PASSAGE = "The capital of France is Paris, which lies on the river Seine. The capital of Italy is"
CONTINUATION = 8  # past it the next two candidates lie within rounding of each other


def figures(halfbyte, model, source, device):
    """What verify says of a model against its source, run on a device over two pieces of 128 tokens."""
    text = Path(__file__).parents[2] / "src/shrink/persuasion.txt"
    options = ["--against", source, "--text", text, "--context", "128", "--chunks", "2", "--device", device, "--json"]
    run = subprocess.run([halfbyte, "verify", model, *options], capture_output=True, check=True, text=True)
    return json.loads(run.stdout)


def main(halfbyte, source, scratch):
    checks, source, scratch = Checks(), Path(source), Path(scratch)
    words = Tokenizer.from_file(str(source / "tokenizer.json"))
    ids = words.encode(PASSAGE).ids
    reference = MlxModel(source)
    following = reference.greedy(ids, CONTINUATION)
    print(f"       unconverted, mlx-lm goes on: {words.decode(following)!r}")
    positions = range(1, len(ids), 2)
    truth = reference.log_probabilities(ids)[1::2]

    def one(form, ceiling):
        path = quantize(halfbyte, source, "gguf", form, scratch / f"smollm2-{form}.gguf")
        llama = Llama(path, threads=2)
        if form == "f16":
            expected = words.encode(TEXT).ids
            checks.that(llama.tokenize(TEXT) == expected, f"{form}: llama.cpp's tokenizer gives the {len(expected)} ids that tokenizers gives")
            found = llama.greedy(ids, CONTINUATION)
            checks.that(found == following, f"{form}: llama.cpp goes on as mlx-lm does on the unconverted checkpoint")
        here = np.array([llama.distribution(ids[: end + 1], truth.shape[1]) for end in positions])
        found = divergence(truth, here)
        words_now = words.decode(llama.greedy(ids, CONTINUATION))
        size = path.stat().st_size
        checks.that(found <= ceiling, f"{form}: {size:,} bytes, mean divergence {found:.5f} <= {ceiling} over {len(positions)} positions; goes on {words_now!r}")
        if form in VERIFIED:
            check_verify(form, path, log_softmax(here))
        path.unlink()

    def check_verify(form, path, theirs):
        ours = verify(halfbyte, path, ids, scratch)[0]
        at = ours[positions]
        found, following = divergence(theirs, at), ids[2::2]
        checks.that(
            found <= VERIFIED[form],
            f"{form}: from llama.cpp verify's mean divergence is {found:.1e} <= {VERIFIED[form]}, perplexity {perplexity(at, following):.3f}, "
            f"llama.cpp's {perplexity(theirs, following):.3f}",
        )
        if form != "q4_k_m":
            return
        plain = quantize(halfbyte, source, "gguf", "f32", scratch / "smollm2-f32.gguf")
        llama = Llama(widened(path, plain, scratch / "smollm2-widened.gguf"), threads=2, exact=True)
        last = positions[-EXACT_POSITIONS:]
        exact = log_softmax(np.array([llama.distribution(ids[: end + 1], truth.shape[1], ids[0]) for end in last]))
        found = divergence(exact, ours[last])
        checks.that(found <= EXACT, f"{form}, weights by gguf-py in F32: verify computes what llama.cpp computes, mean divergence {found:.1e} <= {EXACT}")

    def check_device(form):
        path = quantize(halfbyte, source, "gguf", form, scratch / f"smollm2-{form}.gguf")
        ours, theirs = [figures(halfbyte, path, source, device) for device in ("cpu", "gpu")]
        for name, allowed in DEVICE.items():
            off = abs(theirs[name] / ours[name] - 1)
            checks.that(off <= allowed, f"{form} on {theirs['protocol'].split(', on ')[1]}: {name} {theirs[name]:.6g}, the processor's within {off:.1e} <= {allowed}")
        path.unlink()

    checks.case("device", check_device, "q4_k_m")
    for form, ceiling in FORMATS.items():
        checks.case(form, one, form, ceiling)
    checks.close()


if __name__ == "__main__":
    main(*sys.argv[1:4])
