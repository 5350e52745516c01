"""Triton kernels that train HySparse v1 attention without a T x T tensor.

Layouts: q, o [B, T, H, D]; k, v [B, T, G, D]; lse and delta [B, H, T] float32; indices
[B, G, T, K] int32 with valid entries before the -1 padding. T is a multiple of 64. A sink enters
the log-sum-exp, so the usual backward formulas hold with that log-sum-exp.
"""

import triton
import triton.language as tl

BLOCK = 64  # keys of a selection block and of every key tile
NEG_INF = float("-inf")


@triton.jit
def selected_forward(Q, K, V, IDX, SINK, O, LSE, T, scale, G: tl.constexpr, R: tl.constexpr,
                     RP: tl.constexpr, D: tl.constexpr, KSEL: tl.constexpr, BS: tl.constexpr):
  """One query row and one KV group a program: attention over the row's selected blocks."""
  t = tl.program_id(0)
  bg = tl.program_id(1)
  b = bg // G
  g = bg % G
  r = tl.arange(0, RP)
  d = tl.arange(0, D)
  head = g * R + r
  live = r < R
  q_off = ((b * T + t) * (G * R) + head).to(tl.int64)[:, None] * D + d[None, :]
  q = tl.load(Q + q_off, mask=live[:, None], other=0.0)
  m = tl.load(SINK + head, mask=live, other=0.0).to(tl.float32)
  l = tl.full([RP], 1.0, tl.float32)
  acc = tl.zeros([RP, D], tl.float32)
  for j in range(KSEL):
    block = tl.load(IDX + (bg * T + t) * KSEL + j)
    pos = tl.maximum(block, 0) * BS + tl.arange(0, BS)
    kv_off = ((b * T + pos) * G + g).to(tl.int64)[:, None] * D + d[None, :]
    k = tl.load(K + kv_off)
    v = tl.load(V + kv_off)
    s = tl.dot(q, tl.trans(k)) * scale
    s = tl.where(((pos <= t) & (block >= 0))[None, :], s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp(s - m_new[:, None])
    fade = tl.exp(m - m_new)
    l = l * fade + tl.sum(p, 1)
    acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v)
    m = m_new
  tl.store(O + q_off, (acc / l[:, None]).to(O.dtype.element_ty), mask=live[:, None])
  tl.store(LSE + (b * G * R + head) * T + t, m + tl.log(l), mask=live)


@triton.jit
def selected_grad_q(Q, K, V, IDX, DO, LSE, DELTA, DQ, T, scale, G: tl.constexpr, R: tl.constexpr,
                    RP: tl.constexpr, D: tl.constexpr, KSEL: tl.constexpr, BS: tl.constexpr):
  t = tl.program_id(0)
  bg = tl.program_id(1)
  b = bg // G
  g = bg % G
  r = tl.arange(0, RP)
  d = tl.arange(0, D)
  head = g * R + r
  live = r < R
  q_off = ((b * T + t) * (G * R) + head).to(tl.int64)[:, None] * D + d[None, :]
  q = tl.load(Q + q_off, mask=live[:, None], other=0.0)
  do = tl.load(DO + q_off, mask=live[:, None], other=0.0)
  lse = tl.load(LSE + (b * G * R + head) * T + t, mask=live, other=0.0)
  delta = tl.load(DELTA + (b * G * R + head) * T + t, mask=live, other=0.0)
  dq = tl.zeros([RP, D], tl.float32)
  for j in range(KSEL):
    block = tl.load(IDX + (bg * T + t) * KSEL + j)
    pos = tl.maximum(block, 0) * BS + tl.arange(0, BS)
    kv_off = ((b * T + pos) * G + g).to(tl.int64)[:, None] * D + d[None, :]
    k = tl.load(K + kv_off)
    v = tl.load(V + kv_off)
    s = tl.dot(q, tl.trans(k)) * scale
    keep = ((pos <= t) & (block >= 0))[None, :]
    p = tl.where(keep, tl.exp(s - lse[:, None]), 0.0)
    dp = tl.dot(do, tl.trans(v))
    ds = p * (dp - delta[:, None]) * scale
    dq += tl.dot(ds.to(k.dtype), k)
  tl.store(DQ + q_off, dq.to(DQ.dtype.element_ty), mask=live[:, None])


