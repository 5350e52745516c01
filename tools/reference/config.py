"""Configuration of a HySparse v1 checkpoint, read from its config.json."""

import dataclasses
import json
import pathlib

FULL = "full_attention"
SLIDING = "sliding_attention"
SPARSE = "sparse_attention"

_PATTERN_KINDS = {0: FULL, 1: SLIDING, 2: SPARSE}

# Keys that would change the arithmetic and the one value of each that HySparse v1 implements.
_FIXED_KEYS = {
    "add_full_attention_sink_bias": False,
    "attention_bias": False,
    "bridge_norm": None,
    "force_first_blocks": 0,
    "force_local_blocks": 0,
    "hc_streams": 1,
    "hidden_act": "silu",
    "index_head_reduce": "max",
    "index_score": "prob",
    "n_group": 1,
    "n_shared_experts": 0,
    "num_nextn_predict_layers": 0,
    "quantization_config": None,
    "scoring_func": "sigmoid",
    "sparse_block_size": 64,
    "sparse_forced_local": 0,
    "sparse_granularity": "block",
    "sparse_swa_branch": True,
    "topk_group": 1,
    "use_qk_norm": False,
}


class ConfigError(ValueError):
  """The checkpoint asks for something HySparse v1 does not define."""


@dataclasses.dataclass(frozen=True)
class HeadShape:
  """Head counts and widths of one layer's attention."""

  num_heads: int
  num_kv_heads: int
  qk_dim: int
  v_dim: int
  rotary_dim: int
  rope_theta: float

  @property
  def heads_per_group(self) -> int:
    return self.num_heads // self.num_kv_heads


