"""Writes a long prompt of filler sentences with one fact hidden in it and a question about it.

Usage: needle_prompt.py --sentences N --depth D --seed S PROMPT_FILE ; prints the expected answer.

The sentences are those that the demo model was trained on (tools/reference/tasks.py).
"""
import argparse
import pathlib
import random
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools" / "reference"))
import tasks  # noqa: E402


def build(sentences, depth, seed):
    """(prompt, expected number): one statement at `depth` (0 to 1) among filler sentences."""
    rng = random.Random(seed)
    pool = tasks.filler_sentences(4000)
    key = tasks.KeyMaker(rng, two_words=True, share=0.0).draw()
    fact = tasks.number_fact(rng, key)
    text = [rng.choice(pool) for _ in range(sentences)]
    text.insert(round(depth * sentences), "".join(fact.statements[0]))
    question, _, _ = tasks.exchange(fact, chat=False)
    return ".".join(text)[1:] + "".join(question), fact.values[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=800)
    parser.add_argument("--depth", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("prompt_file")
    args = parser.parse_args()
    prompt, value = build(args.sentences, args.depth, args.seed)
    pathlib.Path(args.prompt_file).write_text(prompt)
    print(value)


if __name__ == "__main__":
    main()
