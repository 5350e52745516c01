"""Prefill attention in turns: cuDNN through torch on contiguous tensors without oracle output, and
this project's kernel on pages without and with oracle output.

In turns and in random order, because a GPU at its power limit slows down over seconds: every round
runs each of them once, and the ratios are medians over the rounds.

Usage: python3 full_prefill_peers.py LIBRARY [tokens ...]
LIBRARY is full_prefill_bench as a shared library: target cuda_full_prefill_peer.
"""

import ctypes
import random
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ROUNDS = 20


def load(path):
    library = ctypes.CDLL(path)
    library.prefill_shape.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
    library.prefill_create.restype = ctypes.c_void_p
    library.prefill_run.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.prefill_destroy.argtypes = [ctypes.c_void_p]
    return library


def timed_ms(run):
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def compare(library, shape, tokens):
    sizes = (ctypes.c_int * 4)()
    library.prefill_shape(shape, sizes)
    heads, kv_heads, dim, v_dim = sizes

    def tensor(h, d):
        return torch.randn(1, h, tokens, d, device="cuda", dtype=torch.bfloat16)

    q, k, v = tensor(heads, dim), tensor(kv_heads, dim), tensor(kv_heads, v_dim)

    def cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True,
                                                             enable_gqa=True)

    plain = library.prefill_create(shape, tokens, 0)
    oracle = library.prefill_create(shape, tokens, 1)
    runs = {
        "cuDNN": cudnn,
        "plain": lambda: library.prefill_run(plain, 0),
        "raw scores": lambda: library.prefill_run(oracle, 0),
        "oracle output": lambda: library.prefill_run(oracle, 1),
    }
    times = {name: [] for name in runs}
    order = list(runs)
    for i in range(ROUNDS + 2):
        random.shuffle(order)
        for name in order:
            ms = timed_ms(runs[name])
            if i >= 2:
                times[name].append(ms)
    flops = heads * (dim + v_dim) * tokens * (tokens + 1)
    for name, values in times.items():
        ms = statistics.median(values)
        ratio = statistics.median(a / b for a, b in zip(values, times["cuDNN"]))
        print(f"{heads}/{kv_heads} {dim}/{v_dim} {tokens:7d} {name:14s} {ms:9.3f} ms "
              f"({min(values):.3f}-{max(values):.3f}) {flops / ms * 1e-9:5.0f} TF/s  x{ratio:.3f}",
              flush=True)
    library.prefill_destroy(plain)
    library.prefill_destroy(oracle)


def main():
    library = load(sys.argv[1])
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN",
          torch.backends.cudnn.version())
    for tokens in [int(a) for a in sys.argv[2:]] or [32768]:
        for shape in range(library.prefill_num_shapes()):
            compare(library, shape, tokens)


if __name__ == "__main__":
    main()
