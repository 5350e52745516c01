"""Peers of sparse_bench: cuDNN's causal attention (the full layer that a sparse one replaces) and
the Triton kernel for selected blocks of flash-linear-attention (`fla.ops.nsa`), when it can be
imported.

  python3 sparse_peer.py [--json FILE]

The Triton kernel is timed without its window branch, which needs another package, and with
selections that 64 neighbouring tokens share; it wants groups of at least 16 heads.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = ((64, 4, 192, 128), (32, 8, 128, 128))
LENGTHS = (8192, 32768)
BLOCK = 64
SELECTED = 16


def median_ms(run, repeats=9):
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[repeats // 2]


def normal(*shape):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def time_full_layer(heads, kv_heads, dim, v_dim, length):
    q, k, v = normal(1, heads, length, dim), normal(1, kv_heads, length, dim), normal(
        1, kv_heads, length, v_dim
    )
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return median_ms(
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        )


def shared_selection(length, kv_heads):
    """Sixteen visible blocks for every 64 tokens, ascending; all there are when they are fewer."""
    blocks = length // BLOCK
    scores = torch.rand(blocks, kv_heads, blocks, device="cuda")
    index = torch.arange(blocks, device="cuda")
    scores = scores.masked_fill(index > index[:, None, None], -1.0)
    chosen = scores.topk(SELECTED, -1).indices.sort(-1).values
    return chosen.repeat_interleave(BLOCK, 0)[None]


def time_fla(heads, kv_heads, dim, v_dim, length):
    from fla.ops.nsa.parallel import parallel_nsa

    q, k, v = normal(1, length, heads, dim), normal(1, length, kv_heads, dim), normal(
        1, length, kv_heads, v_dim
    )
    gate = torch.rand(1, length, heads, device="cuda", dtype=torch.bfloat16)
    selection = shared_selection(length, kv_heads)
    with torch.no_grad():
        return median_ms(
            lambda: parallel_nsa(
                q=q,
                k=k,
                v=v,
                g_slc=gate,
                g_swa=gate,
                block_indices=selection,
                block_counts=SELECTED,
                block_size=BLOCK,
                window_size=0,
            )
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="append one row per result to this file")
    options = parser.parse_args()
    peers = {"cudnn_full_layer": time_full_layer, "fla_nsa_selected": time_fla}
    for name, time_peer in peers.items():
        for shape in SHAPES:
            for length in LENGTHS:
                label = "{}/{} {}/{}".format(*shape)
                try:
                    ms = time_peer(*shape, length)
                except (ImportError, AssertionError, RuntimeError) as error:
                    print(f"{name:18s} {label:14s} {length:6d}: {str(error)[:90]}")
                    continue
                print(f"{name:18s} {label:14s} {length:6d}: {ms:.3f} ms", flush=True)
                if options.json:
                    row = {"op": name, "shape": label, "tokens": length, "ms": ms,
                           "gpu": torch.cuda.get_device_name()}
                    with open(options.json, "a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
