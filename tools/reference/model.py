"""Reference implementation of the HySparse v1 forward pass.

Written for clarity, one short function per formula. Attention materialises its scores, a bounded
chunk of query rows at a time. With dtype float64 this is the arbiter of every golden number.
"""

import dataclasses
import json
import pathlib

import safetensors.torch
import torch

import config as config_lib

_NEG_INF = float("-inf")


def load_weights(directory, dtype: torch.dtype) -> dict:
  """Reads model.safetensors, or the shards its index names, and casts every tensor to dtype."""
  directory = pathlib.Path(directory)
  index = directory / "model.safetensors.index.json"
  names = ["model.safetensors"]
  if index.exists():
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
  weights = {}
  for name in names:
    weights.update(safetensors.torch.load_file(directory / name))
  return {key: value.to(dtype) for key, value in weights.items()}


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
  wide = x if x.dtype == torch.float64 else x.float()
  scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
  return scaled.to(x.dtype) * weight


def rotate(x: torch.Tensor, positions: torch.Tensor, shape: config_lib.HeadShape) -> torch.Tensor:
  """Rotary embedding of x [n, heads, dk]: pairs (i, i + rot/2) of the first rot dims."""
  half = shape.rotary_dim // 2
  if half == 0:
    return x
  exponent = torch.arange(half, dtype=torch.float64) * 2.0 / shape.rotary_dim
  angle = positions.to(torch.float64)[:, None] * shape.rope_theta ** -exponent
  wide = torch.float64 if x.dtype == torch.float64 else torch.float32
  cos, sin = angle.cos().to(wide)[:, None, :], angle.sin().to(wide)[:, None, :]
  low, high = x[..., :half].to(wide), x[..., half:2 * half].to(wide)
  turned = torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1).to(x.dtype)
  return torch.cat([turned, x[..., 2 * half:]], dim=-1)