@dataclasses.dataclass(frozen=True)
class HysparseConfig:
  """The keys of config.json that decide the arithmetic, with defaults applied."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  layer_types: tuple
  kv_source_layer: tuple  # full layer that a sparse layer reads, -1 for the other kinds
  full_heads: HeadShape
  sliding_heads: HeadShape
  window_tokens: int
  block_size: int
  selected_blocks: int
  gate_sparse: bool
  gate_sliding: bool
  gate_elementwise: bool
  sink_window: bool
  sink_sparse: bool
  rope_layer_types: frozenset
  value_scale: float
  norm_epsilon: float
  tie_word_embeddings: bool
  moe_layers: tuple  # bool per layer
  num_experts: int
  experts_per_token: int
  moe_intermediate_size: int
  norm_topk_prob: bool
  routed_scaling_factor: float

  @property
  def num_layers(self) -> int:
    return len(self.layer_types)

  def heads(self, layer: int) -> HeadShape:
    return self.sliding_heads if self.layer_types[layer] == SLIDING else self.full_heads

  def is_selection_source(self, layer: int) -> bool:
    """True when a later sparse layer reads the K/V and the block selection of this layer."""
    return layer in self.kv_source_layer


def _head_shape(raw: dict, prefix: str, base: HeadShape | None) -> HeadShape:
  def pick(name, default):
    value = raw.get(prefix + name)
    return default if value is None else value

  if base is None:
    num_heads = raw["num_attention_heads"]
    num_kv_heads = raw.get("num_key_value_heads", num_heads)
    qk_dim = raw.get("head_dim") or raw["hidden_size"] // num_heads
    v_dim = raw.get("v_head_dim") or qk_dim
    theta = raw.get("rope_theta", 640000.0)
  else:
    num_heads = pick("num_attention_heads", base.num_heads)
    num_kv_heads = pick("num_key_value_heads", base.num_kv_heads)
    qk_dim = pick("head_dim", base.qk_dim)
    v_dim = pick("v_head_dim", base.v_dim)
    theta = pick("rope_theta", base.rope_theta)
  rotary_dim = int(qk_dim * raw.get("partial_rotary_factor", 1.0))
  if rotary_dim % 2:
    raise ConfigError(f"odd rotary width {rotary_dim} for head_dim {qk_dim}")
  if num_heads % num_kv_heads:
    raise ConfigError(f"{num_heads} heads do not divide into {num_kv_heads} KV heads")
  return HeadShape(num_heads, num_kv_heads, qk_dim, v_dim, rotary_dim, float(theta))


def _layer_types(raw: dict) -> tuple:
  kinds = raw.get("layer_types")
  if kinds is None:
    kinds = [_PATTERN_KINDS[code] for code in raw["hybrid_layer_pattern"]]
  for kind in kinds:
    if kind not in (FULL, SLIDING, SPARSE):
      raise ConfigError(f"unknown layer type {kind}")
  if len(kinds) != raw.get("num_hidden_layers", len(kinds)):
    raise ConfigError("layer_types does not have num_hidden_layers entries")
  return tuple(kinds)


def _kv_sources(raw: dict, kinds: tuple) -> tuple:
  named = raw.get("kv_source_layer")
  sources, nearest = [], -1
  for layer, kind in enumerate(kinds):
    if kind == FULL:
      nearest = layer
    if kind != SPARSE:
      sources.append(-1)
      continue
    source = named[layer] if named is not None else nearest
    if not 0 <= source < layer or kinds[source] != FULL:
      raise ConfigError(f"sparse layer {layer} has no full layer to read")
    sources.append(source)
  return tuple(sources)


def parse_config(raw: dict) -> HysparseConfig:
  """Checks and converts the JSON object of a config.json."""
  if raw.get("model_type", "hysparse") != "hysparse":
    raise ConfigError(f"model_type {raw['model_type']} is not hysparse")
  for key, wanted in _FIXED_KEYS.items():
    if raw.get(key) not in (None, wanted):
      raise ConfigError(f"{key}={raw[key]} is not implemented")
  if "sliding_window_size" in raw:
    raise ConfigError("sliding_window_size is ambiguous; use sliding_window")

  kinds = _layer_types(raw)
  full_heads = _head_shape(raw, "", None)
  sliding_heads = _head_shape(raw, "swa_", full_heads)
  if SPARSE in kinds and SLIDING not in kinds:
    if raw.get("swa_num_key_value_heads", full_heads.num_kv_heads) != full_heads.num_kv_heads:
      raise ConfigError("swa_num_key_value_heads differs from num_key_value_heads")

  block_size = 64
  topk_tokens = raw.get("sparse_topk_tokens", 1024)
  if topk_tokens % block_size:
    raise ConfigError("sparse_topk_tokens is not a whole number of blocks")
  gates = raw.get("attn_output_gate", {"sparse": True, "sliding": False})
  if gates.get("full"):
    raise ConfigError("attn_output_gate.full is not implemented")
  moe_layers = tuple(bool(x) for x in raw.get("moe_layer_freq") or [0] * len(kinds))
  return HysparseConfig(
      vocab_size=raw["vocab_size"],
      hidden_size=raw["hidden_size"],
      intermediate_size=raw.get("intermediate_size", 0),
      layer_types=kinds,
      kv_source_layer=_kv_sources(raw, kinds),
      full_heads=full_heads,
      sliding_heads=sliding_heads,
      window_tokens=raw.get("sliding_window", 128),
      block_size=block_size,
      selected_blocks=topk_tokens // block_size,
      gate_sparse=bool(gates.get("sparse", True)),
      gate_sliding=bool(gates.get("sliding", False)),
      gate_elementwise=raw.get("attn_gate_granularity", "head") == "element",
      sink_window=bool(raw.get("add_swa_attention_sink_bias", False)),
      sink_sparse=bool(raw.get("add_sparse_attention_sink_bias", False)),
      rope_layer_types=frozenset(raw.get("rope_layer_types", (FULL, SPARSE, SLIDING))),
      value_scale=float(raw.get("attention_value_scale") or 1.0),
      norm_epsilon=float(raw.get("layernorm_epsilon", raw.get("rms_norm_eps", 1e-5))),
      tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
      moe_layers=moe_layers,
      num_experts=raw.get("n_routed_experts") or 0,
      experts_per_token=raw.get("num_experts_per_tok") or 0,
      moe_intermediate_size=raw.get("moe_intermediate_size") or 0,
      norm_topk_prob=bool(raw.get("norm_topk_prob", True)),
      routed_scaling_factor=float(raw.get("routed_scaling_factor") or 1.0),
  )


def load_config(directory) -> HysparseConfig:
  """Reads DIRECTORY/config.json."""
  text = (pathlib.Path(directory) / "config.json").read_text(encoding="utf-8")
  return parse_config(json.loads(text))
