"""Token sequences that train the demo model: text with many questions, and marks for the loss."""

import dataclasses
import math
import random

import numpy as np
import tokenizers

import tasks

# Weight class of a token as a prediction target.
IGNORED, TEXT, FRAME, VALUE = 0, 1, 2, 3

KINDS = ("number", "numbers", "variable")


@dataclasses.dataclass(frozen=True)
class Mixture:
  """What the sequences of one training phase are made of."""

  lengths: tuple  # tokens a sequence
  length_weights: tuple
  two_words: float  # share of sequences with keys of two words
  share: float  # chance that a new key shares a word with an earlier one
  kind_weights: tuple  # of KINDS, for new facts
  sparse_text: float  # share of sequences with few statements
  restate: float = 0.1  # chance that a statement repeats an earlier one, its number predicted
  lowest_rate: float = 0.08  # smallest chance of a statement in the other sequences


class SequenceMaker:
  """Builds sequences from atoms, whose tokens it caches. One instance a process."""

  def __init__(self, tokenizer_path: str, seed: int, filler_count: int = 20000):
    self._tokenizer = tokenizers.Tokenizer.from_file(tokenizer_path)
    self._rng = random.Random(seed)
    self._cache = {}
    self._filler = tasks.filler_sentences(filler_count)

  def tokens(self, atom: str) -> list:
    found = self._cache.get(atom)
    if found is None:
      found = self._tokenizer.encode(atom).ids
      if len(self._cache) < 400000:
        self._cache[atom] = found
    return found

  def make(self, length: int, mix: Mixture):
    """Returns (ids uint16, weight class uint8, answer number uint16, kind of each answer)."""
    return _Sequence(self, self._rng, length, mix, self._filler).build()

  def batch(self, batch: int, length: int, mix: Mixture):
    """Stacked sequences; answer kinds are padded with 255."""
    rows = [self.make(length, mix) for _ in range(batch)]
    ids, classes, answers = (np.stack([row[i] for row in rows]) for i in range(3))
    kinds = np.full((batch, max_answers(length)), 255, dtype=np.uint8)
    for index, row in enumerate(rows):
      kinds[index, 1:1 + len(row[3])] = row[3]
    return ids, classes, answers, kinds


def max_answers(length: int) -> int:
  """More answers than a sequence of this length can hold; number 0 means no answer."""
  return length // 8 + 2


class _Sequence:
  """State while one sequence is written."""

  def __init__(self, maker, rng, length, mix, filler):
    self._maker, self._rng, self._length, self._mix = maker, rng, length, mix
    self._filler = filler
    two_words = rng.random() < mix.two_words
    self._keys = tasks.KeyMaker(rng, two_words, mix.share)
    self._names = tasks.KeyMaker(rng, False, 0.0)
    self._chat = rng.random() < 0.4
    self._kind_weights = mix.kind_weights if two_words else (1, 0, 0)
    self._pending, self._ready = [], []
    self._ids, self._classes, self._answers, self._kinds = [], [], [], []
    self._line_start = True
    self._fact_limit = 10 ** 9
    self._least = rng.choice((1, 2, 4, 6, 8))  # facts to choose from before the first question
    self._statement_rate = math.exp(rng.uniform(math.log(mix.lowest_rate), math.log(0.65)))
    if rng.random() < mix.sparse_text:
      self._fact_limit = rng.choice((1, 2, 3, 4, 6, 8, 12, 16))
      self._least = 1
      self._statement_rate = max(0.02, self._fact_limit * 20 / length)

  def build(self):
    rng = self._rng
    self._put(tasks.opening(self._chat), TEXT)
    questions_last = rng.random() < 0.5
    context_end = self._length * (rng.uniform(0.4, 0.9) if questions_last else 1.0)
    question_rate = 0.0 if questions_last else rng.uniform(0.1, 0.5)
    while len(self._ids) < self._length:
      if questions_last and len(self._ids) > context_end:
        if not self._ready:
          context_end = self._length
          question_rate = 0.3
          continue
        self._ask()
      elif len(self._ready) >= self._least and rng.random() < question_rate:
        self._ask()
      elif rng.random() < self._statement_rate and self._state():
        continue
      else:
        self._sentence([rng.choice(self._filler)], TEXT)
    cut = slice(0, self._length)
    answers = np.array(self._answers[cut], dtype=np.uint16)
    if answers[-1] and len(self._ids) > self._length and (
        self._answers[self._length] == answers[-1]):
      answers[answers == answers[-1]] = 0  # an answer cut short does not count
    return (np.array(self._ids[cut], dtype=np.uint16),
            np.array(self._classes[cut], dtype=np.uint8), answers,
            np.array(self._kinds, dtype=np.uint8))

  def _put(self, atoms, kind, answer=0):
    for atom in atoms:
      tokens = self._maker.tokens(atom)
      self._ids += tokens
      self._classes += [kind] * len(tokens)
      self._answers += [answer] * len(tokens)

  def _sentence(self, atoms, kind):
    if self._line_start:
      atoms = [tasks.unspaced(atoms[0]), *atoms[1:]]
    else:
      self._put(["."], TEXT)
    self._line_start = False
    self._put(atoms[:1], TEXT)
    self._put(atoms[1:], kind)

  def _state(self) -> bool:
    """Writes one statement, of a fact under way or of a new one."""
    rng = self._rng
    if len(self._ready) >= self._least and rng.random() < self._mix.restate:
      return self._restate(rng.choice(self._ready))
    fresh = not self._pending or rng.random() < 0.3
    if fresh and self._fact_limit > 0:
      fact = self._new_fact()
      if fact is None:
        return False
      self._fact_limit -= 1
      self._pending.append(fact)
    if not self._pending:
      return False
    index = rng.randrange(len(self._pending))
    fact = self._pending[index]
    self._sentence(fact.statements.pop(0), IGNORED)
    if not fact.statements:
      self._pending.pop(index)
      self._ready.append(fact)
    return True

  def _restate(self, fact) -> bool:
    """Repeats the statement of a key with one number, which counts as an answer."""
    if fact.kind != "number":
      return False
    *head, space, number = tasks.number_statement(self._rng, fact.name, fact.values[0])
    self._sentence(head, IGNORED)
    self._kinds.append(KINDS.index(fact.kind))
    self._put([space, number], VALUE, len(self._kinds))
    return True

  def _new_fact(self):
    rng = self._rng
    kind = rng.choices(KINDS, self._kind_weights)[0]
    if kind == "variable":
      hops = rng.choice((1, 2, 3, 3, 4))
      if self._names.room < hops:
        return None
      return tasks.variable_fact(rng, [self._names.draw() for _ in range(hops)])
    if self._keys.room < 1:
      return None
    return tasks.number_fact(rng, self._keys.draw(),
                             1 if kind == "number" else rng.choice((2, 3, 4)))

  def _ask(self):
    index = self._rng.randrange(len(self._ready))
    self._ready[index], self._ready[-1] = self._ready[-1], self._ready[index]
    fact = self._ready[-1]
    if self._rng.random() < 0.4:
      self._ready.pop()
    self._least = 1
    prompt, answer, after = tasks.exchange(fact, self._chat, not self._line_start)
    self._put(prompt, IGNORED)
    number = len(self._kinds) + 1
    for atom, is_value in answer:
      self._put([atom], VALUE if is_value else FRAME, number)
    self._kinds.append(KINDS.index(fact.kind))
    self._put(after, TEXT)
    self._line_start = True
