"""Trains the demo tokenizer: byte-level BPE in the Hugging Face format. Deterministic.

  python tools/reference/train_tokenizer.py --out models/demo
"""

import argparse
import json
import pathlib
import random
import re

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import tasks
import words

VOCAB_SIZE = 2944

# Words with an optional leading space or sign, up to three digits, runs of signs, line ends.
SPLIT_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
                 r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def wording(text: str) -> str:
  """The vocabulary comes from statements of the form "... for KEY is NUMBER"; keep it so."""
  return re.sub(r"special number is((?: [a-z]+)+) (\d)", r"special number for\1 is \2", text)


def corpus():
  """Filler, every statement, question and answer form, all keys and numbers, general text."""
  rng = random.Random(7)
  yield from tasks.filler_sentences(20000)
  for _ in range(40):
    for adjective in words.ADJECTIVES:
      yield f" the {adjective}"
    for noun in words.NOUNS:
      yield f" the {noun}"
    for group in range(1000):
      yield f" {group:03d}"
  for _ in range(6000):
    key = [" " + rng.choice(words.ADJECTIVES), " " + rng.choice(words.NOUNS)]
    names = [[" " + noun] for noun in rng.sample(words.NOUNS, 2)]
    for fact in (tasks.number_fact(rng, key), tasks.number_fact(rng, key, 2),
                 tasks.variable_fact(rng, names)):
      for statement in fact.statements:
        yield wording("".join(statement))
      for chat in (False, True):
        prompt, answer, _ = tasks.exchange(fact, chat)
        text = "".join(prompt) + "".join(a for a, _ in answer)
        for special in (tasks.END_OF_TEXT, tasks.TURN_START, tasks.TURN_END):
          text = text.replace(special, "\n")
        yield wording(text)
  for _ in range(60):
    yield words.GENERAL_TEXT


def train() -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=VOCAB_SIZE, min_frequency=2, show_progress=False,
      special_tokens=[tasks.END_OF_TEXT, tasks.TURN_START, tasks.TURN_END],
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  tokenizer.train_from_iterator(corpus(), trainer)
  return tokenizer


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  tokenizer = train()
  tokenizer.save(str(args.out / "tokenizer.json"))
  (args.out / "tokenizer_config.json").write_text(json.dumps({
      "tokenizer_class": "PreTrainedTokenizerFast",
      "add_bos_token": False,
      "add_prefix_space": False,
      "bos_token": None,
      "eos_token": tasks.END_OF_TEXT,
      "pad_token": tasks.END_OF_TEXT,
      "unk_token": None,
      "clean_up_tokenization_spaces": False,
      "model_max_length": 32768,
      "chat_template": CHAT_TEMPLATE,
  }, indent=2) + "\n", encoding="utf-8")
  print("vocabulary:", tokenizer.get_vocab_size())


if __name__ == "__main__":
  main()
