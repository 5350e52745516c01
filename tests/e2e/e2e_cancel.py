"""Clients that cancel, run out of time or do not read; processes that are asked to stop."""
import os
import signal
import subprocess
import threading
import time
import unittest

from cluster import BIN, Cluster, generate, grpc, make_request, prompt_of
from cluster import inference_pb2_grpc

PAIR = [{"role": "prefill", "chunk_tokens": 64}, {"role": "decode"}]
MANY = 20000


class Clients(unittest.TestCase):

    def setUp(self):
        self.cluster = self.enterContext(Cluster(PAIR, limits="slow_consumer_kill: 300ms"))

    def check_still_serves(self):
        self.cluster.wait_idle()
        reply = generate(self.cluster, make_request(prompt_of(100), 8))
        self.assertEqual(reply.code, grpc.StatusCode.OK, reply.message)
        self.cluster.wait_idle()

    def test_cancel_before_the_first_token(self):
        request = make_request(prompt_of(16000), 8)
        request.output.report_progress = True

        def cancel(call, message, reply):
            if message.WhichOneof("event") == "progress":
                call.cancel()

        reply = generate(self.cluster, request, on_message=cancel)
        self.assertEqual(reply.code, grpc.StatusCode.CANCELLED)
        self.assertEqual(reply.tokens, [])
        self.check_still_serves()

    def test_cancel_while_tokens_come(self):
        for after in (1, 2, 40):
            def cancel(call, message, reply):
                if len(reply.tokens) >= after:
                    call.cancel()

            reply = generate(self.cluster, make_request(prompt_of(300), MANY), on_message=cancel)
            self.assertEqual(reply.code, grpc.StatusCode.CANCELLED)
            self.assertGreaterEqual(len(reply.tokens), after)
        self.check_still_serves()

    def test_deadline(self):
        for timeout_s in (0.001, 0.02, 0.3):
            reply = generate(self.cluster, make_request(prompt_of(3000), MANY), timeout_s=timeout_s)
            self.assertEqual(reply.code, grpc.StatusCode.DEADLINE_EXCEEDED)
            self.assertLess(reply.seconds, timeout_s + 1.0)
        self.check_still_serves()

    def test_a_client_that_does_not_read(self):
        channel = grpc.insecure_channel(
            f"127.0.0.1:{self.cluster.router_port}",
            options=[("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536),
                     ("grpc.use_local_subchannel_pool", 1)])
        request = make_request(prompt_of(100), MANY)
        request.output.logprobs = 20
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request, timeout=60)
        next(iter(call))
        # Nobody reads until the workers have been freed.
        deadline = time.monotonic() + 30
        while self.cluster.invariants(self.cluster.workers[1]).live_sequences == 0:
            self.assertLess(time.monotonic(), deadline)
        self.cluster.wait_idle()
        received = 0
        with self.assertRaises(grpc.RpcError) as error:
            for message in call:
                received += len(message.tokens.token_ids)
        self.assertIn(error.exception.code(),
                      (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED))
        self.assertLess(received, MANY)
        channel.close()
        self.check_still_serves()


class Stops(unittest.TestCase):

    def test_sigterm_lets_running_requests_finish(self):
        cluster = self.enterContext(Cluster(PAIR))
        replies = []
        tokens = threading.Event()
        client = threading.Thread(target=lambda: replies.append(generate(
            cluster, make_request(prompt_of(200), 300),
            on_message=lambda call, message, reply: reply.tokens and tokens.set())))
        client.start()
        self.assertTrue(tokens.wait(30))
        self.assertEqual(cluster.processes["prefill-0"].terminate(), 0)
        self.assertEqual(cluster.processes["decode-1"].terminate(), 0)
        client.join()
        self.assertEqual(replies[0].code, grpc.StatusCode.OK, replies[0].message)
        self.assertEqual(len(replies[0].tokens), 300)

    def test_a_signal_to_the_whole_group_of_hyserve_up_stops_it_cleanly(self):
        cluster = Cluster(PAIR)
        for number in (signal.SIGTERM, signal.SIGINT):
            up = subprocess.Popen([str(BIN / "hyserve"), "up", "--config", str(cluster.config)],
                                  stdout=subprocess.PIPE, text=True, start_new_session=True)
            self.addCleanup(up.stdout.close)
            self.addCleanup(up.kill)  # whatever failed; its children end with it
            ready = next(line for line in up.stdout if line.startswith("ready"))
            self.assertIn("1 prefill and 1 decode", ready)
            os.killpg(up.pid, number)
            up.stdout.read()
            self.assertEqual(up.wait(30), 0)
        cluster.directory.cleanup()

    def test_a_bad_model_or_configuration_starts_nothing(self):
        cluster = Cluster(PAIR, model="path: /nonexistent")
        for name in ("prefill-0", "decode-1"):
            done = subprocess.run(cluster.processes[name].arguments, capture_output=True, text=True,
                                  timeout=30)
            self.assertEqual(done.returncode, 78, done.stderr)
            self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        cluster.config.write_text("model: {path: x}\nprefil: []\n")
        done = subprocess.run([str(BIN / "hyserve-decode"), "--config", str(cluster.config)],
                              capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 78, done.stderr)
        self.assertIn("prefil", done.stderr)
        cluster.directory.cleanup()


if __name__ == "__main__":
    unittest.main()
