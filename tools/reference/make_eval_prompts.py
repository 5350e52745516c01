"""Evaluation prompts of the demo model, the same for a seed everywhere, as JSON lines.

  python tools/reference/make_eval_prompts.py --task single --length 8192 --count 50 > prompts.jsonl

Fields: prompt (plain text for the completions API), user (the same content for a chat request),
answer (the whole expected completion, stripped), value (the part that has to be right), task,
length (tokens of the prompt, at most the length asked for). One question stands at the end.

Tasks: single (one statement in filler), multi_key (16 statements, at least 4 of which share a word
with the key asked for), dense_keys (30 % of the text are statements), multi_value (one key with
three numbers among other keys), tracking (a chain of three variables among other chains).
"""

import argparse
import json
import pathlib
import random
import sys

import tokenizers

import tasks

TASKS = ("single", "multi_key", "dense_keys", "multi_value", "tracking")

_filler = {}


def filler_pool() -> list:
  if "pool" not in _filler:
    _filler["pool"] = tasks.filler_sentences(20000)
  return _filler["pool"]


def _facts(task: str, length: int, rng: random.Random):
  """Returns (the fact asked about, the other facts)."""
  keys = tasks.KeyMaker(rng, two_words=True, share=0.3)
  if task == "tracking":
    names = tasks.KeyMaker(rng, two_words=False, share=0.0)
    chains = [tasks.variable_fact(rng, [names.draw() for _ in range(3)]) for _ in range(4)]
    return chains[0], chains[1:]
  count = {"single": 1, "multi_key": 16, "dense_keys": int(length * 0.3 / 13), "multi_value": 6}
  asked = tasks.number_fact(rng, keys.draw(), 3 if task == "multi_value" else 1)
  others = []
  for i in range(count[task] - 1):
    like = tuple(asked.name) if task == "multi_key" and i < 4 else None
    others.append(tasks.number_fact(rng, keys.draw(like)))
  return asked, others


def _context(fact_list: list, slots: list, rng: random.Random) -> list:
  """Sentences of filler with every fact's statements, in order, put at random places."""
  total = sum(len(fact.statements) for fact in fact_list)
  owners = [fact for fact in fact_list for _ in fact.statements]
  rng.shuffle(owners)
  places = sorted(rng.sample(range(len(slots) + 1), total)) if total <= len(slots) else sorted(
      rng.choices(range(len(slots) + 1), k=total))
  pending = {id(fact): list(fact.statements) for fact in fact_list}
  sentences, used = [], 0
  for index in range(len(slots) + 1):
    while used < total and places[used] == index:
      sentences.append(pending[id(owners[used])].pop(0))
      used += 1
    if index < len(slots):
      sentences.append([slots[index]])
  return sentences


def build_prompt(tokenizer: tokenizers.Tokenizer, task: str, length: int, seed: int) -> dict:
  """One prompt of at most length tokens; the same arguments give the same prompt."""
  rng = random.Random(f"{task}/{length}/{seed}")
  asked, others = _facts(task, length, rng)
  question, answer, _ = tasks.exchange(asked, chat=False)
  fixed = [atom for fact in (asked, *others) for s in fact.statements for atom in s + ["."]]
  budget = length - len(tokenizer.encode("".join(fixed + question)).ids) - 4
  pool, slots = filler_pool(), []
  while budget > 0:
    sentence = rng.choice(pool)
    budget -= len(tokenizer.encode(sentence).ids) + 1
    if budget > 0:
      slots.append(sentence)
  sentences = _context([asked, *others], slots, rng)
  context = ".".join("".join(sentence) for sentence in sentences)[1:]
  prompt = context + "".join(question)
  value = ", ".join(asked.values) if asked.kind == "numbers" else asked.values[-1]
  return {
      "prompt": prompt,
      "user": prompt.removesuffix("\nAnswer:"),
      "answer": "".join(a for a, _ in answer).removesuffix(tasks.END_OF_TEXT).strip(),
      "value": value,
      "task": task,
      "length": len(tokenizer.encode(prompt).ids),
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--task", required=True, choices=TASKS)
  parser.add_argument("--length", type=int, required=True)
  parser.add_argument("--count", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  default = pathlib.Path(__file__).resolve().parents[2] / "models" / "demo" / "tokenizer.json"
  parser.add_argument("--tokenizer", default=str(default))
  args = parser.parse_args()
  tokenizer = tokenizers.Tokenizer.from_file(args.tokenizer)
  for i in range(args.count):
    record = build_prompt(tokenizer, args.task, args.length, args.seed * 100003 + i)
    sys.stdout.write(json.dumps(record) + "\n")


if __name__ == "__main__":
  main()
