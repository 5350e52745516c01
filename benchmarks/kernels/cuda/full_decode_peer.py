"""torch's attention (cuDNN backend) on the shapes of full_decode_bench, contiguous K and V.

Each step is captured in a CUDA graph and replayed, over several sets of K and V so that they do not
stay in L2. Prints microseconds and GB/s of K and V read.
"""
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def measure(heads, kv_heads, dim, v_dim, batch, context):
    nbytes = batch * context * kv_heads * (dim + v_dim) * 2
    copies = max(1, (400 << 20) // nbytes)
    make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
    q = make(batch, heads, 1, dim)
    sets = [(make(batch, kv_heads, context, dim), make(batch, kv_heads, context, v_dim))
            for _ in range(copies)]
    run = lambda kv: F.scaled_dot_product_attention(q, kv[0], kv[1], enable_gqa=heads != kv_heads)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        for kv in sets:
            run(kv)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        steps = max(copies, 10)
        with torch.cuda.graph(graph):
            for i in range(steps):
                run(sets[i % copies])
        times = []
        for _ in range(12):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1000 / steps)
    us = statistics.median(times[2:])
    name = f"{heads}/{kv_heads} {dim}/{v_dim}"
    print(f"{name:16s} b{batch:<3d} {context:8d} cudnn      {us:8.1f} us  "
          f"{nbytes / us / 1000:6.0f} GB/s", flush=True)


def main():
    print(torch.__version__, torch.backends.cudnn.version(), torch.cuda.get_device_name())
    for batch, context in [(8, 131072), (1, 32768), (32, 8192), (1, 131072), (1, 1048576),
                           (256, 1024)]:
        for shape in [(32, 8, 128, 128), (64, 4, 192, 128), (64, 1, 256, 256)]:
            try:
                measure(*shape, batch, context)
            except Exception as error:  # a shape that the backend does not take
                print(shape, batch, context, "refused:", str(error).splitlines()[0][:90],
                      flush=True)
            torch.cuda.empty_cache()


main()
