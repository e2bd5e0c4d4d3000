"""Which folders vLLM loads on the CPU, and what it makes of them: vllm_check.py HALFBYTE FOLDER...

Both compute the log-probabilities of 64 random tokens, vLLM in BF16, `halfbyte verify` in single precision. A folder fails if they are further apart than
TOLERANCE nats for any token. What BF16 alone does to such a model is about half of that: the peers' own folders are as far off.
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

TOLERANCE = 0.1


def expected(halfbyte, folder):
    """Token ids [64], and halfbyte's log-probabilities [64, vocabulary] of what follows each."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = torch.randint(0, vocabulary, (1, 64), generator=torch.Generator().manual_seed(7))
    tokens, logits = folder.with_suffix(".ids"), folder.with_suffix(".logits")
    save_file({"input_ids": ids}, tokens)
    subprocess.run([halfbyte, "verify", folder, "--tokens", tokens, "--logits", logits], check=True, stdout=subprocess.DEVNULL)
    return ids[0].tolist(), load_file(logits)["logits"][0].log_softmax(-1)


def main(halfbyte, *folders):
    import vllm
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.platforms import current_platform

    print(f"vLLM {vllm.__version__} on {current_platform.device_type}", flush=True)
    failures = 0
    for folder in map(Path, folders):
        ids, ours = expected(halfbyte, folder)
        try:
            model = LLM(str(folder), dtype="bfloat16", enforce_eager=True, max_model_len=256, max_num_seqs=1)
            answer = model.generate([TokensPrompt(prompt_token_ids=ids)], SamplingParams(max_tokens=8, prompt_logprobs=0))[0]
        except Exception as error:
            failures += 1
            print(f"FAILED {folder.name:44} {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        pairs = enumerate(zip(ids[1:], answer.prompt_logprobs[1:]))
        off = [abs(entry[token].logprob - ours[at, token].item()) for at, (token, entry) in pairs]
        good = max(off) <= TOLERANCE and len(answer.outputs[0].token_ids) == 8
        failures += not good
        print(f"{'ok' if good else 'FAILED':6} {folder.name:44} ln p off by at most {max(off):.3f}, {sum(off) / len(off):.4f} in the mean", flush=True)
        del model
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
