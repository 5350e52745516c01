"""The demo network for training and batched evaluation, with the tensors of the checkpoint."""

import torch
import torch.nn.functional as nnf

import config as config_lib
import train_attention as attention


def rotary_table(length: int, shape: config_lib.HeadShape, device):
  """cos and sin [T, 1, rot/2] in float32."""
  half = shape.rotary_dim // 2
  exponent = torch.arange(half, dtype=torch.float64) * 2.0 / shape.rotary_dim
  angle = torch.arange(length, dtype=torch.float64)[:, None] * shape.rope_theta ** -exponent
  return (angle.cos().float()[:, None].to(device), angle.sin().float()[:, None].to(device))


def rotate(x, cos, sin):
  half = cos.shape[-1]
  low, high = x[..., :half].float(), x[..., half:2 * half].float()
  turned = torch.cat([low * cos - high * sin, high * cos + low * sin], -1).to(x.dtype)
  return torch.cat([turned, x[..., 2 * half:]], -1)


class DemoNet:
  """Forward pass over a batch of equally long sequences. Holds no state but the parameters."""

  def __init__(self, cfg: config_lib.HysparseConfig, params: dict, dense: bool = False):
    self.cfg = cfg
    self.params = params
    self.sparse_branch_enabled = True
    self._dense = dense  # dense check version of the attention, for machines without a GPU
    self._tables = {}

  def hidden(self, ids: torch.Tensor) -> torch.Tensor:
    """Normalised hidden states [B, T, d] of ids [B, T]; T is a multiple of 64."""
    cfg, p = self.cfg, self.params
    batch, length = ids.shape
    if length not in self._tables:
      self._tables[length] = rotary_table(length, cfg.full_heads, ids.device)
    h = nnf.embedding(ids, p["model.embed_tokens.weight"])
    sources = {}
    for layer, kind in enumerate(cfg.layer_types):
      prefix = f"model.layers.{layer}."
      x = self._norm(h, prefix + "input_layernorm.weight")
      q, k, v = self._project(prefix + "self_attn.", x, self._tables[length])
      if kind == config_lib.FULL:
        mixed, lse = attention.full_attention(q, k, v)
        if cfg.is_selection_source(layer):
          indices = attention.select(q.detach(), k.detach(), lse, cfg.selected_blocks)
          sources[layer] = (k, v, attention.SelectionPlan(indices))
      else:
        mixed = self._sparse(prefix + "self_attn.", x, q, k, v, sources[cfg.kv_source_layer[layer]])
      h = h + mixed.reshape(batch, length, -1) @ p[prefix + "self_attn.o_proj.weight"].T
      x = self._norm(h, prefix + "post_attention_layernorm.weight")
      gate = nnf.silu(x @ p[prefix + "mlp.gate_proj.weight"].T)
      h = h + (gate * (x @ p[prefix + "mlp.up_proj.weight"].T)
               ) @ p[prefix + "mlp.down_proj.weight"].T
    return self._norm(h, "model.norm.weight")

  def logits(self, hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ self.params["lm_head.weight"].T

  def _norm(self, x, name):
    return nnf.rms_norm(x, (x.shape[-1],), self.params[name], self.cfg.norm_epsilon)

  def _project(self, prefix, x, table):
    shape, p = self.cfg.full_heads, self.params
    split = lambda y, heads: y.view(*x.shape[:2], heads, -1)
    q = split(x @ p[prefix + "q_proj.weight"].T, shape.num_heads)
    k = split(x @ p[prefix + "k_proj.weight"].T, shape.num_kv_heads)
    v = split(x @ p[prefix + "v_proj.weight"].T, shape.num_kv_heads)
    return rotate(q, *table), rotate(k, *table), v

  def _sparse(self, prefix, x, q, k, v, source):
    p = self.params
    window = attention.dense_window if self._dense else attention.window_attention
    selected = attention.dense_selected if self._dense else attention.selected_attention
    out = window(q, k, v, p[prefix + "attention_sink_bias"], self.cfg.window_tokens)
    out = out * torch.sigmoid(x @ p[prefix + "g_proj.weight"].T)[..., None]
    if self.sparse_branch_enabled:
      far = selected(q, source[0], source[1], p[prefix + "sparse_attention_sink_bias"], source[2])
      out = out + far * torch.sigmoid(x @ p[prefix + "sparse_g_proj.weight"].T)[..., None]
    return out
