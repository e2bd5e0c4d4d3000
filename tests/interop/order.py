"""The order of execution, told from GGUF's names alone."""

import re

# What a block's tensors are read for, one after the other; norms are in between everywhere.
STAGES = (
    r"(attn_(?!norm)|ssm_|indexer\.)",
    r"ffn_(gate|up|down)\.",
    r"(ffn_gate_inp\.|exp_probs_b)",
    r"ffn_(gate|up|gate_up|down)_exps\.",
    r"ffn_(gate|up|down)_shexp\.",
    r"ffn_gate_inp_shexp\.",
)


def problems(names):
    """What is wrong with the order of a file's tensors: embedding, block after block, final norm and head."""
    found = []
    if names[0] != "token_embd.weight":
        found.append(f"{names[0]} is first")
    if [name for name in names if name.startswith("output")] != names[-1 - ("output.weight" in names) :]:
        found.append("final norm and head are not last")
    blocks = [int(match[1]) for name in names if (match := re.match(r"blk\.(\d+)\.", name))]
    if blocks != sorted(blocks):
        found.append("blocks are mixed")
    before = (-1, -1)
    for name in names:
        match = re.match(r"blk\.(\d+)\.(.*)", name)
        stages = [i for i, stage in enumerate(STAGES) if match and re.match(stage, match[2])]
        if stages:
            here = (int(match[1]), stages[0])
            if here < before:
                found.append(f"{name} is late")
            before = here
    return found
