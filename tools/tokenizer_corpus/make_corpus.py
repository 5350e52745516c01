#!/usr/bin/env python3
"""Makes the tokenizer test data: small tokenizer.json files, and what Hugging Face's `tokenizers`
and jinja2 say about them.

Usage: make_corpus.py [--demo models/demo/tokenizer.json] [--retrain]
Writes tests/engine/tokenizer/testdata/. Needs requirements.txt beside this file. The tokenizers
themselves are trained only with --retrain, or when they are missing.
"""

import argparse
import json
import pathlib
import random

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

import chat_cases
import corpus_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "engine" / "tokenizer" / "testdata"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
HAN = r"[\p{Han}\p{Hiragana}\p{Katakana}]+|\S+|\s+"


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(add_prefix_space=False, use_regex=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def train(pre_tokenizer, vocab_size, normalizer=None, special_tokens=()):
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False,
                                  special_tokens=list(special_tokens),
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(corpus_text.training_text(), trainer)
    return tokenizer


def special(text, **flags):
    return AddedToken(text, special=True, normalized=flags.pop("normalized", False), **flags)


def plain(text, **flags):
    return AddedToken(text, special=False, normalized=flags.pop("normalized", True), **flags)


def gpt2_style():
    """The special token is a vocabulary key; merges are strings, as in files of that time."""
    tokenizer = train(byte_level(use_regex=True), 1000, special_tokens=["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama3_style():
    tokenizer = train(pre_tokenizers.Sequence([split(LLAMA3), byte_level()]), 1100)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
             "<|eot_id|>"] + [f"<|reserved_{i}|>" for i in range(12)]
    tokenizer.add_special_tokens([special(name) for name in names])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(
            single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
            special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))])])
    return tokenizer


def qwen2_style():
    tokenizer = train(pre_tokenizers.Sequence([split(QWEN2), byte_level()]), 900,
                      normalizer=normalizers.NFC())
    tokenizer.add_special_tokens([special("<|endoftext|>"), special("<|im_start|>"),
                                  special("<|im_end|>"), special("<mask>", lstrip=True),
                                  special("<sep>", rstrip=True), special("<pad>", normalized=True)])
    tokenizer.add_tokens([plain("<tool_call>", normalized=False), plain("</tool_call>", lstrip=True,
                                                                        rstrip=True),
                          plain("zebra", single_word=True), plain("cafe\u0301ine"), plain("  "),
                          plain("ab", normalized=False), plain("abc", normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def o200k_style():
    """Digits, a word pattern with letter cases, a prefix space at each piece, bos and eos."""
    tokenizer = train(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split(O200K),
                                 byte_level(add_prefix_space=True)]), 700)
    tokenizer.add_special_tokens([special("<s>"), special("</s>"), special("<|user|>"),
                                  special("<|assistant|>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")])
    return tokenizer


def han_removed_style():
    """Scripts by name, Removed with invert, and GPT-2's pattern with a prefix space at the end."""
    return train(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False),
                                 split(HAN, "removed", True), split(r"[_~]", "removed"),
                                 byte_level(add_prefix_space=True, use_regex=True)]), 500,
        normalizer=normalizers.Sequence([normalizers.NFC()]))


STYLES = {"gpt2_style": gpt2_style, "llama3_style": llama3_style, "qwen2_style": qwen2_style,
          "o200k_style": o200k_style, "han_removed_style": han_removed_style}


def write_tokenizer(name, tokenizer):
    data = json.loads(tokenizer.to_str())
    if name == "gpt2_style":
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        del data["model"]["type"]
        del data["model"]["ignore_merges"]
    if name == "llama3_style":
        # One piece that no merge reaches: with ignore_merges it is a token all the same. It takes
        # the last id of the vocabulary, whose merge goes.
        model = data["model"]
        model["ignore_merges"] = True
        last = max(model["vocab"], key=model["vocab"].get)
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) != last]
        model["vocab"]["\u0120characteristically"] = model["vocab"].pop(last)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    (DATA / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def encode(tokenizer, text, add_special, parse_special):
    tokenizer.encode_special_tokens = not parse_special
    return tokenizer.encode(text, add_special_tokens=bool(add_special)).ids


def corpus_rows(tokenizers):
    for index, item in enumerate(corpus_text.corpus()):
        text = item.decode("utf-8", errors="replace")
        row = {"text": text} if text.encode("utf-8") == item else {"hex": item.hex()}
        # Options change from row to row, so that all four pairs meet every kind of text.
        row["add_special"] = int(index % 3 == 0)
        row["parse_special"] = int(index % 5 != 0)
        for name, tokenizer in tokenizers.items():
            row[name] = encode(tokenizer, text, row["add_special"], row["parse_special"])
        yield row


def decode_rows(tokenizers):
    rng = random.Random(31)
    for name, tokenizer in tokenizers.items():
        size = tokenizer.get_vocab_size()
        for _ in range(200):
            ids = [rng.randrange(size) if rng.random() < 0.8 else rng.randrange(300, size)
                   for _ in range(rng.randint(1, 9))]
            if rng.random() < 0.3:
                ids.append(size - 1 - rng.randrange(8))
            yield {"tokenizer": name, "ids": ids, "all": tokenizer.decode(ids, False),
                   "without_special": tokenizer.decode(ids, True)}


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=pathlib.Path)
    parser.add_argument("--retrain", action="store_true")
    options = parser.parse_args()
    DATA.mkdir(parents=True, exist_ok=True)
    tokenizers = {}
    for name, make in STYLES.items():
        if options.retrain or not (DATA / f"{name}.json").exists():
            write_tokenizer(name, make())
        tokenizers[name] = Tokenizer.from_file(str(DATA / f"{name}.json"))
    write_rows(DATA / "corpus.jsonl", corpus_rows(tokenizers))
    write_rows(DATA / "decode.jsonl", decode_rows(tokenizers))
    chat_cases.write(DATA / "chat_templates.json")
    if options.demo:
        demo = {"demo": Tokenizer.from_file(str(options.demo))}
        write_rows(DATA / "demo_corpus.jsonl", list(corpus_rows(demo))[::2])
        write_rows(DATA / "demo_decode.jsonl", decode_rows(demo))


if __name__ == "__main__":
    main()