@triton.jit
def selected_grad_kv(Q, K, V, DO, LSE, DELTA, ROWS, ITEM_BLOCK, ITEM_START, ITEM_END, DK, DV, T,
                     pairs, items, scale, G: tl.constexpr, R: tl.constexpr, D: tl.constexpr,
                     BM: tl.constexpr, BS: tl.constexpr):
  """One work item a program: a key block and a piece of the list of rows that selected it."""
  item = tl.program_id(0)
  bg = tl.program_id(1)
  b = bg // G
  g = bg % G
  block = tl.load(ITEM_BLOCK + bg * items + item)
  if block >= 0:
    start = tl.load(ITEM_START + bg * items + item)
    end = tl.load(ITEM_END + bg * items + item)
    d = tl.arange(0, D)
    lane = tl.arange(0, BM * R)
    head = g * R + lane % R
    pos = block * BS + tl.arange(0, BS)
    kv_off = ((b * T + pos) * G + g).to(tl.int64)[:, None] * D + d[None, :]
    k = tl.load(K + kv_off)
    v = tl.load(V + kv_off)
    dk = tl.zeros([BS, D], tl.float32)
    dv = tl.zeros([BS, D], tl.float32)
    for i in range(start, end, BM):
      pair = i + lane // R
      live = pair < end
      t = tl.load(ROWS + bg * pairs + pair, mask=live, other=0)
      q_off = ((b * T + t) * (G * R) + head).to(tl.int64)[:, None] * D + d[None, :]
      q = tl.load(Q + q_off, mask=live[:, None], other=0.0)
      do = tl.load(DO + q_off, mask=live[:, None], other=0.0)
      lse = tl.load(LSE + (b * G * R + head) * T + t, mask=live, other=0.0)
      delta = tl.load(DELTA + (b * G * R + head) * T + t, mask=live, other=0.0)
      s = tl.dot(q, tl.trans(k)) * scale
      keep = (pos[None, :] <= t[:, None]) & live[:, None]
      p = tl.where(keep, tl.exp(s - lse[:, None]), 0.0)
      dv += tl.dot(tl.trans(p.to(do.dtype)), do)
      dp = tl.dot(do, tl.trans(v))
      ds = p * (dp - delta[:, None]) * scale
      dk += tl.dot(tl.trans(ds.to(q.dtype)), q)
    tl.atomic_add(DK + kv_off, dk)
    tl.atomic_add(DV + kv_off, dv)


