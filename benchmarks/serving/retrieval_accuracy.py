"""Retrieval accuracy of the demo model through a running HyServe, by task and prompt length.

  for task in single multi_key dense_keys multi_value tracking; do
    for length in 2048 8192 16384; do
      python3 tools/reference/make_eval_prompts.py --task $task --length $length --count 50
    done
  done > prompts.jsonl
  build/release/bin/hyserve up --config deploy/local.yaml &
  python3 benchmarks/serving/retrieval_accuracy.py prompts.jsonl

Every prompt goes through `hyserve generate` (greedy, 64 tokens at most). An answer is right when it
begins with the whole expected completion: every number, in order. Prints a table and, with --out,
one JSON line per cell.
"""

import argparse
import collections
import concurrent.futures
import json
import pathlib
import subprocess
import sys


def ask(arguments, prompt):
    """The completion of one prompt, or the error in angle brackets."""
    result = subprocess.run(
        [arguments.hyserve, "generate", "--server", arguments.server, "--max-tokens", "64", "-"],
        input=prompt, capture_output=True, text=True, timeout=900, check=False)
    if result.returncode != 0:
        return f"<{result.stderr.strip()}>"
    return result.stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=pathlib.Path, help="JSON lines of make_eval_prompts.py")
    parser.add_argument("--server", default="127.0.0.1:8470")
    parser.add_argument("--hyserve", default="build/release/bin/hyserve")
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--length-labels", default="2048,8192,16384",
                        help="a prompt counts for the smallest of these not below its length")
    parser.add_argument("--out", type=pathlib.Path, help="append one JSON line per cell")
    parser.add_argument("--commit", default="unknown", help="copied into --out")
    parser.add_argument("--machine", default="unknown", help="copied into --out")
    arguments = parser.parse_args()

    labels = sorted(int(label) for label in arguments.length_labels.split(","))
    cases = [json.loads(line) for line in arguments.prompts.read_text().splitlines()]
    with concurrent.futures.ThreadPoolExecutor(arguments.parallel) as pool:
        answers = list(pool.map(lambda case: ask(arguments, case["prompt"]), cases))

    right, total, failures = collections.Counter(), collections.Counter(), []
    for case, answer in zip(cases, answers):
        cell = (case["task"], next(label for label in labels if case["length"] <= label))
        total[cell] += 1
        if answer.startswith(case["answer"].strip()):
            right[cell] += 1
        else:
            failures.append((cell, case["answer"].strip(), answer))

    tasks = list(dict.fromkeys(case["task"] for case in cases))
    print("| task | " + " | ".join(f"{label}" for label in labels) + " |")
    print("|---|" + "---|" * len(labels))
    for task in tasks:
        shares = [f"{right[task, label]}/{total[task, label]}" for label in labels]
        print(f"| {task} | " + " | ".join(shares) + " |")
    for cell, expected, answer in failures[:5]:
        print(f"wrong, {cell}: expected {expected!r}, got {answer!r}", file=sys.stderr)
    if arguments.out:
        with arguments.out.open("a") as out:
            for (task, label), count in sorted(total.items()):
                out.write(json.dumps({"benchmark": "retrieval_accuracy", "task": task,
                                      "tokens": label, "right": right[task, label],
                                      "total": count, "commit": arguments.commit,
                                      "machine": arguments.machine,
                                      "command": "retrieval_accuracy.py prompts.jsonl"}) + "\n")


if __name__ == "__main__":
    main()
