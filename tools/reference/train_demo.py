"""Trains the demo model on retrieval tasks, in pieces of a given number of seconds.

  python tools/reference/train_demo.py --tokenizer models/demo/tokenizer.json --out OUT
      [--resume PREVIOUS_OUT] --seconds 500 [--decay-from 0.6]

Phases follow each other when the exact-answer rate passes a gate, so a plateau is waited out at
the length where it is cheap. OUT receives the state for the next piece, the bf16 checkpoint and a
log; --resume goes on from an earlier OUT. --decay-from lowers the learning rate to a twentieth
over the rest of the piece, from that fraction of it on.
"""

import argparse
import json
import multiprocessing
import pathlib
import queue
import time

import torch
import torch.nn.functional as nnf

import config as config_lib
import demo_config
import demo_data
import demo_net
import optimizer
import random_model

MIX = demo_data.Mixture

# (mixture, tokens a step, gate on the exact rate of every kind listed, most seconds)
PHASES = (
    (MIX((256,), (1,), 0.0, 0.0, (1, 0, 0), 0.0, 0.5, 0.6), 32768, {"number": 0.90}, 60),
    (MIX((256,), (1,), 1.0, 0.6, (1, 0, 0), 0.0, 0.4, 0.6), 32768, {"number": 0.94}, 110),
    (MIX((512, 1024), (1, 1), 1.0, 0.4, (7, 1, 2), 0.1, 0.3, 0.4), 32768, {"number": 0.95}, 60),
    (MIX((1024, 2048, 4096), (2, 3, 2), 0.95, 0.3, (6, 2, 3), 0.3, 0.2), 65536,
     {"number": 0.96}, 80),
    (MIX((2048, 8192), (1, 2), 0.95, 0.3, (6, 2, 3), 0.4), 65536, {"number": 0.96}, 80),
    (MIX((2048, 8192, 16384, 32768), (3, 3, 4, 1), 0.95, 0.3, (6, 5, 2), 0.5), 65536, {}, 10 ** 9),
)

CLASS_WEIGHTS = (0.0, 0.02, 0.25, 1.0)
MAX_STATE_BYTES = 15 << 20
READ_EVERY = 25
WARM_STEPS = 3  # eager steps of a shape before its graph is captured


