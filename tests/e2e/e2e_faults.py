"""kill -9 of any process at any moment: every request ends with the undisturbed answer or a clear
status, none outlives its deadline, and the survivors give everything back.

HYSERVE_E2E_KILLS: number of kills (default 8). HYSERVE_E2E_SEED: of the random choices.
"""
import concurrent.futures
import os
import random
import time
import unittest

from cluster import Cluster, generate, grpc, make_request, prompt_of

KILLS = int(os.environ.get("HYSERVE_E2E_KILLS", "8"))
SEED = int(os.environ.get("HYSERVE_E2E_SEED", "1"))
REQUESTS_AT_ONCE = 6
DEADLINE_S = 20.0
# How long after its deadline a request may still end.
SLACK_S = 1.0
CLEAR_ENDS = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED,
              grpc.StatusCode.DEADLINE_EXCEEDED}
WORKERS = [{"role": "prefill", "name": "prefill-a"}, {"role": "prefill", "name": "prefill-b"},
           {"role": "decode", "name": "decode-a"}, {"role": "decode", "name": "decode-b"}]
TRANSFER = "lease: 3s\nlease_renew: 500ms\nprogress_timeout: 1s"


class Faults(unittest.TestCase):

    def setUp(self):
        self.random = random.Random(SEED)
        self.cluster = self.enterContext(Cluster(WORKERS, transfer=TRANSFER))
        self.requests = []
        for i in range(12):
            options = {"temperature": 1.0, "seed": i} if i % 2 else {}
            # Prompts long enough to be hit in the middle of prefill and transfer.
            self.requests.append(make_request(prompt_of(200 + 700 * i, salt=i), 60 + 20 * (i % 4),
                                              disable_prefix_cache=i % 3 == 0, **options))
        self.expected = []
        for request in self.requests:
            reply = generate(self.cluster, request, timeout_s=60)
            self.assertEqual(reply.code, grpc.StatusCode.OK, reply.message)
            self.expected.append(reply.tokens)

    def check(self, index, reply, ends):
        self.assertLess(reply.seconds, DEADLINE_S + SLACK_S)
        if reply.code == grpc.StatusCode.OK:
            self.assertEqual(reply.tokens, self.expected[index])
        else:
            self.assertIn(reply.code, CLEAR_ENDS, reply.message)
            # What was sent before the end stands.
            self.assertEqual(reply.tokens, self.expected[index][:len(reply.tokens)])
        ends[reply.code] = ends.get(reply.code, 0) + 1

    def test_kill_any_process(self):
        names = list(self.cluster.processes)
        ends = {}
        with concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            for kill in range(KILLS):
                chosen = self.random.sample(range(len(self.requests)), REQUESTS_AT_ONCE)
                victim = self.cluster.processes[names[kill % len(names)]]
                running = [(i, pool.submit(generate, self.cluster, self.requests[i], DEADLINE_S))
                           for i in chosen]
                time.sleep(self.random.uniform(0, 0.6))
                victim.kill()
                for i, future in running:
                    with self.subTest(kill=kill, victim=victim.name, request=i):
                        self.check(i, future.result(DEADLINE_S + 10), ends)
                # The survivors first: the victim's new process holds nothing in any case.
                self.check_survivors(victim.name)
                victim.start()
                self.cluster.wait_ready()
        print("ends:", {code.name: count for code, count in ends.items()})
        self.cluster.wait_idle()
        # Afterwards everything works as before.
        for request, expected in zip(self.requests, self.expected):
            reply = generate(self.cluster, request, timeout_s=60)
            self.assertEqual(reply.code, grpc.StatusCode.OK, reply.message)
            self.assertEqual(reply.tokens, expected)

    def check_survivors(self, victim):
        everyone = self.cluster.workers
        self.cluster.workers = [worker for worker in everyone if worker["name"] != victim]
        try:
            self.cluster.wait_idle()
        finally:
            self.cluster.workers = everyone


if __name__ == "__main__":
    unittest.main()
