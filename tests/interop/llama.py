"""A GGUF running in llama.cpp, by way of the prebuilt `xllamacpp`."""

import json
import urllib.request

import numpy as np
import xllamacpp


class Llama:
    """llama.cpp's server on a loopback port, one slot, computing on the CPU.

    One thread suits the tiny models: more spend their time waiting for each other. `exact` keeps attention in F32.
    """

    def __init__(self, gguf, threads=1, context=256, exact=False):
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.warmup = False
        params.verbosity = 1  # errors only
        params.cpuparams.n_threads = threads
        if exact:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def post(self, path, **body):
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def tokenize(self, text, special=True):
        """The ids of `text`; unless `special`, special tokens that are written out in it are plain text."""
        return self.post("/tokenize", content=text, add_special=False, parse_special=special)["tokens"]

    def greedy(self, ids, count):
        """The `count` ids that follow `ids` when the likeliest is taken each time."""
        answer = self.post(
            "/completion", prompt=ids, n_predict=count, temperature=0, ignore_eos=True, return_tokens=True, cache_prompt=False
        )
        return answer["tokens"]

    def distribution(self, ids, vocabulary, chosen=None):
        """ln p of every token after `ids`, as float64 [vocabulary].

        The server is silent about a token that is half a character; `chosen`, a whole one, is then taken instead of a random
        token. (Log-probabilities are those before any bias.)
        """
        bias = [[chosen, 1e4]] if chosen is not None else []
        answer = self.post(
            "/completion", prompt=ids, n_predict=1, temperature=1, n_probs=vocabulary, logit_bias=bias, cache_prompt=False
        )
        out = np.full(vocabulary, -np.inf)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            out[entry["id"]] = entry["logprob"]
        return out
