"""INDEX.md of the folders with logits: index.py OUT.md FOLDER_OF_FOLDERS..."""

import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
lines = [
    "# Peers' folders and their own logits",
    "",
    "`compare.py HALFBYTE INDEX.md` reads this table. Beside each FOLDER, `FOLDER.logits/{ids,logits}.safetensors` and `how.json`.",
    "",
    "| folder | quantized by | engine of the logits | type | lost keys and odd things |",
    "|---|---|---|---|---|",
]
notes = json.loads((out.parent / "odd.json").read_text()) if (out.parent / "odd.json").exists() else {}
for where in map(Path, sys.argv[2:]):
    for beside in sorted(where.glob("*.logits")):
        folder = beside.with_name(beside.name.removesuffix(".logits"))
        how = json.loads((beside / "how.json").read_text())
        versions = ", ".join(f"{name} {number}" for name, number in how["versions"].items())
        odd = [f"lost {how['lost']}"] if how.get("lost") else []
        if "native" in how:
            odd.append(f"its own {how['native']['dtype']} product is off by {how['native']['off']:.1e} of the largest")
        odd += [text for key, text in notes.items() if key in folder.name]
        maker = {"gptqmodel": "GPTQModel 7.7.0", "llmcompressor": "llm-compressor 0.14.0.1, compressed-tensors 0.19.0", "autoround": "AutoRound 0.16.1", "mlx": "mlx-lm 0.32.2"}
        by = next((name for key, name in maker.items() if folder.name.startswith(key)), "?")
        tolerance = " | tolerance 2e-2" if how["dtype"] != "float32" else ""
        lines.append(f"| `{folder.relative_to(out.parent.resolve()) if folder.is_absolute() else folder}` | {by} | {how['engine']} ({versions}) | {how['dtype']} | {'; '.join(odd)}{tolerance} |")
out.write_text("\n".join(lines) + "\n")
print(len(lines) - 6, "folders")
