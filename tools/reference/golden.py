"""Writes the golden files that the tests of the serving engine compare against.

  python tools/reference/golden.py --out tests/golden            tiny random-weight cases
  python tools/reference/golden.py --out tests/golden --demo models/demo     the demo model as well

Every number is computed in float64 and stored as float32.
"""

import argparse
import pathlib

import safetensors.torch
import tokenizers
import torch

import config as config_lib
import generate
import golden_cases
import make_eval_prompts
import model as model_lib
import random_model

_GREEDY_TOKENS = 256


def sequence_ids(seed: int, vocab_size: int, count: int) -> torch.Tensor:
  """Seeded token ids; ids 0 and 1 (begin and end of text) are left out."""
  generator = torch.Generator().manual_seed(seed)
  return torch.randint(2, vocab_size, (count,), generator=generator)


def selection_tensors(result: model_lib.ForwardResult, rows=slice(None)) -> dict:
  tensors = {}
  for layer, indices in result.selection.items():
    tensors[f"selection.{layer}"] = indices[rows].contiguous()
    tensors[f"selection_margin.{layer}"] = result.margin[layer][rows].float().contiguous()
  return tensors


def write_case(directory: pathlib.Path, raw_config: dict, seed: int, count: int) -> None:
  """One tiny checkpoint with the logits and selections of every row of one sequence."""
  cfg = config_lib.parse_config(raw_config)
  weights = random_model.random_weights(cfg, seed)
  random_model.save_checkpoint(directory, raw_config, weights)
  model = model_lib.ReferenceModel(cfg, weights)
  ids = sequence_ids(seed, cfg.vocab_size, count)
  result = model.forward(ids, model.new_cache())
  tensors = {"input_ids": ids.to(torch.int32), "logits": result.logits.float()}
  tensors.update(selection_tensors(result))
  safetensors.torch.save_file(tensors, directory / "golden.safetensors")


def write_demo(directory: pathlib.Path, model_dir: pathlib.Path) -> None:
  """The demo checkpoint on two prompts: chosen rows of the logits and a greedy continuation."""
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer = tokenizers.Tokenizer.from_file(str(model_dir / "tokenizer.json"))
  model = model_lib.ReferenceModel.load(model_dir)
  tensors = {}
  for name, task, length in (("short", "single", 700), ("long", "multi_key", 3000)):
    prompt = make_eval_prompts.build_prompt(tokenizer, task, length, seed=4242)["prompt"]
    ids = tokenizer.encode(prompt).ids
    result = model.forward(ids, model.new_cache())
    rows = torch.tensor(sorted({0, 63, 64, len(ids) // 2, len(ids) - 2, len(ids) - 1}))
    tensors[f"{name}.input_ids"] = torch.tensor(ids, dtype=torch.int32)
    tensors[f"{name}.rows"] = rows.to(torch.int32)
    tensors[f"{name}.logits"] = result.logits[rows].float()
    for key, value in selection_tensors(result, rows).items():
      tensors[f"{name}.{key}"] = value
    greedy = generate.greedy(model, ids, _GREEDY_TOKENS)
    tensors[f"{name}.greedy_ids"] = torch.tensor(greedy, dtype=torch.int32)
    tensors[f"{name}.greedy_margin"] = greedy_margins(model, ids, greedy)
  safetensors.torch.save_file(tensors, directory / "golden.safetensors")


def greedy_margins(model, ids: list, greedy: list) -> torch.Tensor:
  """Best minus second-best logit at every greedy step: how far the choice is from a tie."""
  logits = model.forward(ids + greedy[:-1], model.new_cache()).logits[len(ids) - 1:]
  best = logits.topk(2, dim=-1).values
  return (best[:, 0] - best[:, 1]).float()


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--demo", type=pathlib.Path, help="directory of the demo checkpoint")
  args = parser.parse_args()
  for name, (raw_config, seed, count) in golden_cases.CASES.items():
    write_case(args.out / name, raw_config, seed, count)
  if args.demo:
    write_demo(args.out / "demo", args.demo)


if __name__ == "__main__":
  main()
