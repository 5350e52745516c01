"""Checks the include edges between folders and the length of every file.

Usage: check_layers.py ROOT. Prints one line per violation and exits 1 if there is any.
"""
import pathlib
import re
import sys

MAX_LINES = 500
SOURCE_SUFFIXES = {".h", ".cc", ".inc", ".cu", ".cuh", ".py", ".proto", ".sh"}

# Folder -> folders that its files may include besides their own. The longest matching prefix rules.
ALLOWED = {
    "base": [],
    "engine/tensor": [],
    "engine/kernels": ["engine/tensor"],
    "engine/kv_cache": ["engine/tensor"],
    "engine/sampling": ["engine/kernels/sample_tokens.h"],
    "engine/scheduler": ["engine/kv_cache", "engine/sampling"],
    "engine/attention": ["engine/tensor", "engine/kernels", "engine/kv_cache"],
    "engine/model": ["engine/tensor", "engine/kernels", "engine/kv_cache", "engine/attention"],
    "engine/runtime": ["engine/tensor", "engine/kernels", "engine/kv_cache", "engine/attention",
                       "engine/model", "engine/sampling", "engine/scheduler"],
    "engine/tokenizer": [],
    "kv_transfer": ["engine/kv_cache/kv_layout.h", "engine/tensor/tensor.h"],
    "kv_transfer/loopback": ["kv_transfer", "engine/kv_cache/kv_layout.h"],
    "kv_transfer/cuda": ["kv_transfer"],
    "kv_transfer/ucx": ["kv_transfer", "engine/kv_cache/kv_layout.h"],
    "services/common": ["hyserve", "google", "engine/kv_cache/kv_layout.h",
                        "engine/tensor/tensor.h"],
    "services/router": ["services/common", "hyserve", "google", "engine/tokenizer",
                        "engine/sampling/sampling_params.h", "engine/kv_cache/kv_layout.h"],
    "services/prefill_worker": ["services/common", "services/worker", "hyserve", "engine",
                                "kv_transfer"],
    "services/decode_worker": ["services/common", "services/worker", "hyserve", "engine",
                               "kv_transfer"],
    "services/worker": ["services/common", "hyserve", "engine", "kv_transfer"],
    "services/cli": ["services/common", "hyserve", "engine/model", "engine/tensor",
                     "engine/kv_cache/kv_layout.h", "engine/tokenizer"],
}
# What names nothing of HyServe: everybody may include it.
COMMON = ["base"]
ROOTS = ("base", "engine", "kv_transfer", "services")
# Headers of third parties that only one folder may see.
ONLY_IN = {
    r"ucp/api|ucs/|uct/": ["kv_transfer/ucx"],
    r"grpcpp/|grpc/": ["services"],
    r"cuda": ["engine/tensor", "engine/kernels", "kv_transfer/cuda"],
}
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')


def rule_of(folder):
    parts = folder.split("/")
    for end in range(len(parts), 0, -1):
        prefix = "/".join(parts[:end])
        if prefix in ALLOWED:
            return prefix
    return None


def is_under(path, prefix):
    return path == prefix or path.startswith(prefix + "/")


def check_includes(root, path, problems):
    name = path.relative_to(root).as_posix()
    rule = rule_of(path.relative_to(root).parent.as_posix())
    if rule is None:
        problems.append(f"{name}: its folder is not in check_layers.py")
        return
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        quote, target = match.groups()
        for pattern, folders in ONLY_IN.items():
            if re.match(pattern, target) and not any(is_under(name, f) for f in folders):
                problems.append(f"{name}:{number}: only {', '.join(folders)} may include {target}")
        if quote == '"' and target.startswith(ROOTS + ("hyserve/", "google/")):
            if not any(is_under(target, a) for a in [rule, *ALLOWED[rule], *COMMON]):
                problems.append(f"{name}:{number}: {rule} may not include {target}")
        elif quote == '"' and not (root / target).exists() and "/" not in target:
            problems.append(f"{name}:{number}: include from the repository root: {target}")


def tracked_sources(root):
    skipped = {"build", ".git", ".cache", "testdata", "seeds"}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if relative.parts[0].startswith("build-"):  # ignored by git, as build/
            continue
        if path.suffix in SOURCE_SUFFIXES and path.is_file() and not skipped & set(relative.parts):
            yield path


def main():
    root = pathlib.Path(sys.argv[1]).resolve()
    problems = []
    count = 0
    for path in tracked_sources(root):
        count += 1
        lines = path.read_text().count("\n")
        if lines > MAX_LINES:
            problems.append(f"{path.relative_to(root)}: {lines} lines, more than {MAX_LINES}")
        if path.suffix in {".h", ".cc", ".inc"} and path.relative_to(root).parts[0] in ROOTS:
            check_includes(root, path, problems)
    if count == 0:
        problems.append(f"{root}: no source files found")
    print("\n".join(problems) if problems else f"{count} files in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
