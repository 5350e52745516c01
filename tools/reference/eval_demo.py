"""Accuracy of a demo checkpoint by task and prompt length, with and without the sparse branch.

  python tools/reference/eval_demo.py --model models/demo --count 200 --out results.json

An answer counts when every token of the expected completion, end token included, is the arg max
after the true tokens before it: exactly the prompts on which greedy decoding gives that text.
The prompts are those of make_eval_prompts.py with the same seed.
"""

import argparse
import json
import multiprocessing
import pathlib

import numpy as np
import tokenizers
import torch

import config as config_lib
import demo_net
import make_eval_prompts
import model as model_lib
import tasks

_state = {}


def _start(tokenizer_path):
  _state["tokenizer"] = tokenizers.Tokenizer.from_file(tokenizer_path)


def _encoded(job):
  """(prompt ids, answer ids, offset of the value's first token within the answer)."""
  task, length, seed = job
  tokenizer = _state["tokenizer"]
  record = make_eval_prompts.build_prompt(tokenizer, task, length, seed)
  prompt = tokenizer.encode(record["prompt"]).ids
  answer = tokenizer.encode(" " + record["answer"] + tasks.END_OF_TEXT).ids
  return prompt, answer


def build_cells(tokenizer_path, cells, count, seed, workers):
  """Prompts of every (task, length), made by worker processes: started before CUDA is."""
  jobs = [(task, length, seed * 100003 + i) for task, length in cells for i in range(count)]
  with multiprocessing.get_context("fork").Pool(workers, _start, (tokenizer_path,)) as pool:
    results = pool.map(_encoded, jobs, chunksize=4)
  return {cell: results[i * count:(i + 1) * count] for i, cell in enumerate(cells)}


@torch.no_grad()
def accuracy(net, prompts, device, tokens_per_batch=131072) -> float:
  """Share of prompts whose whole answer is the arg max at every step."""
  longest = max(len(p) + len(a) for p, a in prompts)
  length = -(-longest // 64) * 64
  batch, right = max(1, tokens_per_batch // length), 0
  for start in range(0, len(prompts), batch):
    part = prompts[start:start + batch]
    ids = np.zeros((len(part), length), dtype=np.int64)
    for row, (prompt, answer) in enumerate(part):
      ids[row, :len(prompt) + len(answer)] = prompt + answer
    hidden = net.hidden(torch.from_numpy(ids).to(device))
    for row, (prompt, answer) in enumerate(part):
      span = hidden[row, len(prompt) - 1:len(prompt) + len(answer) - 1]
      right += net.logits(span).argmax(-1).tolist() == answer
  return right / len(prompts)


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", type=pathlib.Path, required=True)
  parser.add_argument("--tokenizer", type=pathlib.Path)
  parser.add_argument("--lengths", default="512,2048,4096,8192,16384,32768")
  parser.add_argument("--tasks", default=",".join(make_eval_prompts.TASKS))
  parser.add_argument("--count", type=int, default=100)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--workers", type=int, default=14)
  parser.add_argument("--dtype", default="bfloat16")
  parser.add_argument("--no-ablation", action="store_true")
  parser.add_argument("--out", type=pathlib.Path)
  args = parser.parse_args()
  lengths = [int(x) for x in args.lengths.split(",")]
  names = args.tasks.split(",")
  tokenizer_path = str(args.tokenizer or args.model / "tokenizer.json")
  cells = [(task, length) for task in names for length in lengths]
  prompts = build_cells(tokenizer_path, cells, args.count, args.seed, args.workers)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  cfg = config_lib.load_config(args.model)
  weights = model_lib.load_weights(args.model, getattr(torch, args.dtype))
  net = demo_net.DemoNet(cfg, {n: w.to(device) for n, w in weights.items()}, device != "cuda")
  results = []
  for enabled in (True,) if args.no_ablation else (True, False):
    net.sparse_branch_enabled = enabled
    print(f"sparse branch {'on' if enabled else 'off'}; columns: {lengths}")
    for task in names:
      row = [accuracy(net, prompts[task, length], device) for length in lengths]
      print(f"  {task:12s} " + " ".join(f"{100 * x:6.1f}" for x in row), flush=True)
      results += [{"task": task, "length": n, "sparse_branch": enabled, "accuracy": x,
                   "count": args.count} for n, x in zip(lengths, row)]
  if args.out:
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
  main()
