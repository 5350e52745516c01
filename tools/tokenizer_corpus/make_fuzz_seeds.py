#!/usr/bin/env python3
"""Makes the seeds of tests/fuzz/tokenizer_json_fuzz.cc: small files that load, each with a text."""

import copy
import json
import pathlib

SEEDS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "seeds" / "tokenizer_json"


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(c) for c in printable] + [chr(0x100 + i) for i in range(len(others))]


def added(id_, content, **flags):
    token = {"id": id_, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
    return token | flags


def base():
    vocab = {piece: id_ for id_, piece in enumerate(byte_alphabet() + ["ab", "abc"])}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(258, "<s>")], "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", ["ab", "c"]]},
    }


def split(pattern, **fields):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": False} | fields


def main():
    seeds = {"byte_level": base()}
    nfc = base()
    nfc["normalizer"] = {"type": "NFC"}
    nfc["added_tokens"] += [added(259, "<e\u0301>", normalized=True, special=False, lstrip=True),
                            added(260, "w", single_word=True, rstrip=True)]
    seeds["nfc_added"] = nfc
    sequence = base()
    sequence["model"]["ignore_merges"] = True
    sequence["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        split(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"),
        split("_", behavior="Removed"),
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": False}]}
    sequence["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel"},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [258], "tokens": ["<s>"]}}}]}
    seeds["sequence"] = sequence
    hole = copy.deepcopy(base())
    hole["added_tokens"][0]["id"] = 300
    seeds["refused_hole"] = hole
    text = "abcab <s>it's 123 e\u0301 <e\u0301> w \U0001F600\n\n x_y".encode() + b"\xff\xe2\x82"
    SEEDS.mkdir(parents=True, exist_ok=True)
    for name, document in seeds.items():
        data = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        (SEEDS / name).write_bytes(data + b"\0" + text)
    (SEEDS / "refused_depth").write_bytes(b"[" * 80)


if __name__ == "__main__":
    main()
