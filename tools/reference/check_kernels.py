"""Checks the training kernels against the dense version, and times a training step.

  python tools/reference/check_kernels.py [--steps]     (without a GPU: TRITON_INTERPRET=1)
"""

import argparse
import time

import torch

import config as config_lib
import demo_config
import demo_data
import train_attention as attention
import train_demo

_BATCH, _LENGTH, _HEADS, _GROUPS, _DIM, _COUNT, _WINDOW = 2, 256, 8, 2, 64, 2, 100


def _dense_on_cpu(function, tensors, *args):
  leaves = [x.detach().float().cpu().requires_grad_() for x in tensors[:-1]]
  out = function(*leaves, *args)
  out.backward(tensors[-1].float().cpu())
  return [out] + [x.grad for x in leaves]


def _fast(function, tensors, *args):
  leaves = [x.detach().clone().requires_grad_() for x in tensors[:-1]]
  out = function(*leaves, *args)
  out.backward(tensors[-1])
  return [out] + [x.grad for x in leaves]


def _errors(fast, dense):
  return [((a.float().cpu() - b).norm() / b.norm()).item() for a, b in zip(fast, dense)]


def check(device: str, dtype: torch.dtype) -> bool:
  """Relative errors of outputs and gradients (q, k, v, sink); True when all are small."""
  torch.manual_seed(int(time.time()))
  make = lambda heads: torch.randn(_BATCH, _LENGTH, heads, _DIM, device=device).to(dtype)
  q, k, v, grad = make(_HEADS), make(_GROUPS), make(_GROUPS), make(_HEADS)
  sink = torch.randn(_HEADS, device=device).to(dtype)
  out, lse = attention.full_attention(q, k, v)
  dense_out, dense_lse = attention.full_attention(q.float().cpu(), k.float().cpu(), v.float().cpu())
  indices = attention.select(q, k, lse, _COUNT)
  wanted = attention.select(q.float().cpu(), k.float().cpu(), dense_lse, _COUNT)
  same = (indices.cpu().sort(-1).values == wanted.sort(-1).values).float().mean().item()
  plan = attention.SelectionPlan(indices)
  cpu_plan = attention.SelectionPlan(indices.cpu())
  tensors = (q, k, v, sink, grad)
  rows = {
      "full": _errors([out, lse], [dense_out, dense_lse]),
      "window": _errors(_fast(attention.window_attention, tensors, _WINDOW),
                        _dense_on_cpu(attention.dense_window, tensors, _WINDOW)),
      "selected": _errors(_fast(attention.selected_attention, tensors, plan),
                          _dense_on_cpu(attention.dense_selected, tensors, cpu_plan)),
  }
  for name, errors in rows.items():
    print(f"{name:9s}", " ".join(f"{e:.1e}" for e in errors))
  print(f"selection equal: {same:.4f}", flush=True)
  limit = 1e-5 if dtype == torch.float32 else 2e-2
  return same > 0.98 and all(e < limit for errors in rows.values() for e in errors)


def time_steps(lengths, step_tokens, graphs):
  cfg = config_lib.parse_config(demo_config.demo_config(2944))
  trainer = train_demo.Trainer(cfg, train_demo.initial_masters(cfg), "cuda", graphs)
  generator = torch.Generator().manual_seed(1)
  for length in lengths:
    batch = step_tokens // length
    ids = torch.randint(3, 2900, (batch, length), generator=generator)
    answers = torch.zeros(batch, length).int()
    answers[:, 100:110] = 1
    kinds = torch.full((batch, demo_data.max_answers(length)), 255)
    kinds[:, 1] = 0
    arrays = [ids.numpy(), torch.full((batch, length), 3).numpy(), answers.numpy(), kinds.numpy()]
    begin = time.time()
    for _ in range(train_demo.WARM_STEPS + 2):
      trainer.step(*arrays)
    torch.cuda.synchronize()
    warm, begin = time.time() - begin, time.time()
    for _ in range(10):
      trainer.step(*arrays)
    torch.cuda.synchronize()
    seconds = (time.time() - begin) / 10
    loss = trainer.read()[length][0]
    print(f"T {length:6d} graphs {graphs}: first {warm:.1f}s, step {seconds * 1e3:.1f} ms, "
          f"{step_tokens / seconds / 1e3:.0f}k tok/s, loss {loss:.3f}, "
          f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--steps", action="store_true")
  args = parser.parse_args()
  if not torch.cuda.is_available():
    raise SystemExit(0 if check("cpu", torch.float32) else 1)
  if not check("cuda", torch.bfloat16):
    raise SystemExit(1)
  if args.steps:
    time_steps((256, 2048, 16384), 65536, False)
    time_steps((256, 2048, 8192, 16384, 32768), 65536, True)


if __name__ == "__main__":
  main()
