"""Disaggregated output equals single-process output, token by token, over UCX.

HYSERVE_E2E_FULL=1 adds a prompt of 20,000 tokens.
"""
import concurrent.futures
import os
import unittest

from cluster import Cluster, generate, grpc, make_request, prompt_of

LENGTHS = [1, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 4096]
if os.environ.get("HYSERVE_E2E_FULL"):
    LENGTHS.append(20000)
CHUNK_SIZES = [64, 256, 1024]
MAX_TOKENS = 24
BLOCK = 64
SAMPLINGS = {"greedy": {}, "seeded": {"temperature": 1.0, "seed": 1234}}
MEMORY = {"kv_memory": "128MiB"}


class Parity(unittest.TestCase):

    def setUp(self):
        self.single = self.enterContext(Cluster([{"role": "monolithic", **MEMORY}]))

    def start_pair(self, chunk_tokens=256):
        pair = self.enterContext(Cluster(
            [{"role": "prefill", "chunk_tokens": chunk_tokens, **MEMORY},
             {"role": "decode", **MEMORY}]))
        self.registration = pair.describe(pair.workers[0])
        return pair

    def alone(self, request):
        reply = generate(self.single, request)
        self.assertEqual(reply.code, grpc.StatusCode.OK, reply.message)
        self.assertEqual(len(reply.tokens), MAX_TOKENS)
        return reply.tokens

    def check(self, reply, expected, prompt_tokens):
        self.assertEqual(reply.code, grpc.StatusCode.OK, reply.message)
        self.assertEqual(reply.tokens, expected)
        blocks = (prompt_tokens + BLOCK - 1) // BLOCK
        shipped = (blocks * self.registration.kv_bytes_per_block + self.registration.slab_bytes +
                   self.registration.selection_bytes)
        handoff = reply.finished.handoff
        self.assertEqual(handoff.shipped_bytes, shipped)
        self.assertEqual(handoff.full_attention_bytes,
                         blocks * self.registration.full_attention_bytes_per_block)
        self.assertEqual(handoff.recomputed_tokens, 0)
        self.assertEqual(handoff.attempts, 1)

    def test_every_length_chunk_size_and_sampling(self):
        cases = {(length, name): make_request(prompt_of(length, salt=length), MAX_TOKENS, **options)
                 for length in LENGTHS for name, options in SAMPLINGS.items()}
        expected = {case: self.alone(request) for case, request in cases.items()}
        for chunk_tokens in CHUNK_SIZES:
            pair = self.start_pair(chunk_tokens)
            for case, request in cases.items():
                with self.subTest(chunk_tokens=chunk_tokens, case=case):
                    self.check(generate(pair, request), expected[case], case[0])
            pair.wait_idle()
        self.single.wait_idle()

    def test_prefix_hits_and_misses(self):
        pair = self.start_pair()
        prefix = prompt_of(1500, salt=5)
        for tail in (0, 1, 64, 200):
            prompt = prefix + prompt_of(tail, salt=77 + tail)
            expected = self.alone(make_request(prompt, MAX_TOKENS, disable_prefix_cache=True))
            for disabled in (False, True, False):
                with self.subTest(tail=tail, cache_disabled=disabled):
                    reply = generate(pair, make_request(prompt, MAX_TOKENS,
                                                        disable_prefix_cache=disabled))
                    self.check(reply, expected, len(prompt))
                    if disabled:
                        self.assertEqual(reply.finished.usage.cached_tokens, 0)
            # Asked before: all but the last block is restored, and shipped all the same.
            self.assertGreaterEqual(reply.finished.usage.cached_tokens, len(prompt) - BLOCK)
        pair.wait_idle()

    def test_eight_at_once(self):
        pair = self.start_pair()
        requests = []
        for i in range(16):
            options = SAMPLINGS["seeded" if i % 2 else "greedy"]
            requests.append(make_request(prompt_of(50 + 211 * i, salt=i), MAX_TOKENS, **options))
        expected = [self.alone(request) for request in requests]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda request: generate(pair, request), requests))
        for i, reply in enumerate(replies):
            with self.subTest(request=i):
                self.check(reply, expected[i], len(requests[i].token_ids.ids))
        pair.wait_idle()


if __name__ == "__main__":
    unittest.main()
