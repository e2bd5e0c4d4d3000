"""Writes safetensors shards piece by piece, so that a checkpoint larger than memory can be made, with holes where it is zero."""

import json

SIZES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}


def write_shards(folder, tensors, limit):
    """Writes `tensors`, (name, dtype, shape, make) each, to shards of at most `limit` bytes and their index.

    `make()` gives the tensor's bytes, or None for zeros, which are left as a hole in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards, room = [], 0
    for name, dtype, shape, make in tensors:
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        if size > room:
            shards.append([])
            room = limit
        shards[-1].append((name, dtype, shape, size, make))
        room -= size
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, dtype, shape, size, _ in shard:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            weight_map[name] = path.name
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            start = file.tell()
            file.truncate(start + offset)
            for name, *_, make in shard:
                data = make()
                if data is not None:
                    file.seek(start + header[name]["data_offsets"][0])
                    file.write(data)
        total += offset
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return total
