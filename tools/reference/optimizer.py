"""Muon for the weight matrices and Adam for the rest, without host synchronisation.

Master weights are float32; the network's parameters are their bf16 copies. Every number that
changes from step to step is a tensor, so that a step can be part of a captured CUDA graph.
"""

import collections

import torch

_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NS_STEPS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
  """Newton-Schulz iteration towards the nearest semi-orthogonal matrices, batched [n, a, b]."""
  x = matrices.bfloat16() if matrices.is_cuda else matrices
  flip = x.shape[1] > x.shape[2]
  if flip:
    x = x.transpose(1, 2)
  x = x / (x.norm(dim=(1, 2), keepdim=True) * 1.02 + 1e-7)
  a, b, c = _NS_COEFFICIENTS
  for _ in range(_NS_STEPS):
    gram = x @ x.transpose(1, 2)
    x = a * x + (b * gram + c * gram @ gram) @ x
  return (x.transpose(1, 2) if flip else x).float()


class MuonAdam:
  """Updates the bf16 parameters from their gradients."""

  def __init__(self, params: dict, masters: dict, muon_lr=0.012, adam_lr=1e-3, momentum=0.95,
               betas=(0.9, 0.95), weight_decay=0.01, clip=1.0):
    self.params = params
    self._settings = (muon_lr, adam_lr, momentum, betas, weight_decay, clip)
    device = next(iter(params.values())).device
    self.rate = torch.ones((), device=device)  # factor on both learning rates
    self.step_count = torch.zeros((), device=device)
    by_shape = collections.defaultdict(list)
    self._adam_names = []
    for name, value in params.items():
      if value.dim() == 2 and ".mlp." in name or name.endswith(
          ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")):
        by_shape[tuple(value.shape)].append(name)
      else:
        self._adam_names.append(name)
    self.masters = {}
    self._groups = []
    for names in by_shape.values():
      stack = torch.stack([masters[name].float().to(device) for name in names])
      self.masters.update(zip(names, stack))
      self._groups.append((names, stack, torch.zeros_like(stack)))
    for name in self._adam_names:
      self.masters[name] = masters[name].float().to(device).clone()
    self.first = [torch.zeros_like(self.masters[name]) for name in self._adam_names]
    self.second = [torch.zeros_like(self.masters[name]) for name in self._adam_names]
    self.publish()

  @torch.no_grad()
  def publish(self):
    """Copies the master weights into the network's parameters."""
    names = list(self.params)
    torch._foreach_copy_([self.params[n] for n in names], [self.masters[n] for n in names])

  @torch.no_grad()
  def step(self):
    muon_lr, adam_lr, momentum, betas, decay, clip = self._settings
    grads = [p.grad for p in self.params.values()]
    norm = torch.stack([n.float() for n in torch._foreach_norm(grads)]).norm()
    scale = (clip / (norm + 1e-6)).clamp(max=1.0)
    self.step_count += 1
    for names, stack, buffer in self._groups:
      grad = torch.stack([self.params[n].grad for n in names]).float() * scale
      buffer.mul_(momentum).add_(grad, alpha=1 - momentum)
      update = orthogonalise(grad.lerp(buffer, momentum))
      rows, cols = stack.shape[1:]
      stack.mul_(1 - self.rate * (muon_lr * decay))
      stack.sub_(update * (self.rate * (muon_lr * max(1.0, rows / cols) ** 0.5)))
    grads = [self.params[n].grad.float() * scale for n in self._adam_names]
    targets = [self.masters[n] for n in self._adam_names]
    torch._foreach_lerp_(self.first, grads, 1 - betas[0])
    torch._foreach_mul_(self.second, betas[1])
    torch._foreach_addcmul_(self.second, grads, grads, 1 - betas[1])
    fix1 = 1 - betas[0] ** self.step_count
    fix2 = 1 - betas[1] ** self.step_count
    for target, first, second in zip(targets, self.first, self.second):
      target.sub_(first / fix1 / ((second / fix2).sqrt() + 1e-8) * (self.rate * adam_lr))
    self.publish()
    return norm

  def state(self) -> dict:
    """The float32 master weights; a later run estimates the moments anew while it warms up."""
    return {n: v.detach().cpu().clone() for n, v in self.masters.items()}

  @torch.no_grad()
  def restore(self, state: dict):
    for name, value in self.masters.items():
      value.copy_(state[name])
    self.publish()
