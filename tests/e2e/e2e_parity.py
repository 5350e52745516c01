"""Disaggregated output equals single-process output, token by token, over real processes and UCX."""
import random
import unittest

from cluster import Cluster, inference_pb2

LENGTHS = (1, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025)
MAX_TOKENS = 24
VOCABULARY = 200  # ids that every random preset has


def request(length, seed=None, use_cache=True):
    rng = random.Random(length)
    message = inference_pb2.GenerateRequest()
    message.token_ids.ids.extend(rng.randrange(VOCABULARY) for _ in range(length))
    message.sampling.temperature = 0.0 if seed is None else 1.0
    if seed is not None:
        message.sampling.seed = seed
    message.stopping.max_tokens = MAX_TOKENS
    message.stopping.ignore_eos = True
    message.disable_prefix_cache = not use_cache
    return message


def read(call):
    """(token ids, Finished) of one stream; indices must be contiguous."""
    ids, finished = [], None
    for response in call:
        if response.WhichOneof("event") == "tokens":
            assert response.tokens.first_index == len(ids)
            ids.extend(response.tokens.token_ids)
        elif response.WhichOneof("event") == "finished":
            finished = response.finished
    return ids, finished


def run_all(cluster):
    """Outputs by (length, seed, round), 8 requests at once, twice: cache misses, then hits."""
    out = {}
    for turn in range(2):
        wanted = [(length, seed) for length in LENGTHS for seed in (None, 7)]
        while wanted:
            batch, wanted = wanted[:8], wanted[8:]
            calls = [(key, cluster.stub.Generate(request(*key), timeout=120)) for key in batch]
            for key, call in calls:
                out[(*key, turn)] = read(call)
    return out


class ParityTest(unittest.TestCase):

    def test_disaggregated_equals_single_process(self):
        with Cluster([{"role": "monolithic"}]) as cluster:
            expected = run_all(cluster)
            cluster.wait_idle()
        for (length, seed, turn), (ids, _) in expected.items():
            self.assertEqual(len(ids), MAX_TOKENS)
            self.assertEqual(ids, expected[(length, seed, 0)][0], f"length {length} turn {turn}")
        for chunk in (64, 256, 1024):
            with Cluster([{"role": "prefill", "chunk_tokens": chunk}, {"role": "decode"}]) as cluster:
                layout = cluster.describe(cluster.workers[1])
                actual = run_all(cluster)
                cluster.wait_idle()
            hits = 0
            for key, (ids, finished) in actual.items():
                self.assertEqual(ids, expected[key][0], f"chunk {chunk}, {key}")
                self.assertEqual(finished.handoff.recomputed_tokens, 0)
                blocks = (key[0] + 63) // 64
                self.assertEqual(finished.handoff.shipped_bytes,
                                 blocks * layout.kv_bytes_per_block + layout.slab_bytes +
                                 layout.selection_bytes, key)
                hits += finished.usage.cached_tokens > 0
            self.assertGreater(hits, 0, "no prefix-cache hit was seen")


if __name__ == "__main__":
    unittest.main()
