# Sourced after environment.sh: $peer_python (torch, transformers, mlx-lm), $llama (llama.cpp's source, with convert_hf_to_gguf.py) and
# $llama_bin (its programs, of which PROGRAMS are built). All of it comes from PyPI: llama.cpp from llama-cpp-python's source distribution.
LLAMA_CPP_PYTHON=0.3.36
PROGRAMS="llama-quantize llama-perplexity llama-imatrix"

# Made in target/peers (4.5 GB, most of it CUDA's libraries, which torch won't start without), and again when the pins change.
# Needs a C++ compiler.
find_peers() {
    local peers=$target/peers pins=$root/tests/acceptance
    local pip="$peers/venv/bin/python -m pip --quiet --disable-pip-version-check"
    local made; made=$(cat "$pins/peers.txt" "$pins/peers_torch.txt" "$root/tests/interop/requirements.txt"; echo "$LLAMA_CPP_PYTHON $PROGRAMS")
    if [ "$(cat "$peers/made" 2>/dev/null)" != "$made" ]; then
        rm -rf "$peers"
        python3 -m venv "$peers/venv"
        $pip install -r "$pins/peers.txt"
        $pip install --no-deps -r "$pins/peers_torch.txt"
        $pip download --no-deps --no-binary llama-cpp-python --dest "$peers" "llama-cpp-python==$LLAMA_CPP_PYTHON"
        tar -xzf "$peers"/llama_cpp_python-*.tar.gz -C "$peers"
        local cmake="$peers/venv/bin/cmake"
        PATH=$peers/venv/bin:$PATH "$cmake" -G Ninja -S "$peers/llama_cpp_python-$LLAMA_CPP_PYTHON/vendor/llama.cpp" -B "$peers/build" \
            -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
            -DLLAMA_BUILD_SERVER=OFF >"$peers/build.log"
        "$cmake" --build "$peers/build" --target $PROGRAMS >>"$peers/build.log"
        echo "$made" >"$peers/made"
    fi
    peer_python=$peers/venv/bin/python
    llama=$peers/llama_cpp_python-$LLAMA_CPP_PYTHON/vendor/llama.cpp
    llama_bin=$peers/build/bin
}
