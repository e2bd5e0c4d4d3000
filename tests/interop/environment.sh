# Sourced by the scripts beside it and by the acceptance scripts: $root, $python (with the pinned packages), $halfbyte.
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
