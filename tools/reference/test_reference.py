"""Conformance of the reference model with the HySparse v1 definition.

  python -m pytest tools/reference
"""

import math
import pathlib

import pytest
import safetensors.torch
import torch

import config as config_lib
import golden
import golden_cases
import model as model_lib
import random_model

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"


def build(name, dtype=torch.float64, **overrides):
  raw, seed, count = golden_cases.CASES[name]
  cfg = config_lib.parse_config({**raw, **overrides})
  weights = random_model.random_weights(cfg, seed)
  return (model_lib.ReferenceModel(cfg, weights, dtype),
          golden.sequence_ids(seed, cfg.vocab_size, count))


def run(model, ids, **kwargs):
  return model.forward(ids, model.new_cache(), **kwargs)


def random_scores(rows, groups, heads_per_group, keys, seed=3):
  generator = torch.Generator().manual_seed(seed)
  q = torch.randn(rows, groups * heads_per_group, 16, generator=generator, dtype=torch.float64)
  k = torch.randn(keys, groups, 16, generator=generator, dtype=torch.float64)
  positions = torch.arange(keys - rows, keys)
  visible = (torch.arange(keys)[None, :] <= positions[:, None])[:, None, None, :]
  return q, k, positions, model_lib.scaled_scores(q * 2.0, k, visible)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_budget_that_covers_the_context_equals_dense_attention(length):
  """(a) with every block selected, the sparse branch is dense causal attention with a sink."""
  model, ids = build("budget_covers")
  covered = run(model, ids[:length])
  more, _ = build("budget_covers", sparse_topk_tokens=4096)
  assert torch.equal(covered.logits, run(more, ids[:length]).logits)
  blocks = -(-length // 64)
  last = covered.selection[0][-1]
  assert last[:, :blocks].tolist() == [list(range(blocks))] * 2
  assert (last[:, blocks:] == -1).all()


def test_dense_attention_with_sink_matches_a_scalar_loop():
  """(a) one row, one head, written out with scalars."""
  _, _, _, scores = random_scores(1, 1, 1, 9)
  v = torch.arange(9, dtype=torch.float64).reshape(9, 1, 1)
  sink = torch.tensor([0.7], dtype=torch.float64)
  terms = [math.exp(x) for x in scores[0, 0, 0].tolist()]
  expected = sum(t * i for i, t in enumerate(terms)) / (sum(terms) + math.exp(0.7))
  assert model_lib.attend(scores, v, sink).item() == pytest.approx(expected, rel=1e-12)


def test_block_scores_are_normalised_probabilities():
  """(b) exp of a block score is the largest probability in the block, diagonal block included."""
  _, _, _, scores = random_scores(150, 2, 4, 150)
  got = model_lib.block_scores(scores, 64).exp()
  probability = torch.softmax(scores, dim=-1).amax(2)
  for block in range(3):
    wanted = probability[..., block * 64:(block + 1) * 64].amax(-1)
    assert torch.allclose(got[..., block], wanted, rtol=1e-12, atol=0)
  assert (got[:64, :, 1:] == 0).all()  # future blocks never compete


def test_selection_equals_a_stable_sort_with_forced_ties():
  """(c) against a sort by (-score, index) on scores with few distinct values."""
  generator = torch.Generator().manual_seed(5)
  score = torch.randint(0, 4, (40, 2, 23), generator=generator).double()
  score[:20, :, 5:] = float("-inf")
  indices, _ = model_lib.select_blocks(score, 8)
  for row in range(40):
    for group in range(2):
      values = score[row, group].tolist()
      order = sorted((i for i in range(23) if values[i] != float("-inf")),
                     key=lambda i: (-values[i], i))
      wanted = sorted(order[:8])
      assert indices[row, group].tolist() == wanted + [-1] * (8 - len(wanted))


@pytest.mark.parametrize("name", sorted(golden_cases.CASES))
@pytest.mark.parametrize("chunk", [1, 50, 64, 129])
def test_chunked_prefill_equals_one_shot(name, chunk):
  """(d) and (e): any chunk size, a chunk of one row being a decode step."""
  model, ids = build(name)
  ids = ids[:200]
  whole_cache, cache = model.new_cache(), model.new_cache()
  whole = model.forward(ids, whole_cache, rows_per_chunk=1000)
  parts = model.forward(ids, cache, rows_per_chunk=chunk)
  assert torch.allclose(whole.logits, parts.logits, rtol=0, atol=1e-11)
  for layer, indices in whole.selection.items():
    assert torch.equal(indices, parts.selection[layer])
  for a, b in zip(whole_cache.keys + whole_cache.values, cache.keys + cache.values):
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_groups_select_different_blocks():
  """(h) no accidental sharing across KV groups."""
  model, ids = build("gqa")
  selection = run(model, ids).selection[0][300:]
  assert (selection[:, 0] != selection[:, 1]).any(-1).float().mean() > 0.5


def test_sparse_branch_reads_only_selected_keys():
  """Keys outside the selected blocks do not reach the output; keys inside do."""
  model, ids = build("gqa")
  cache = model.new_cache()
  model.forward(ids[:-1], cache)
  base = model_lib.Cache(list(cache.keys), list(cache.values), cache.length)
  chosen = model.forward(ids[-1:], base).selection[0][0]
  outside = [b for b in range(10) if not (chosen == b).any()][0]
  inside = int(chosen[0, 0])
  for block, changes in ((outside, False), (inside, True)):
    probe = model_lib.Cache(list(cache.keys), list(cache.values), cache.length)
    x = torch.randn(1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([cache.length])
    result = model_lib.ForwardResult(torch.empty(0), {0: chosen[None]}, {})
    before = model._sparse_branch(1, x, torch.ones(1, 8, 32).double(), positions, probe, result)
    probe.values[0] = probe.values[0].clone()
    probe.values[0][block * 64:block * 64 + 64] += 1.0
    after = model._sparse_branch(1, x, torch.ones(1, 8, 32).double(), positions, probe, result)
    assert torch.equal(before, after) != changes


def test_window_holds_the_query_and_its_predecessors():
  """A key window_tokens back is out of reach, the one after it is in reach."""
  model, ids = build("sliding_first")
  short = model.cfg.window_tokens
  x = torch.randn(1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
  positions = torch.tensor([100])

  def output(changed_key):
    cache = model.new_cache()
    generator = torch.Generator().manual_seed(9)
    cache.keys[0] = torch.randn(100, 1, 8, generator=generator).double()
    cache.values[0] = torch.randn(100, 1, 12, generator=generator).double()
    cache.values[0][changed_key] += 1.0
    return model._window_layer(0, x, positions, cache, None)

  untouched = output(0)
  assert torch.equal(untouched, output(100 - short))
  assert not torch.equal(untouched, output(100 - short + 1))


@pytest.mark.parametrize("key,value", [
    ("use_qk_norm", True), ("attention_bias", True), ("sparse_block_size", 32),
    ("sparse_topk_tokens", 100), ("index_head_reduce", "sum"), ("force_local_blocks", 1),
    ("add_full_attention_sink_bias", True), ("n_shared_experts", 1), ("sparse_swa_branch", False),
    ("sliding_window_size", 128), ("attn_output_gate", {"full": True, "sparse": True}),
    ("model_type", "hysparse2"), ("partial_rotary_factor", 0.8)])
def test_unimplemented_configuration_is_refused(key, value):
  raw, _, _ = golden_cases.CASES["gqa"]
  with pytest.raises(config_lib.ConfigError):
    config_lib.parse_config({**raw, key: value})


@pytest.mark.parametrize("name", sorted(golden_cases.CASES))
def test_float32_agrees_with_the_golden_files(name):
  model = model_lib.ReferenceModel.load(GOLDEN / name, torch.float32)
  stored = safetensors.torch.load_file(GOLDEN / name / "golden.safetensors")
  result = run(model, stored["input_ids"].long())
  assert (result.logits - stored["logits"]).abs().max() < 1e-4
  for layer, indices in result.selection.items():
    assert torch.equal(indices, stored[f"selection.{layer}"])


@pytest.mark.parametrize("name", ["gqa", "moe", "sliding_first"])
def test_bfloat16_stays_close_in_distribution(name):
  model, ids = build(name, torch.bfloat16)
  exact, _ = build(name)
  reference = run(exact, ids).logits.log_softmax(-1)
  got = run(model, ids).logits.double().log_softmax(-1)
  divergence = (reference.exp() * (reference - got)).sum(-1)
  assert divergence.median() < 0.05