@triton.jit
def window_forward(Q, K, V, SINK, O, LSE, T, scale, W, G: tl.constexpr, R: tl.constexpr,
                   D: tl.constexpr, BS: tl.constexpr):
  """One tile of query rows and one head a program, over the keys of its window."""
  tile = tl.program_id(0)
  bh = tl.program_id(1)
  b = bh // (G * R)
  head = bh % (G * R)
  g = head // R
  d = tl.arange(0, D)
  t = tile * BS + tl.arange(0, BS)
  q_off = ((b * T + t) * (G * R) + head).to(tl.int64)[:, None] * D + d[None, :]
  q = tl.load(Q + q_off)
  m = tl.zeros([BS], tl.float32) + tl.load(SINK + head).to(tl.float32)
  l = tl.full([BS], 1.0, tl.float32)
  acc = tl.zeros([BS, D], tl.float32)
  first = tl.maximum(tile * BS - W + 1, 0) // BS
  for j in range(first, tile + 1):
    pos = j * BS + tl.arange(0, BS)
    kv_off = ((b * T + pos) * G + g).to(tl.int64)[:, None] * D + d[None, :]
    k = tl.load(K + kv_off)
    v = tl.load(V + kv_off)
    s = tl.dot(q, tl.trans(k)) * scale
    age = t[:, None] - pos[None, :]
    s = tl.where((age >= 0) & (age < W), s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp(s - m_new[:, None])
    fade = tl.exp(m - m_new)
    l = l * fade + tl.sum(p, 1)
    acc = acc * fade[:, None] + tl.dot(p.to(v.dtype), v)
    m = m_new
  tl.store(O + q_off, (acc / l[:, None]).to(O.dtype.element_ty))
  tl.store(LSE + bh * T + t, m + tl.log(l))


@triton.jit
def window_grad_q(Q, K, V, DO, LSE, DELTA, DQ, T, scale, W, G: tl.constexpr, R: tl.constexpr,
                  D: tl.constexpr, BS: tl.constexpr):
  tile = tl.program_id(0)
  bh = tl.program_id(1)
  b = bh // (G * R)
  head = bh % (G * R)
  g = head // R
  d = tl.arange(0, D)
  t = tile * BS + tl.arange(0, BS)
  q_off = ((b * T + t) * (G * R) + head).to(tl.int64)[:, None] * D + d[None, :]
  q = tl.load(Q + q_off)
  do = tl.load(DO + q_off)
  lse = tl.load(LSE + bh * T + t)
  delta = tl.load(DELTA + bh * T + t)
  dq = tl.zeros([BS, D], tl.float32)
  first = tl.maximum(tile * BS - W + 1, 0) // BS
  for j in range(first, tile + 1):
    pos = j * BS + tl.arange(0, BS)
    kv_off = ((b * T + pos) * G + g).to(tl.int64)[:, None] * D + d[None, :]
    k = tl.load(K + kv_off)
    v = tl.load(V + kv_off)
    s = tl.dot(q, tl.trans(k)) * scale
    age = t[:, None] - pos[None, :]
    p = tl.where((age >= 0) & (age < W), tl.exp(s - lse[:, None]), 0.0)
    dp = tl.dot(do, tl.trans(v))
    ds = p * (dp - delta[:, None]) * scale
    dq += tl.dot(ds.to(k.dtype), k)
  tl.store(DQ + q_off, dq.to(DQ.dtype.element_ty))


@triton.jit
def window_grad_kv(Q, K, V, DO, LSE, DELTA, DK, DV, T, scale, W, G: tl.constexpr,
                   R: tl.constexpr, D: tl.constexpr, BS: tl.constexpr):
  """One key tile and one KV group a program, over the query rows whose window reaches it."""
  tile = tl.program_id(0)
  bg = tl.program_id(1)
  b = bg // G
  g = bg % G
  d = tl.arange(0, D)
  pos = tile * BS + tl.arange(0, BS)
  kv_off = ((b * T + pos) * G + g).to(tl.int64)[:, None] * D + d[None, :]
  k = tl.load(K + kv_off)
  v = tl.load(V + kv_off)
  dk = tl.zeros([BS, D], tl.float32)
  dv = tl.zeros([BS, D], tl.float32)
  last = tl.minimum((tile * BS + BS - 1 + W - 1) // BS, T // BS - 1)
  for r in range(R):
    head = g * R + r
    for i in range(tile, last + 1):
      t = i * BS + tl.arange(0, BS)
      q_off = ((b * T + t) * (G * R) + head).to(tl.int64)[:, None] * D + d[None, :]
      q = tl.load(Q + q_off)
      do = tl.load(DO + q_off)
      lse = tl.load(LSE + (b * G * R + head) * T + t)
      delta = tl.load(DELTA + (b * G * R + head) * T + t)
      s = tl.dot(q, tl.trans(k)) * scale
      age = t[:, None] - pos[None, :]
      p = tl.where((age >= 0) & (age < W), tl.exp(s - lse[:, None]), 0.0)
      dv += tl.dot(tl.trans(p.to(do.dtype)), do)
      dp = tl.dot(do, tl.trans(v))
      ds = p * (dp - delta[:, None]) * scale
      dk += tl.dot(tl.trans(ds.to(q.dtype)), q)
  tl.store(DK + kv_off, dk.to(DK.dtype.element_ty))
  tl.store(DV + kv_off, dv.to(DV.dtype.element_ty))


@triton.jit
def group_block_scores(Q, K, LSE, SCORE, T, blocks, scale, G: tl.constexpr, R: tl.constexpr,
                       D: tl.constexpr, BQ: tl.constexpr, BS: tl.constexpr):
  """SCORE [B, G, blocks, T]: max over heads and keys of (logit - lse) for visible blocks."""
  tile = tl.program_id(0)
  bg = tl.program_id(1)
  b = bg // G
  g = bg % G
  d = tl.arange(0, D)
  lane = tl.arange(0, BQ * R)
  t = tile * BQ + lane // R
  head = g * R + lane % R
  q = tl.load(Q + ((b * T + t) * (G * R) + head).to(tl.int64)[:, None] * D + d[None, :])
  lse = tl.load(LSE + (b * G * R + head) * T + t)
  row = tile * BQ + tl.arange(0, BQ)
  for j in range(0, (tile * BQ + BQ - 1) // BS + 1):
    pos = j * BS + tl.arange(0, BS)
    k = tl.load(K + ((b * T + pos) * G + g).to(tl.int64)[:, None] * D + d[None, :])
    s = tl.dot(q, tl.trans(k)) * scale
    s = tl.where(pos[None, :] <= t[:, None], s, float("-inf"))
    best = tl.max(s, 1) - lse
    best = tl.max(tl.reshape(best, (BQ, R)), 1)
    tl.store(SCORE + (bg * blocks + j).to(tl.int64) * T + row, best)
