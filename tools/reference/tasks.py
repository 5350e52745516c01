"""Text of the demo model: filler, statements, questions and answers of the retrieval tasks.

Everything is produced as atoms: short strings that begin and end at boundaries of the tokenizer's
splitting pattern, so that the tokens of the joined text are the joined tokens of the atoms.

Statements and their questions:
  single, multi_key  The special number is amber falcon 482131.
                     What is the special number for amber falcon?
  multi_value        the same sentence several times with different numbers for one key
                     What are all the special numbers for amber falcon?
  tracking           The variable amber equals falcon.  The variable falcon equals 482131.
                     What is the value of variable amber?
An answer repeats the statement, so it names what it answers before it gives the number.
"""

import dataclasses
import random

import words

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

STATEMENT_OPENINGS = (" The", " Remember that the", " Note that the", " It is known that the",
                      " By the way, the")


@dataclasses.dataclass
class Fact:
  """Something a question can be asked about, complete once all its statements are written."""

  kind: str  # "number", "numbers" or "variable"
  name: list  # atoms of the key, such as [" amber", " falcon"]
  values: list  # numbers as strings; for a variable the chain: names, then the number
  statements: list  # atom lists still to be written, in order


def filler_sentences(count: int, seed: int = 1) -> list:
  """Distinct filler sentences with a leading space and without the full stop."""
  rng = random.Random(seed)
  pool = dict.fromkeys(_filler_sentence(rng) for _ in range(count))
  return list(pool)


def _filler_sentence(rng: random.Random) -> str:
  return rng.choice(words.FILLER_TEMPLATES).format(
      adj=rng.choice(words.ADJECTIVES), adj2=rng.choice(words.ADJECTIVES),
      noun=rng.choice(words.NOUNS), noun2=rng.choice(words.NOUNS),
      person=rng.choice(words.PEOPLE), person2=rng.choice(words.PEOPLE),
      place=rng.choice(words.PLACES), verb=rng.choice(words.VERBS), verb2=rng.choice(words.VERBS),
      intransitive=rng.choice(words.INTRANSITIVE), time=rng.choice(words.TIMES),
      count=rng.randint(2, 99))


def random_number(rng: random.Random) -> str:
  """Six digits, which the tokenizer splits into two groups of three."""
  return f"{rng.randint(0, 999):03d}{rng.randint(0, 999):03d}"


def number_atoms(number: str) -> list:
  return [" ", number]


class KeyMaker:
  """Draws distinct keys of one or two words; some share a word with an earlier key."""

  def __init__(self, rng: random.Random, two_words: bool, share: float):
    self._rng = rng
    self._two_words = two_words
    self._share = share
    self._seen = []
    self._set = set()

  def draw(self, like=None) -> list:
    """A key as atoms, never the same twice. like: an earlier key to share a word with."""
    rng = self._rng
    for _ in range(1000):
      noun = " " + rng.choice(words.NOUNS)
      key = (noun,)
      if self._two_words:
        key = (" " + rng.choice(words.ADJECTIVES), noun)
        model = like or (rng.choice(self._seen) if self._seen and rng.random() < self._share
                         else None)
        if model:
          key = (model[0], key[1]) if rng.random() < 0.5 else (key[0], model[1])
      if key not in self._set:
        self._set.add(key)
        self._seen.append(key)
        return list(key)
    raise RuntimeError("no unused key left")

  @property
  def room(self) -> int:
    """How many more keys may be drawn without running dry."""
    limit = 8000 if self._two_words else 150
    return limit - len(self._set)


def number_statement(rng: random.Random, key: list, value: str) -> list:
  return [rng.choice(STATEMENT_OPENINGS), *named(key), *number_atoms(value)]


def named(key: list) -> list:
  """What stands between the opening of a statement and the number."""
  return [" special number is", *key]


def number_fact(rng: random.Random, key: list, count: int = 1) -> Fact:
  """A key with one number, or with several that are stated one by one."""
  values = [random_number(rng) for _ in range(count)]
  statements = [number_statement(rng, key, value) for value in values]
  return Fact("number" if count == 1 else "numbers", key, values, statements)


def variable_fact(rng: random.Random, names: list) -> Fact:
  """A chain of variables: the last of names holds a number, each other one the next name."""
  number = random_number(rng)
  statements = [[rng.choice(STATEMENT_OPENINGS), " variable", *names[-1], " equals",
                 *number_atoms(number)]]
  for i in range(len(names) - 2, -1, -1):
    statements.append([rng.choice(STATEMENT_OPENINGS), " variable", *names[i], " equals",
                       *names[i + 1]])
  return Fact("variable", names[0], names[1:] + [number], statements)


def question_atoms(fact: Fact) -> list:
  """The question, without its question mark."""
  if fact.kind == "number":
    return [" What is the special number for", *fact.name]
  if fact.kind == "numbers":
    return [" What are all the special numbers for", *fact.name]
  return [" What is the value of variable", *fact.name]


def answer_atoms(fact: Fact) -> list:
  """The answer, without its last full stop: (atom, is_value) pairs."""
  if fact.kind == "number":
    return ([(a, False) for a in (" The", *named(fact.name))]
            + [(a, True) for a in number_atoms(fact.values[0])])
  if fact.kind == "numbers":
    out = [(a, False) for a in (" The", " special numbers for", *fact.name, " are")]
    for i, value in enumerate(fact.values):
      out += [(",", True)] * (i > 0) + [(a, True) for a in number_atoms(value)]
    return out
  out, name = [], fact.name
  for i, value in enumerate(fact.values):
    out += [(".", True)] * (i > 0)
    out += [(a, False) for a in (" The", " variable", *name, " equals")]
    last = i == len(fact.values) - 1
    out += [(a, True) for a in (number_atoms(value) if last else value)]
    name = value
  return out


def closing_stop(fact: Fact):
  """The full stop of the answer counts as a value where the answer could have gone on."""
  return (".", fact.kind != "number")


def unspaced(atom: str) -> str:
  """The atom at the start of a line, where sentences have no leading space."""
  return atom[1:] if atom.startswith(" ") else atom


def exchange(fact: Fact, chat: bool, after_sentence: bool = True):
  """One question and its answer, after a sentence whose full stop is not yet written.

  Returns (prompt atoms, answer pairs, atoms that start the next line). Plain text ends the answer
  with END_OF_TEXT; chat closes the user turn and the assistant turn.
  """
  answer = answer_atoms(fact) + [closing_stop(fact)]
  prompt = [".\n\n"] * after_sentence + ["Question:", *question_atoms(fact)]
  if chat:
    prompt += ["?", TURN_END, "\n", TURN_START, "assistant", "\n"]
    answer[0] = (unspaced(answer[0][0]), answer[0][1])
    return prompt, answer + [(TURN_END, False)], ["\n"] + opening(chat)
  return prompt + ["?\n", "Answer:"], answer + [(END_OF_TEXT, False)], ["\n\n"]


def opening(chat: bool) -> list:
  return [TURN_START, "user", "\n"] if chat else []