def scaled_scores(q: torch.Tensor, k: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
  """Masked logits [n, G, R, S] of q [n, H, dk] against k [S, G, dk].

  visible is boolean, broadcastable to [n, G, 1, S].
  """
  wide = torch.float64 if q.dtype == torch.float64 else torch.float32
  rows, groups = q.shape[0], k.shape[1]
  grouped = q.to(wide).reshape(rows, groups, -1, q.shape[-1])
  scores = torch.einsum("ngrd,sgd->ngrs", grouped, k.to(wide)) * q.shape[-1] ** -0.5
  return scores.masked_fill(~visible, _NEG_INF)


def attend(scores: torch.Tensor, v: torch.Tensor, sink: torch.Tensor | None) -> torch.Tensor:
  """Softmax of scores [n, G, R, S], with one extra value-less entry per head if sink is given."""
  if sink is not None:
    extra = sink.to(scores.dtype).reshape(1, scores.shape[1], scores.shape[2], 1)
    scores = torch.cat([scores, extra.expand(scores.shape[0], -1, -1, -1)], dim=-1)
  weights = torch.softmax(scores, dim=-1)[..., :v.shape[0]]
  out = torch.einsum("ngrs,sgv->ngrv", weights, v.to(weights.dtype))
  return out.flatten(1, 2).to(v.dtype)


def block_scores(scores: torch.Tensor, block_size: int) -> torch.Tensor:
  """Group score of every block, log domain: max over heads of (block maximum - LSE). [n, G, nb]"""
  padding = -scores.shape[-1] % block_size
  lse = torch.logsumexp(scores, dim=-1)
  padded = torch.nn.functional.pad(scores, (0, padding), value=_NEG_INF)
  maxima = padded.unflatten(-1, (-1, block_size)).amax(-1)
  return (maxima - lse[..., None]).amax(2)


def select_blocks(block_score: torch.Tensor, count: int):
  """The count best blocks of block_score [n, G, nb]; equal scores go to the lower index.

  Returns (indices [n, G, count] int32, ascending, padded with -1; margin [n, G] between the last
  block taken and the best one left, infinite when every visible block is taken).
  """
  ordered, order = torch.sort(block_score, dim=-1, descending=True, stable=True)
  missing = max(0, count + 1 - ordered.shape[-1])
  ordered = torch.nn.functional.pad(ordered, (0, missing), value=_NEG_INF)
  order = torch.nn.functional.pad(order, (0, missing), value=0)
  taken = torch.where(torch.isinf(ordered), torch.iinfo(torch.int32).max, order)[..., :count]
  taken = taken.sort(dim=-1).values
  indices = torch.where(taken == torch.iinfo(torch.int32).max, -1, taken).to(torch.int32)
  margin = ordered[..., count - 1] - ordered[..., count]
  margin = torch.where(torch.isinf(ordered[..., count]), float("inf"), margin)
  return indices, margin


def selected_mask(indices: torch.Tensor, num_keys: int, block_size: int) -> torch.Tensor:
  """Boolean [n, G, num_keys]: the key lies in one of the selected blocks (-1 selects nothing)."""
  num_blocks = -(-num_keys // block_size)
  chosen = torch.zeros(*indices.shape[:2], num_blocks + 1, dtype=torch.bool)
  chosen.scatter_(-1, torch.where(indices < 0, num_blocks, indices).long(), True)
  return chosen[..., :num_blocks].repeat_interleave(block_size, dim=-1)[..., :num_keys]


@dataclasses.dataclass
class Cache:
  """Keys (after rotation) and scaled values of one sequence, one entry per layer."""

  keys: list
  values: list
  length: int = 0

  @staticmethod
  def empty(cfg: config_lib.HysparseConfig, dtype: torch.dtype) -> "Cache":
    shapes = [cfg.heads(layer) for layer in range(cfg.num_layers)]
    return Cache(keys=[torch.zeros(0, s.num_kv_heads, s.qk_dim, dtype=dtype) for s in shapes],
                 values=[torch.zeros(0, s.num_kv_heads, s.v_dim, dtype=dtype) for s in shapes])


@dataclasses.dataclass
class ForwardResult:
  logits: torch.Tensor  # [n, vocab]
  selection: dict  # layer -> int32 [n, G, blocks], for the full layers that sparse layers read
  margin: dict  # layer -> [n, G]


class ReferenceModel:
  """HySparse v1 with plain tensors. Not thread-safe; caches belong to the caller."""

  def __init__(self, cfg: config_lib.HysparseConfig, weights: dict, dtype=torch.float64):
    self.cfg = cfg
    self.dtype = dtype
    self._weights = {key: value.to(dtype) for key, value in weights.items()}
    self.sparse_branch_enabled = True  # False: the ablation without the sparse branch

  @staticmethod
  def load(directory, dtype=torch.float64) -> "ReferenceModel":
    return ReferenceModel(config_lib.load_config(directory), load_weights(directory, dtype), dtype)

  def new_cache(self) -> Cache:
    return Cache.empty(self.cfg, self.dtype)

  @torch.no_grad()
  def forward(self, ids, cache: Cache, rows_per_chunk: int = 256) -> ForwardResult:
    """Runs the tokens that follow the cache and appends them to it: prefill, chunk or decode."""
    parts = [self._chunk(torch.as_tensor(ids[start:start + rows_per_chunk]), cache)
             for start in range(0, len(ids), rows_per_chunk)]
    sources = parts[0].selection.keys()
    return ForwardResult(
        torch.cat([part.logits for part in parts]),
        {layer: torch.cat([part.selection[layer] for part in parts]) for layer in sources},
        {layer: torch.cat([part.margin[layer] for part in parts]) for layer in sources})

  def _chunk(self, ids: torch.Tensor, cache: Cache) -> ForwardResult:
    cfg = self.cfg
    result = ForwardResult(torch.empty(0), {}, {})
    positions = torch.arange(cache.length, cache.length + len(ids))
    hidden = self._weights["model.embed_tokens.weight"][ids]
    for layer, kind in enumerate(cfg.layer_types):
      x = self._norm(hidden, f"model.layers.{layer}.input_layernorm.weight")
      if kind == config_lib.FULL:
        mixed = self._full_layer(layer, x, positions, cache, result)
      else:
        mixed = self._window_layer(layer, x, positions, cache, result)
      hidden = hidden + self._linear(mixed, layer, "self_attn.o_proj")
      x = self._norm(hidden, f"model.layers.{layer}.post_attention_layernorm.weight")
      hidden = hidden + (self._experts(layer, x) if cfg.moe_layers[layer]
                         else self._swiglu(x, layer, "mlp"))
    cache.length += len(ids)
    head = "model.embed_tokens.weight" if cfg.tie_word_embeddings else "lm_head.weight"
    result.logits = self._norm(hidden, "model.norm.weight") @ self._weights[head].T
    return result

  def _norm(self, x, name):
    return rms_norm(x, self._weights[name], self.cfg.norm_epsilon)

  def _tensor(self, layer, name):
    return self._weights[f"model.layers.{layer}.{name}"]

  def _linear(self, x, layer, name):
    return x @ self._tensor(layer, name + ".weight").T

  def _queries(self, layer, x, positions, cache):
    """Projects x, appends rotated keys and values to the layer's cache, returns rotated queries."""
    shape = self.cfg.heads(layer)
    rows = x.shape[0]
    q = self._linear(x, layer, "self_attn.q_proj").view(rows, shape.num_heads, shape.qk_dim)
    k = self._linear(x, layer, "self_attn.k_proj").view(rows, shape.num_kv_heads, shape.qk_dim)
    v = self._linear(x, layer, "self_attn.v_proj").view(rows, shape.num_kv_heads, shape.v_dim)
    if self.cfg.layer_types[layer] in self.cfg.rope_layer_types:
      q, k = rotate(q, positions, shape), rotate(k, positions, shape)
    cache.keys[layer] = torch.cat([cache.keys[layer], k])
    cache.values[layer] = torch.cat([cache.values[layer], v * self.cfg.value_scale])
    return q

  def _full_layer(self, layer, x, positions, cache, result):
    q = self._queries(layer, x, positions, cache)
    keys = torch.arange(cache.keys[layer].shape[0])
    visible = (keys[None, :] <= positions[:, None])[:, None, None, :]
    scores = scaled_scores(q, cache.keys[layer], visible)
    if self.cfg.is_selection_source(layer):
      ranked = block_scores(scores, self.cfg.block_size)
      result.selection[layer], result.margin[layer] = select_blocks(
          ranked, self.cfg.selected_blocks)
    return attend(scores, cache.values[layer], None).flatten(1)

  def _window_layer(self, layer, x, positions, cache, result):
    """A sliding layer, or a sparse layer: the window branch plus the selected blocks."""
    cfg = self.cfg
    sparse = cfg.layer_types[layer] == config_lib.SPARSE
    q = self._queries(layer, x, positions, cache)
    first = max(0, int(positions[0]) - cfg.window_tokens + 1)
    keys = torch.arange(first, cache.keys[layer].shape[0])
    age = positions[:, None] - keys[None, :]
    visible = ((age >= 0) & (age < cfg.window_tokens))[:, None, None, :]
    sink = self._tensor(layer, "self_attn.attention_sink_bias") if cfg.sink_window else None
    scores = scaled_scores(q, cache.keys[layer][first:], visible)
    out = attend(scores, cache.values[layer][first:], sink)
    if cfg.gate_sparse if sparse else cfg.gate_sliding:
      out = out * self._gate(layer, x, "self_attn.g_proj")
    if sparse and self.sparse_branch_enabled:
      out = out + self._sparse_branch(layer, x, q, positions, cache, result)
    return out.flatten(1)

  def _sparse_branch(self, layer, x, q, positions, cache, result):
    cfg = self.cfg
    source = cfg.kv_source_layer[layer]
    num_keys = cache.keys[source].shape[0]
    causal = torch.arange(num_keys)[None, :] <= positions[:, None]
    chosen = selected_mask(result.selection[source], num_keys, cfg.block_size)
    visible = (chosen & causal[:, None, :])[:, :, None, :]
    sink = self._tensor(layer, "self_attn.sparse_attention_sink_bias") if cfg.sink_sparse else None
    out = attend(scaled_scores(q, cache.keys[source], visible), cache.values[source], sink)
    if cfg.gate_sparse:
      out = out * self._gate(layer, x, "self_attn.sparse_g_proj")
    return out

  def _gate(self, layer, x, name):
    """Sigmoid gate, [n, H, 1] per head or [n, H, dv] per element."""
    return torch.sigmoid(self._linear(x, layer, name)).unflatten(
        -1, (self.cfg.heads(layer).num_heads, -1))

  def _swiglu(self, x, layer, prefix):
    gate = torch.nn.functional.silu(self._linear(x, layer, prefix + ".gate_proj"))
    return self._linear(gate * self._linear(x, layer, prefix + ".up_proj"), layer,
                        prefix + ".down_proj")

  def _experts(self, layer, x):
    """Sigmoid router: the correction bias chooses the experts, the sigmoid weighs them."""
    cfg = self.cfg
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    affinity = torch.sigmoid(x.to(wide) @ self._tensor(layer, "mlp.gate.weight").to(wide).T)
    biased = affinity + self._tensor(layer, "mlp.gate.e_score_correction_bias").to(wide)
    order = torch.sort(biased, dim=-1, descending=True, stable=True).indices
    chosen = order[:, :cfg.experts_per_token]
    weight = affinity.gather(-1, chosen)
    if cfg.norm_topk_prob:
      weight = weight / weight.sum(-1, keepdim=True)
    weight = weight * cfg.routed_scaling_factor
    out = torch.zeros_like(x)
    for expert in range(cfg.num_experts):
      rows, slots = torch.nonzero(chosen == expert, as_tuple=True)
      if len(rows):
        part = self._swiglu(x[rows], layer, f"mlp.experts.{expert}")
        out[rows] += (part.to(wide) * weight[rows, slots, None]).to(x.dtype)
    return out