def produce(tokenizer_path, seed, phase, out):
  """A worker process: batches of the phase in force, for ever."""
  maker = demo_data.SequenceMaker(tokenizer_path, seed)
  while True:
    mix, step_tokens, *_ = PHASES[phase.value]
    rng = maker._rng
    length = rng.choices(mix.lengths, mix.length_weights)[0]
    arrays = maker.batch(step_tokens // length, length, mix)
    out.put((phase.value, *arrays))


class Trainer:
  """Network, optimiser and one captured graph per batch shape."""

  def __init__(self, cfg, masters, device, use_graphs=True):
    self.device = device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    self.params = {n: v.to(device, dtype, copy=True).requires_grad_() for n, v in masters.items()}
    self.net = demo_net.DemoNet(cfg, self.params, dense=device != "cuda")
    self.opt = optimizer.MuonAdam(self.params, masters)
    self._weights = torch.tensor(CLASS_WEIGHTS, device=device)
    self._use_graphs = use_graphs and device == "cuda"
    self._graphs, self._warm, self._pool = {}, {}, None
    self.totals = {}  # length -> [kinds, 2] exact answers and answers, and [3] loss, steps, norm

  def step(self, ids, classes, answers, kinds):
    """One optimisation step on host arrays."""
    host = [torch.from_numpy(ids.astype("int64")), torch.from_numpy(classes.astype("int64")),
            torch.from_numpy(answers.astype("int64")), torch.from_numpy(kinds.astype("int64"))]
    shape = tuple(ids.shape)
    if shape[1] not in self.totals:
      self.totals[shape[1]] = (torch.zeros(len(demo_data.KINDS) + 1, 2, device=self.device),
                               torch.zeros(3, device=self.device))
    if shape in self._graphs:
      graph, static = self._graphs[shape]
      for target, source in zip(static, host):
        target.copy_(source, non_blocking=True)
      graph.replay()
      return
    static = [x.to(self.device) for x in host]
    self._warm[shape] = self._warm.get(shape, 0) + 1
    if not self._use_graphs or self._warm[shape] <= WARM_STEPS:
      self._eager(*static)
      return
    self._capture(shape, static)

  def _capture(self, shape, static):
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    self.opt.rate.requires_grad_(False)
    for p in self.params.values():
      p.grad = None
    with torch.cuda.graph(graph, pool=self._pool):
      self._eager(*static)
    self._pool = graph.pool()
    self._graphs[shape] = (graph, static)
    graph.replay()

  def _eager(self, ids, classes, answers, kinds):
    for p in self.params.values():
      p.grad = None
    batch, length = ids.shape
    hidden = self.net.hidden(ids)[:, :-1].reshape(batch * (length - 1), -1)
    logits = self.net.logits(hidden)
    target = ids[:, 1:].reshape(-1)
    weight = self._weights[classes[:, 1:].reshape(-1)]
    loss = (nnf.cross_entropy(logits.float(), target, reduction="none") * weight).sum()
    loss = loss / weight.sum()
    loss.backward()
    norm = self.opt.step()
    with torch.no_grad():
      right = logits.argmax(-1) == target
      exact = exact_answers(right.view(batch, -1), answers[:, 1:], kinds)
      counts, scalars = self.totals[length]
      counts += exact
      scalars += torch.stack([loss.detach().float(), torch.ones_like(norm), norm])

  def read(self):
    """Totals since the last call: length -> (loss, steps, norm, {kind: (exact, answers)})."""
    out = {}
    for length, (counts, scalars) in self.totals.items():
      loss, steps, norm = scalars.tolist()
      if steps:
        kinds = {k: tuple(c) for k, c in zip(demo_data.KINDS, counts.tolist())}
        out[length] = (loss / steps, int(steps), norm / steps, kinds)
      counts.zero_()
      scalars.zero_()
    return out


def exact_answers(right, answers, kinds):
  """[kinds + 1, 2]: answers with every token right, and answers; the last row is padding."""
  batch, most = kinds.shape
  wrong = torch.zeros(batch, most, device=right.device)
  wrong.scatter_add_(1, answers, (~right).float())
  seen = torch.zeros(batch, most, device=right.device)
  seen.scatter_add_(1, answers, torch.ones_like(right, dtype=torch.float32))
  valid = (seen > 0) & (kinds < 255)
  row = torch.where(valid, kinds, len(demo_data.KINDS))
  out = torch.zeros(len(demo_data.KINDS) + 1, 2, device=right.device)
  out[:, 0].scatter_add_(0, row.reshape(-1), ((wrong == 0) & valid).float().reshape(-1))
  out[:, 1].scatter_add_(0, row.reshape(-1), valid.float().reshape(-1))
  return out


def initial_masters(cfg) -> dict:
  """Matrices N(0, 1/fan_in), projections into the residual stream smaller, gates and sinks zero."""
  masters = random_model.random_weights(cfg, seed=1, gain=1.0)
  for name, value in masters.items():
    if "norm" in name:
      value.fill_(1.0)
    elif "g_proj" in name or "sink" in name:
      value.zero_()
    elif name.endswith(("o_proj.weight", "down_proj.weight")):
      value.mul_(0.3)
    elif name == "model.embed_tokens.weight":
      value.mul_(0.4)
    elif name == "lm_head.weight":
      value.mul_(0.5)
  return masters


def save(out, trainer, raw_config, meta):
  """State in files under 16 MiB, and the checkpoint in the format that is served."""
  out.mkdir(parents=True, exist_ok=True)
  shard, size, number = {}, 0, 0
  for name, value in trainer.opt.state().items():
    amount = value.numel() * value.element_size()
    if size + amount > MAX_STATE_BYTES:
      torch.save(shard, out / f"state_{number}.pt")
      shard, size, number = {}, 0, number + 1
    shard[name] = value
    size += amount
  torch.save(shard, out / f"state_{number}.pt")
  (out / "meta.json").write_text(json.dumps(meta))
  random_model.save_checkpoint(out, raw_config, {
      n: v.detach().bfloat16().cpu() for n, v in trainer.opt.masters.items()})


def restore(directory, trainer) -> dict:
  state = {}
  for path in sorted(directory.glob("state_*.pt")):
    state.update(torch.load(path, weights_only=True))
  trainer.opt.restore(state)
  return json.loads((directory / "meta.json").read_text())


def passes(gate, seen, seconds) -> bool:
  """True when every length of a report has enough answers and reaches the gate.

  The gate falls by a twentieth of a point a second, so that a phase cannot hold the run for ever.
  """
  for kind, top in gate.items():
    wanted = top - 0.0005 * seconds
    for kinds in seen:
      exact, total = kinds[kind]
      if total < 50 or exact / total < wanted:
        return False
  return bool(gate) and bool(seen)


def report(step, elapsed, phase, tokens, totals):
  for length, (loss, steps, norm, kinds) in sorted(totals.items()):
    rates = " ".join(f"{k[:4]}{'s' if k == 'numbers' else ''} {100 * e / max(t, 1):.1f}"
                     for k, (e, t) in kinds.items() if t)
    print(f"{elapsed:6.0f}s step {step:6d} ph {phase} T {length:6d} x{steps:3d} loss {loss:.4f} "
          f"norm {norm:.2f} {rates} | {tokens / 1e6:.1f}M tok", flush=True)


def run(args):
  start = time.time()
  tokenizer_path = str(args.tokenizer)
  vocab = json.loads(pathlib.Path(tokenizer_path).read_text())
  vocab_size = len(vocab["model"]["vocab"])
  raw_config = demo_config.demo_config(vocab_size)
  cfg = config_lib.parse_config(raw_config)
  meta = {"phase": args.phase, "tokens": 0, "steps": 0}
  if args.resume:
    meta = json.loads((args.resume / "meta.json").read_text())
  context = multiprocessing.get_context("fork")
  phase = context.Value("i", meta["phase"])
  batches = context.Queue(maxsize=24)
  workers = [context.Process(target=produce, daemon=True,
                             args=(tokenizer_path, 1000 * meta["steps"] + i + 17, phase, batches))
             for i in range(args.workers)]
  for worker in workers:
    worker.start()
  device = "cuda" if torch.cuda.is_available() else "cpu"
  trainer = Trainer(cfg, initial_masters(cfg), device, use_graphs=not args.no_graphs)
  if args.resume:
    restore(args.resume, trainer)
  train_loop(args, start, trainer, meta, phase, batches)
  for worker in workers:
    worker.terminate()
  save(args.out, trainer, raw_config, meta)
  print(f"saved after {time.time() - start:.0f}s", flush=True)


def train_loop(args, start, trainer, meta, phase, batches):
  next_report, first_step, phase_since = time.time() + args.report_seconds, meta["steps"], start
  gathered = {}
  while time.time() - start < args.seconds:
    elapsed = time.time() - start
    fraction = elapsed / args.seconds
    rate = min(1.0, (meta["steps"] - first_step + 1) / args.warmup)
    if fraction > args.decay_from:
      rate *= 1.0 - 0.95 * (fraction - args.decay_from) / (1.0 - args.decay_from)
    trainer.opt.rate.fill_(rate * args.rate)
    try:
      made_in, *arrays = batches.get(timeout=60)
    except queue.Empty:
      raise RuntimeError("no batch within a minute") from None
    if made_in != phase.value:
      continue
    trainer.step(*arrays)
    meta["steps"] += 1
    meta["tokens"] += arrays[0].size
    if (meta["steps"] - first_step) % READ_EVERY:
      continue
    totals = trainer.read()
    for length, entry in totals.items():
      gathered[length] = entry
    if time.time() > next_report:
      report(meta["steps"], time.time() - start, phase.value, meta["tokens"], totals)
      next_report = time.time() + args.report_seconds
    wanted = PHASES[phase.value][0].lengths
    spent = time.time() - phase_since
    if spent > PHASES[phase.value][3] or all(n in gathered for n in wanted) and passes(
        PHASES[phase.value][2], [gathered[n][3] for n in wanted], spent):
      report(meta["steps"], time.time() - start, phase.value, meta["tokens"], gathered)
      phase.value += 1
      meta["phase"] = phase.value
      gathered = {}
      print(f"== phase {phase.value} after {time.time() - phase_since:.0f}s", flush=True)
      phase_since = time.time()
  if trainer.device == "cuda":
    torch.cuda.synchronize()


def main():
  parser = argparse.ArgumentParser(description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--resume", type=pathlib.Path)
  parser.add_argument("--seconds", type=float, default=500)
  parser.add_argument("--workers", type=int, default=13)
  parser.add_argument("--warmup", type=int, default=200)
  parser.add_argument("--rate", type=float, default=1.0)
  parser.add_argument("--decay-from", type=float, default=2.0)
  parser.add_argument("--phase", type=int, default=0)
  parser.add_argument("--report-seconds", type=float, default=15)
  parser.add_argument("--no-graphs", action="store_true")
  run(parser.parse_args())


if __name__ == "__main__":
  main()
