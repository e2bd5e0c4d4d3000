"""A GGUF running in llama.cpp, by way of the prebuilt `xllamacpp`."""

import json
import urllib.request

import numpy as np
import xllamacpp


class Llama:
    """llama.cpp's server on a loopback port, one slot, computing on the CPU.

    One thread suits the tiny models: more spend their time waiting for each other.
    """

    def __init__(self, gguf, threads=1, context=256):
        params = xllamacpp.CommonParams()
        params.model.path = str(gguf)
        params.n_ctx = context
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.warmup = False
        params.verbosity = 1  # errors only
        params.cpuparams.n_threads = threads
        self.server = xllamacpp.Server(params)

    def post(self, path, **body):
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def tokenize(self, text):
        return self.post("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]

    def greedy(self, ids, count):
        """The `count` ids that follow `ids` when the likeliest is taken each time."""
        answer = self.post(
            "/completion", prompt=ids, n_predict=count, temperature=0, ignore_eos=True, return_tokens=True, cache_prompt=False
        )
        return answer["tokens"]

    def distribution(self, ids, vocabulary):
        """ln p of every token after `ids`, as float64 [vocabulary]."""
        answer = self.post("/completion", prompt=ids, n_predict=1, temperature=1, n_probs=vocabulary, cache_prompt=False)
        out = np.full(vocabulary, -np.inf)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            out[entry["id"]] = entry["logprob"]
        return out
