"""torch's sampling on the shapes of sample_tokens_bench, rows from device memory, not from L2.

Each step is captured in a CUDA graph and replayed over other rows of a large pool. Prints
microseconds. top_p as it is usually written: sort, cumulative sum, mask, multinomial.
"""
import statistics

import torch


def greedy(logits):
    return torch.argmax(logits, dim=-1)


def temperature(logits):
    return torch.multinomial(torch.softmax(logits / 0.8, dim=-1), 1)


def draw_top_p(values, ids, top_p):
    probabilities = torch.softmax(values / 0.8, dim=-1)
    before = torch.cumsum(probabilities, dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return ids.gather(-1, torch.multinomial(probabilities, 1))


def top_k_top_p(logits):
    values, ids = torch.topk(logits, 50, dim=-1)
    return draw_top_p(values, ids, 0.9)


def top_p(logits):
    values, ids = torch.sort(logits, dim=-1, descending=True)
    return draw_top_p(values, ids, 0.95)


def logprobs(logits):
    values, ids = torch.topk(torch.log_softmax(logits, dim=-1), 20, dim=-1)
    return torch.argmax(logits, dim=-1), values, ids


def measure(name, function, vocab, rows):
    nbytes = rows * vocab * 4
    copies = max(1, (200 << 20) // nbytes)
    pool = 2.5 * torch.randn(copies, rows, vocab, device="cuda")
    for logits in pool[:2]:
        function(logits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    steps = min(max(copies, 4), 32)
    with torch.cuda.graph(graph):
        for i in range(steps):
            function(pool[i % copies])
    times = []
    for _ in range(9):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / steps)
    print(f"{name:20s} {vocab:7d} {rows:5d} {statistics.median(times[2:]):9.1f} us", flush=True)


def main():
    print(torch.__version__, torch.cuda.get_device_name())
    for vocab in (151680, 32768):
        for name, function in [("greedy", greedy), ("temperature", temperature),
                               ("top_k 50 top_p 0.9", top_k_top_p), ("top_p 0.95", top_p),
                               ("greedy logprobs 20", logprobs)]:
            for rows in (1, 8, 32, 256):
                measure(name, function, vocab, rows)
            torch.cuda.empty_cache()


main()
