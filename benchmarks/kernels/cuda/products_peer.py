"""Peers of gemm_bench and moe_bench: torch's linear and its grouped product, on the same shapes.

Run on the same GPU right after the benchmarks: python3 products_peer.py. Times are medians of CUDA
graph replays; every launch of linear reads other weights, so that none is in L2.
"""
import torch
from torch.nn.functional import linear, silu

DEVICE = "cuda"
POOL_ELEMENTS = 2**29


def microseconds_each(calls, repeats=11):
    stream = torch.cuda.Stream()
    times = []
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        for _ in range(repeats + 2):
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record(stream)
            graph.replay()
            end.record(stream)
            end.synchronize()
            times.append(begin.elapsed_time(end))
    times = sorted(times[2:])
    return times[len(times) // 2] * 1e3 / len(calls)


def bf16(*shape, scale=1.0):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) * scale


def time_linear():
    pool = bf16(POOL_ELEMENTS)
    shapes = [("7b qkv+gates", 6208, 4096), ("7b output", 4096, 4096), ("7b gate+up", 22016, 4096),
              ("7b down", 4096, 11008), ("80b qkv+gates", 13696, 2048), ("80b output", 2048, 8192)]
    for name, out, inner in shapes:
        size = out * inner
        line = f"torch linear {name}:"
        for rows in (1, 8, 16, 32, 64, 128, 4096):
            copies = min(POOL_ELEMENTS // size, 32 if rows < 1000 else 2)
            weights = [pool[i * size:(i + 1) * size].view(out, inner) for i in range(copies)]
            x = bf16(rows, inner)
            us = microseconds_each([lambda w=w: linear(x, w) for w in weights])
            line += f"  {rows} rows {us:.1f} us"
        print(line, flush=True)


def time_experts():
    experts, chosen, hidden, width = 512, 8, 2048, 512
    gate_up = bf16(experts, 2 * width, hidden, scale=0.03).transpose(1, 2)
    down = bf16(experts, hidden, width, scale=0.03).transpose(1, 2)
    for rows in (512, 1024, 2048, 4096, 8192, 16384, 32768):
        x = bf16(rows, hidden)
        ids = torch.rand(rows, experts, device=DEVICE).topk(chosen, 1).indices.flatten()
        order = ids.argsort()
        ends = torch.bincount(ids, minlength=experts).cumsum(0).to(torch.int32)

        def products(inputs):
            both = torch._grouped_mm(inputs, gate_up, offs=ends)
            return torch._grouped_mm(silu(both[:, :width]) * both[:, width:], down, offs=ends)

        def whole():
            out = torch.zeros(rows, hidden, device=DEVICE)
            return out.index_add_(0, order // chosen, products(x[order // chosen]).float())

        inputs = x[order // chosen]
        act = bf16(rows * chosen, width)
        first = microseconds_each([lambda: torch._grouped_mm(inputs, gate_up, offs=ends)] * 3)
        second = microseconds_each([lambda: torch._grouped_mm(act, down, offs=ends)] * 3)
        total = microseconds_each([whole] * 3)
        rate = 2 * rows * chosen * 3 * hidden * width / (first + second) / 1e6
        print(f"torch grouped_mm {rows} rows: gate and up {first:.0f} us, down {second:.0f} us, "
              f"{rate:.0f} TFLOP/s; with permutation, SwiGlu and sum {total:.0f} us", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    time_linear()
    time_experts()
