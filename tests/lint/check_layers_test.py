"""check_layers.py must report each kind of violation, and nothing in a tree that has none."""
import pathlib
import subprocess
import sys
import tempfile

CHECKER = pathlib.Path(__file__).parent / "check_layers.py"

CASES = [
    ("engine/tensor/a.h", '#include "engine/kernels/ops.h"\n', "may not include"),
    ("base/a.h", '#include "engine/tensor/tensor.h"\n', "may not include"),
    ("kv_transfer/a.cc", '#include "engine/runtime/engine.h"\n', "may not include"),
    ("engine/model/a.cc", "#include <ucp/api/ucp.h>\n", "may include ucp"),
    ("engine/model/a.cc", "#include <grpcpp/grpcpp.h>\n", "may include grpcpp"),
    ("engine/new_folder/a.h", "int x;\n", "not in check_layers.py"),
    ("engine/tensor/long.cc", "// line\n" * 501, "more than 500"),
    ("engine/tensor/a.cc", '#include "a_header.h"\n', "from the repository root"),
]


def run(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files:
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        done = subprocess.run([sys.executable, CHECKER, folder], capture_output=True, text=True)
        return done.returncode, done.stdout


def main():
    code, output = run([("engine/model/ok.h", '#include "engine/tensor/tensor.h"\n')])
    assert code == 0, output
    code, output = run([])
    assert code == 1 and "no source files" in output, output
    for name, text, message in CASES:
        code, output = run([(name, text)])
        assert code == 1 and message in output, (name, output)
    print(f"{len(CASES)} violations reported")


if __name__ == "__main__":
    main()
