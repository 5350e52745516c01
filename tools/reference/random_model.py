"""Random-weight checkpoints for tests: names and shapes of every tensor, and a seeded filling."""

import json
import pathlib

import safetensors.torch
import torch

import config as config_lib


def tensor_shapes(cfg: config_lib.HysparseConfig) -> dict:
  """Name -> shape of every tensor that a checkpoint of this configuration holds."""
  width = cfg.hidden_size
  shapes = {"model.embed_tokens.weight": (cfg.vocab_size, width), "model.norm.weight": (width,)}
  if not cfg.tie_word_embeddings:
    shapes["lm_head.weight"] = (cfg.vocab_size, width)
  for layer, kind in enumerate(cfg.layer_types):
    prefix = f"model.layers.{layer}."
    shapes[prefix + "input_layernorm.weight"] = (width,)
    shapes[prefix + "post_attention_layernorm.weight"] = (width,)
    for name, shape in _attention_shapes(cfg, layer, kind).items():
      shapes[prefix + "self_attn." + name] = shape
    for name, shape in _mlp_shapes(cfg, layer).items():
      shapes[prefix + "mlp." + name] = shape
  return shapes


def _attention_shapes(cfg, layer, kind) -> dict:
  heads, width = cfg.heads(layer), cfg.hidden_size
  shapes = {
      "q_proj.weight": (heads.num_heads * heads.qk_dim, width),
      "k_proj.weight": (heads.num_kv_heads * heads.qk_dim, width),
      "v_proj.weight": (heads.num_kv_heads * heads.v_dim, width),
      "o_proj.weight": (width, heads.num_heads * heads.v_dim),
  }
  gate = (heads.num_heads * (heads.v_dim if cfg.gate_elementwise else 1), width)
  if kind == config_lib.SPARSE:
    if cfg.gate_sparse:
      shapes["g_proj.weight"] = gate
      shapes["sparse_g_proj.weight"] = gate
    if cfg.sink_sparse:
      shapes["sparse_attention_sink_bias"] = (heads.num_heads,)
  if kind == config_lib.SLIDING and cfg.gate_sliding:
    shapes["g_proj.weight"] = gate
  if kind != config_lib.FULL and cfg.sink_window:
    shapes["attention_sink_bias"] = (heads.num_heads,)
  return shapes


def _mlp_shapes(cfg, layer) -> dict:
  width = cfg.hidden_size
  if not cfg.moe_layers[layer]:
    inner = cfg.intermediate_size
    return {"gate_proj.weight": (inner, width), "up_proj.weight": (inner, width),
            "down_proj.weight": (width, inner)}
  inner = cfg.moe_intermediate_size
  shapes = {"gate.weight": (cfg.num_experts, width),
            "gate.e_score_correction_bias": (cfg.num_experts,)}
  for expert in range(cfg.num_experts):
    shapes[f"experts.{expert}.gate_proj.weight"] = (inner, width)
    shapes[f"experts.{expert}.up_proj.weight"] = (inner, width)
    shapes[f"experts.{expert}.down_proj.weight"] = (width, inner)
  return shapes


def random_weights(cfg: config_lib.HysparseConfig, seed: int, gain: float = 1.6) -> dict:
  """Seeded float32 weights: matrices N(0, gain^2/fan_in), norms near 1, sinks, biases N(0, 1)."""
  generator = torch.Generator().manual_seed(seed)
  weights = {}
  for name, shape in tensor_shapes(cfg).items():
    values = torch.randn(shape, generator=generator)
    if "norm" in name:
      values = 1.0 + 0.2 * values
    elif name.endswith("embed_tokens.weight"):
      values = values * (0.3 if cfg.tie_word_embeddings else 1.0)
    elif len(shape) == 2:
      values = values * (gain * shape[1] ** -0.5)
    elif name.endswith("e_score_correction_bias"):
      values = 0.2 * values
    weights[name] = values
  return weights


def save_checkpoint(directory, raw_config: dict, weights: dict) -> None:
  """Writes config.json and model.safetensors."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  (directory / "config.json").write_text(json.dumps(raw_config, indent=2) + "\n", encoding="utf-8")
  safetensors.torch.save_file({key: value.contiguous() for key, value in weights.items()},
                              directory / "model.safetensors", metadata={"format": "pt"})
