"""A HyServe client in plain grpcio: sends a prompt, prints the answer as it arrives.

Usage: python3 generate.py [--server HOST:PORT] PROMPT

Needs grpcio and protobuf. The message classes are made from the .proto file on the fly by protoc
(or by grpcio-tools, if installed), so there is nothing to generate beforehand.
"""
import argparse
import importlib
import pathlib
import subprocess
import sys
import tempfile

import grpc

PROTO_ROOT = pathlib.Path(__file__).resolve().parents[2] / "proto"
PROTO = "hyserve/v1/inference.proto"


def load_messages():
    """The module of inference.proto's messages."""
    out = tempfile.mkdtemp(prefix="hyserve-proto-")
    arguments = [f"-I{PROTO_ROOT}", f"--python_out={out}", PROTO]
    try:
        from grpc_tools import protoc
        if protoc.main(["protoc"] + arguments) != 0:
            raise RuntimeError("grpc_tools.protoc failed")
    except ImportError:
        subprocess.run(["protoc"] + arguments, check=True)
    sys.path.insert(0, out)
    return importlib.import_module("hyserve.v1.inference_pb2")


def generate(server, prompt, max_tokens):
    """Yields pieces of text; the last item is the Finished message."""
    pb = load_messages()
    request = pb.GenerateRequest(text=prompt.encode())
    request.sampling.temperature = 0
    request.stopping.max_tokens = max_tokens
    with grpc.insecure_channel(server) as channel:
        call = channel.unary_stream(
            "/hyserve.v1.Inference/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        for response in call(request, timeout=600):
            kind = response.WhichOneof("event")
            if kind == "tokens":
                yield response.tokens.text.decode()
            elif kind == "finished":
                yield response.finished.text.decode()
                yield response.finished


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", default="127.0.0.1:8470")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("prompt", help="the prompt, or - for standard input")
    args = parser.parse_args()
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    try:
        for item in generate(args.server, prompt, args.max_tokens):
            if isinstance(item, str):
                print(item, end="", flush=True)
            else:
                print(f"\n[{item.usage.prompt_tokens} prompt tokens, "
                      f"{item.usage.generated_tokens} generated, "
                      f"first token after {item.timings.time_to_first_token_ms:.0f} ms, "
                      f"{item.handoff.shipped_bytes / 1e6:.2f} MB shipped]", file=sys.stderr)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
