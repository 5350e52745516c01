"""Differentiable HySparse v1 attention for training: Triton kernels, and a dense check version.

All functions take q [B, T, H, D], k and v [B, T, G, D]; sinks are [H]. T is a multiple of 64.
"""

import torch

import sparse_kernels as kernels

_ROWS_PER_ITEM = 512  # rows of one work item of the key gradient
_NEG_INF = float("-inf")


class SelectionPlan:
  """Selected blocks of one full layer, and their inverse: the rows that selected each block."""

  def __init__(self, indices: torch.Tensor):
    batch, groups, length, count = indices.shape
    blocks = length // kernels.BLOCK
    self.indices = indices.contiguous()
    flat = indices.reshape(batch * groups, length * count)
    owner, order = torch.where(flat < 0, blocks, flat).to(torch.int16).sort(dim=-1, stable=True)
    self.rows = torch.div(order, count, rounding_mode="floor").to(torch.int32)
    edges = torch.arange(blocks + 1, device=flat.device, dtype=torch.int16)
    bounds = torch.searchsorted(owner, edges.expand(batch * groups, -1).contiguous())
    size = bounds[:, 1:] - bounds[:, :-1]
    ends = ((size + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM).cumsum(-1)
    self.items = blocks + -(-length * count // _ROWS_PER_ITEM)
    number = torch.arange(self.items, device=flat.device).expand(batch * groups, -1).contiguous()
    block = torch.searchsorted(ends, number, right=True)
    inside = block < blocks
    block = block.clamp(max=blocks - 1)
    before = ends - (size + _ROWS_PER_ITEM - 1) // _ROWS_PER_ITEM
    start = bounds.gather(1, block) + (number - before.gather(1, block)) * _ROWS_PER_ITEM
    end = torch.minimum(start + _ROWS_PER_ITEM, bounds.gather(1, block + 1))
    self.item_block = torch.where(inside, block, -1).to(torch.int32)
    self.item_start = start.to(torch.int32)
    self.item_end = end.to(torch.int32)


class _Selected(torch.autograd.Function):

  @staticmethod
  def forward(ctx, q, k, v, sink, plan):
    batch, length, heads, dim = q.shape
    groups, count = k.shape[2], plan.indices.shape[-1]
    out = torch.empty_like(q)
    lse = torch.empty(batch, heads, length, device=q.device, dtype=torch.float32)
    kernels.selected_forward[(length, batch * groups)](
        q, k, v, plan.indices, sink, out, lse, length, dim ** -0.5, G=groups, R=heads // groups,
        RP=16, D=dim, KSEL=count, BS=kernels.BLOCK, num_warps=2)
    ctx.save_for_backward(q, k, v, sink, out, lse)
    ctx.plan = plan
    return out

  @staticmethod
  def backward(ctx, grad):
    q, k, v, sink, out, lse = ctx.saved_tensors
    plan = ctx.plan
    batch, length, heads, dim = q.shape
    groups, count = k.shape[2], plan.indices.shape[-1]
    grad = grad.contiguous()
    delta = _delta(grad, out)
    grad_q = torch.empty_like(q)
    kernels.selected_grad_q[(length, batch * groups)](
        q, k, v, plan.indices, grad, lse, delta, grad_q, length, dim ** -0.5, G=groups,
        R=heads // groups, RP=16, D=dim, KSEL=count, BS=kernels.BLOCK, num_warps=2)
    grad_k = torch.zeros(k.shape, device=k.device, dtype=torch.float32)
    grad_v = torch.zeros(v.shape, device=v.device, dtype=torch.float32)
    kernels.selected_grad_kv[(plan.items, batch * groups)](
        q, k, v, grad, lse, delta, plan.rows, plan.item_block, plan.item_start, plan.item_end,
        grad_k, grad_v, length, length * count, plan.items, dim ** -0.5, G=groups,
        R=heads // groups, D=dim, BM=64 // (heads // groups), BS=kernels.BLOCK, num_warps=4)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), _grad_sink(sink, lse, delta), None


class _Window(torch.autograd.Function):

  @staticmethod
  def forward(ctx, q, k, v, sink, window):
    batch, length, heads, dim = q.shape
    groups = k.shape[2]
    out = torch.empty_like(q)
    lse = torch.empty(batch, heads, length, device=q.device, dtype=torch.float32)
    kernels.window_forward[(length // kernels.BLOCK, batch * heads)](
        q, k, v, sink, out, lse, length, dim ** -0.5, window, G=groups, R=heads // groups, D=dim,
        BS=kernels.BLOCK, num_warps=4)
    ctx.save_for_backward(q, k, v, sink, out, lse)
    ctx.window = window
    return out

  @staticmethod
  def backward(ctx, grad):
    q, k, v, sink, out, lse = ctx.saved_tensors
    batch, length, heads, dim = q.shape
    groups = k.shape[2]
    grad = grad.contiguous()
    delta = _delta(grad, out)
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    shape = dict(G=groups, R=heads // groups, D=dim, BS=kernels.BLOCK, num_warps=4)
    kernels.window_grad_q[(length // kernels.BLOCK, batch * heads)](
        q, k, v, grad, lse, delta, grad_q, length, dim ** -0.5, ctx.window, **shape)
    kernels.window_grad_kv[(length // kernels.BLOCK, batch * groups)](
        q, k, v, grad, lse, delta, grad_k, grad_v, length, dim ** -0.5, ctx.window, **shape)
    return grad_q, grad_k, grad_v, _grad_sink(sink, lse, delta), None


def _delta(grad, out):
  return (grad.float() * out.float()).sum(-1).transpose(1, 2).contiguous()


def _grad_sink(sink, lse, delta):
  weight = torch.exp(sink.float()[None, :, None] - lse)
  return -(weight * delta).sum((0, 2)).to(sink.dtype)


def full_attention(q, k, v):
  """Causal attention; returns (output, log-sum-exp [B, H, T] without gradient)."""
  repeat = q.shape[2] // k.shape[2]
  if not q.is_cuda:
    return dense_attention(q, k, v, None, _causal(q.shape[1])[None, None])
  q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(repeat, 2),
                                         v.repeat_interleave(repeat, 2)))
  out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, False)
  return out[0].transpose(1, 2), out[1].detach()


@torch.no_grad()
def select(q, k, lse, count: int) -> torch.Tensor:
  """Indices [B, G, T, count] of the best blocks of every row and group, -1 after the visible."""
  batch, length, heads, dim = q.shape
  groups, blocks = k.shape[2], length // kernels.BLOCK
  score = torch.full((batch, groups, blocks, length), _NEG_INF, device=q.device,
                     dtype=torch.float32)
  if not q.is_cuda:
    score = _dense_block_scores(q, k, lse).transpose(2, 3)
  else:
    _block_scores(q, k, lse, score)
  best, indices = score.transpose(2, 3).contiguous().topk(min(count, blocks), dim=-1)
  indices = torch.where(torch.isinf(best), -1, indices).to(torch.int32)
  return torch.nn.functional.pad(indices, (0, count - indices.shape[-1]), value=-1)


def _block_scores(q, k, lse, score):
  batch, length, heads, dim = q.shape
  groups, blocks = k.shape[2], length // kernels.BLOCK
  rows = 128 // (heads // groups)
  kernels.group_block_scores[(length // rows, batch * groups)](
      q, k, lse, score, length, blocks, dim ** -0.5, G=groups, R=heads // groups, D=dim, BQ=rows,
      BS=kernels.BLOCK, num_warps=4)


def _dense_block_scores(q, k, lse):
  """[B, G, T, blocks] with a T x T tensor."""
  repeat = q.shape[2] // k.shape[2]
  scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(repeat, 2)) * q.shape[-1] ** -0.5
  scores = scores.masked_fill(~_causal(q.shape[1]), _NEG_INF) - lse[..., None]
  return scores.unflatten(-1, (-1, kernels.BLOCK)).amax(-1).unflatten(1, (-1, repeat)).amax(2)


def selected_attention(q, k, v, sink, plan: SelectionPlan):
  return _Selected.apply(q, k, v, sink, plan)


def window_attention(q, k, v, sink, window: int):
  return _Window.apply(q, k, v, sink, window)


def _causal(length):
  position = torch.arange(length)
  return position[None, :] <= position[:, None]


def dense_attention(q, k, v, sink, visible):
  """The same arithmetic with a T x T tensor; visible broadcasts to [B, G, T, S]."""
  batch, length, heads, dim = q.shape
  repeat = heads // k.shape[2]
  scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(repeat, 2)) * dim ** -0.5
  visible = visible.expand(batch, k.shape[2], length, length).repeat_interleave(repeat, 1)
  scores = scores.masked_fill(~visible, _NEG_INF)
  lse = torch.logsumexp(scores, -1)
  if sink is not None:
    lse = torch.logaddexp(lse, sink.to(lse.dtype)[None, :, None])
  out = torch.einsum("bhts,bshd->bthd", (scores - lse[..., None]).exp(),
                     v.repeat_interleave(repeat, 2))
  return out, lse.detach()


def dense_window(q, k, v, sink, window: int):
  position = torch.arange(q.shape[1])
  age = position[:, None] - position[None, :]
  return dense_attention(q, k, v, sink, ((age >= 0) & (age < window))[None, None])[0]


def dense_selected(q, k, v, sink, plan: SelectionPlan):
  batch, groups, length, count = plan.indices.shape
  blocks = length // kernels.BLOCK
  chosen = torch.zeros(batch, groups, length, blocks + 1, dtype=torch.bool)
  chosen.scatter_(-1, torch.where(plan.indices < 0, blocks, plan.indices).long(), True)
  chosen = chosen[..., :blocks].repeat_interleave(kernels.BLOCK, -1)
  return dense_attention(q, k, v, sink, chosen & _causal(length))[0]
