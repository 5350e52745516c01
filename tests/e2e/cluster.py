"""Real HyServe processes for end-to-end tests: configuration, start, stop, kill, clients.

Everything listens on free ports of 127.0.0.1. Nothing is shared between two clusters.
"""
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.environ["HYSERVE_PROTO_PYTHON"])

import grpc  # noqa: E402
from hyserve.v1 import inference_pb2, inference_pb2_grpc  # noqa: E402
from hyserve.v1 import worker_pb2, worker_pb2_grpc  # noqa: E402

BIN = pathlib.Path(os.environ["HYSERVE_BIN"])
START_TIMEOUT_S = 60
IDLE_TIMEOUT_S = 30


def free_ports(count):
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Process:
    """One server process that can be killed and started again."""

    def __init__(self, name, arguments, log_path):
        self.name = name
        self.arguments = arguments
        self.log_path = log_path
        self.popen = None

    def start(self):
        log = open(self.log_path, "ab")
        self.popen = subprocess.Popen(self.arguments, stdout=log, stderr=log)
        log.close()

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def terminate(self, timeout_s=30):
        """SIGTERM; returns the exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    def alive(self):
        return self.popen is not None and self.popen.poll() is None


class Cluster:
    """Router and workers from one configuration file; use as a context manager.

    `workers` is a list of dicts: role, and any key of a worker's configuration.
    """

    def __init__(self, workers, model="random_preset: tiny", transfer="", limits=""):
        self.directory = tempfile.TemporaryDirectory(prefix="hyserve-e2e-")
        ports = free_ports(3 + 2 * len(workers))
        self.router_port, registry_port, router_metrics = ports[:3]
        self.workers = []
        sections = {"prefill": [], "decode": []}
        for i, worker in enumerate(workers):
            worker = dict(worker)
            role = worker.pop("role")
            name = worker.pop("name", f"{role}-{i}")
            port, metrics = ports[3 + 2 * i], ports[4 + 2 * i]
            keys = {"name": name, "listen": f"127.0.0.1:{port}",
                    "metrics_listen": f"127.0.0.1:{metrics}", "threads": 1,
                    "kv_memory": "64MiB", "max_sequences": 16, "chunk_tokens": 256,
                    "snapshot_slabs": 8}
            keys.update(worker)
            if role == "monolithic":
                keys["role"] = "monolithic"
            sections["prefill" if role == "prefill" else "decode"].append(keys)
            self.workers.append({"name": name, "role": role, "port": port, "metrics": metrics})
        lines = ["model:", f"  {model}", "  random_seed: 7" if "random" in model else "",
                 "router:", f"  listen: 127.0.0.1:{self.router_port}",
                 f"  registry_listen: 127.0.0.1:{registry_port}",
                 f"  metrics_listen: 127.0.0.1:{router_metrics}", "  pair_quarantine: 100ms"]
        for section, entries in sections.items():
            if entries:
                lines.append(f"{section}:")
            for entry in entries:
                lines.append("  - {" + ", ".join(f"{k}: {v}" for k, v in entry.items()) + "}")
        if transfer:
            lines += ["transfer:"] + ["  " + line for line in transfer.split("\n")]
        if limits:
            lines += ["limits:"] + ["  " + line for line in limits.split("\n")]
        self.config = pathlib.Path(self.directory.name) / "hyserve.yaml"
        self.config.write_text("\n".join(line for line in lines if line) + "\n")
        self.processes = {"router": self._process("router", "hyserve-router")}
        for worker in self.workers:
            program = "hyserve-prefill" if worker["role"] == "prefill" else "hyserve-decode"
            self.processes[worker["name"]] = self._process(worker["name"], program)
        self.channel = None

    def _process(self, name, program):
        arguments = [str(BIN / program), "--config", str(self.config)]
        if name != "router":
            arguments += ["--name", name]
        return Process(name, arguments, pathlib.Path(self.directory.name) / f"{name}.log")

    def __enter__(self):
        for process in self.processes.values():
            process.start()
        self.wait_ready()
        return self

    def connect(self):
        """A fresh connection: after a refused one, a channel of this gRPC pauses for seconds."""
        if self.channel is not None:
            self.channel.close()
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{self.router_port}",
            options=[("grpc.max_receive_message_length", 64 << 20),
                     ("grpc.use_local_subchannel_pool", 1)])
        self.stub = inference_pb2_grpc.InferenceStub(self.channel)

    def __exit__(self, *exception):
        if self.channel is not None:
            self.channel.close()
        for process in self.processes.values():
            if process.alive():
                process.kill()
        if exception[0] is not None:
            self.print_logs()
        self.directory.cleanup()

    def print_logs(self):
        for process in self.processes.values():
            text = process.log_path.read_text(errors="replace")
            print(f"---- {process.name}\n{text[-4000:]}", file=sys.stderr)

    def wait_ready(self, timeout_s=START_TIMEOUT_S):
        """Until the router knows every worker that should be there."""
        prefill = sum(w["role"] == "prefill" for w in self.workers)
        decode = len(self.workers) - prefill
        end = time.monotonic() + timeout_s
        last = None
        while time.monotonic() < end:
            for process in self.processes.values():
                if not process.alive():
                    self.print_logs()
                    raise AssertionError(f"{process.name} ended with {process.popen.returncode}")
            self.connect()
            try:
                last = self.stub.GetModel(inference_pb2.GetModelRequest(), timeout=2)
                if last.prefill_workers >= prefill and last.decode_workers >= decode:
                    return
            except grpc.RpcError as error:
                last = error.code()
            time.sleep(0.02)
        self.print_logs()
        raise AssertionError(f"not ready after {timeout_s} s: {last}")

    def admin(self, worker):
        channel = grpc.insecure_channel(f"127.0.0.1:{worker['port']}",
                                        options=[("grpc.use_local_subchannel_pool", 1)])
        return channel, worker_pb2_grpc.WorkerAdminStub(channel)

    def invariants(self, worker):
        channel, stub = self.admin(worker)
        try:
            return stub.GetInvariants(worker_pb2.GetInvariantsRequest(), timeout=5)
        finally:
            channel.close()

    def describe(self, worker):
        channel, stub = self.admin(worker)
        try:
            return stub.Describe(worker_pb2.DescribeRequest(), timeout=5)
        finally:
            channel.close()

    def wait_idle(self, timeout_s=IDLE_TIMEOUT_S):
        """Until nothing is held at any worker; fails with what is still held."""
        end = time.monotonic() + timeout_s
        while True:
            held = {}
            for worker in self.workers:
                now = self.invariants(worker)
                total = now.blocks_free + now.blocks_cached + now.blocks_used
                assert total == now.blocks_total, f"{worker['name']}: {now}"
                if (now.blocks_used or now.blocks_quarantined or now.slabs_used or
                        now.live_sequences or now.open_offers or now.open_imports or
                        now.open_streams):
                    held[worker["name"]] = str(now)
            if not held:
                return
            if time.monotonic() > end:
                self.print_logs()
                raise AssertionError(f"still held after {timeout_s} s: {held}")
            time.sleep(0.02)


class Reply:
    """Everything that came back for one request."""

    def __init__(self):
        self.code = None
        self.message = ""
        self.tokens = []
        self.finished = None
        self.seconds = 0.0


def make_request(prompt, max_tokens=16, temperature=0.0, seed=None, **options):
    request = inference_pb2.GenerateRequest()
    request.token_ids.ids.extend(prompt)
    request.sampling.temperature = temperature
    if seed is not None:
        request.sampling.seed = seed
    request.stopping.max_tokens = max_tokens
    request.stopping.ignore_eos = options.pop("ignore_eos", True)
    for key, value in options.items():
        setattr(request, key, value)
    return request


def generate(cluster, request, timeout_s=60.0, on_message=None):
    """Sends the request and reads to its end. Fails if a token index is not the next one."""
    reply = Reply()
    begin = time.monotonic()
    call = cluster.stub.Generate(request, timeout=timeout_s)
    try:
        for message in call:
            kind = message.WhichOneof("event")
            if kind == "tokens":
                assert message.tokens.first_index == len(reply.tokens), "gap or repetition"
                reply.tokens.extend(message.tokens.token_ids)
            elif kind == "finished":
                assert reply.finished is None, "finished twice"
                reply.finished = message.finished
            if on_message is not None:
                on_message(call, message, reply)
        reply.code = call.code()
    except grpc.RpcError as error:
        reply.code = error.code()
        reply.message = error.details()
    reply.seconds = time.monotonic() - begin
    return reply


def prompt_of(length, salt=0):
    """Token ids of the tiny preset's vocabulary, without its end token, reproducible."""
    state = (salt * 2654435761 + 12345) & 0xFFFFFFFF
    ids = []
    for _ in range(length):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        ids.append(1 + (state >> 16) % 255)
    return ids
