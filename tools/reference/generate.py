"""Greedy generation with the reference model.

  python tools/reference/generate.py --model models/demo --prompt "..." --max-new-tokens 32
"""

import argparse
import json
import pathlib

import tokenizers
import torch

import model as model_lib


def greedy(model: model_lib.ReferenceModel, ids: list, count: int, stop_ids=()) -> list:
  """Up to count tokens after ids, each the arg max (lowest id on ties); a stop id ends the list."""
  cache = model.new_cache()
  logits = model.forward(ids, cache).logits[-1]
  out = []
  while len(out) < count:
    out.append(int(torch.argmax(logits)))
    if out[-1] in stop_ids or len(out) == count:
      break
    logits = model.forward(out[-1:], cache).logits[-1]
  return out


def end_ids(directory) -> tuple:
  """The end-of-text ids that config.json names."""
  raw = json.loads((pathlib.Path(directory) / "config.json").read_text(encoding="utf-8"))
  eos = raw.get("eos_token_id", [])
  return tuple(eos) if isinstance(eos, list) else (eos,)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--model", required=True)
  parser.add_argument("--prompt", required=True)
  parser.add_argument("--max-new-tokens", type=int, default=32)
  parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
  args = parser.parse_args()
  tokenizer = tokenizers.Tokenizer.from_file(str(pathlib.Path(args.model) / "tokenizer.json"))
  model = model_lib.ReferenceModel.load(args.model, getattr(torch, args.dtype))
  ids = tokenizer.encode(args.prompt).ids
  out = greedy(model, ids, args.max_new_tokens, end_ids(args.model))
  print(tokenizer.decode(out))


if __name__ == "__main__":
  main()
