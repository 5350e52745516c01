"""Text for training the test tokenizers and for comparing encoders.

Everything is generated here from word lists, templates and Unicode ranges with fixed seeds.
"""

import random
import unicodedata

WORDS = """the a of to and in is for on with that from by as at it this be are was not or have will
one page cache token worker router prefill decode block window layer head batch queue request reply
stream model weight matrix vector kernel memory device network message lease ticket offer commit
river mountain garden window letter winter summer morning evening bread water stone silver copper
engineer teacher doctor sailor farmer writer painter quickly slowly carefully never always often
reading writing running waiting thinking building testing measured compared transferred scheduled
international responsibility characteristic understanding approximately""".split()
NAMES = """Ada Blaise Chandra Dmitri Emmy Fatima Grace Hiro Ines Jonas Kofi Lena Mei Noor
Olga""".split()
CONTRACTIONS = ["it's", "I'm", "we've", "they'll", "don't", "you're", "she'd", "IT'S", "I'M",
                "WE'VE", "THEY'LL", "DON'T", "YOU'RE", "SHE'D", "it\u2019s", "rock'n'roll",
                "'tis", "'s", "x's's", "it'\u017f", "we'Ve", "'LL'd"]
SCRIPTS = {
    "latin_ext": (0x00C0, 0x024F), "ipa": (0x0250, 0x02AF), "greek": (0x0370, 0x03FF),
    "cyrillic": (0x0400, 0x04FF), "armenian": (0x0531, 0x0586), "hebrew": (0x05D0, 0x05EA),
    "arabic": (0x0620, 0x06D3), "syriac": (0x0710, 0x072F), "thaana": (0x0780, 0x07A5),
    "nko": (0x07CA, 0x07EA), "devanagari": (0x0901, 0x094D), "bengali": (0x0985, 0x09CD),
    "gurmukhi": (0x0A05, 0x0A4D), "gujarati": (0x0A85, 0x0ACD), "oriya": (0x0B05, 0x0B4D),
    "tamil": (0x0B85, 0x0BCD), "telugu": (0x0C05, 0x0C4D), "kannada": (0x0C85, 0x0CCD),
    "malayalam": (0x0D05, 0x0D4D), "sinhala": (0x0D85, 0x0DCA), "thai": (0x0E01, 0x0E4E),
    "lao": (0x0E81, 0x0ECD), "tibetan": (0x0F40, 0x0F84), "myanmar": (0x1000, 0x103A),
    "georgian": (0x10A0, 0x10FF), "jamo": (0x1100, 0x11FF), "ethiopic": (0x1200, 0x135A),
    "cherokee": (0x13A0, 0x13F5), "canadian": (0x1401, 0x166C), "ogham": (0x1680, 0x169C),
    "runic": (0x16A0, 0x16EA), "khmer": (0x1780, 0x17D3), "mongolian": (0x1806, 0x1878),
    "latin_add": (0x1E00, 0x1EFF), "greek_ext": (0x1F00, 0x1FFE), "hiragana": (0x3041, 0x309F),
    "katakana": (0x30A0, 0x30FF), "bopomofo": (0x3105, 0x312F), "han": (0x4E00, 0x9FA5),
    "yi": (0xA000, 0xA48C), "hangul": (0xAC00, 0xD7A3), "fullwidth": (0xFF01, 0xFF5E),
    "halfkana": (0xFF66, 0xFF9D), "gothic": (0x10330, 0x1034A), "deseret": (0x10400, 0x1044F),
    "math": (0x1D400, 0x1D7FF), "han_b": (0x20000, 0x2A6D0), "compat_han": (0xF900, 0xFAD9),
}
SPACES = [" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\u0085", "\u00a0",
          "\u1680", "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u2028",
          "\u2029", "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff", "\x1c", "\x1f", "\x00"]
EMOJI = ["\U0001F600", "\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466",
         "\U0001F44D\U0001F3FD", "\u2764\ufe0f", "\u2764", "\U0001F1E9\U0001F1EA",
         "\U0001F3F3\ufe0f\u200d\U0001F308", "1\ufe0f\u20e3", "#\ufe0f\u20e3",
         "\U0001F9D1\U0001F3FF\u200d\U0001F680", "\u200d", "\ufe0f", "\U0001F3FB",
         "\U0001F3F4\U000E0067\U000E0062\U000E0065\U000E006E\U000E0067\U000E007F"]
COMBINING = ["e\u0301", "\u00e9", "a\u0323\u0302", "a\u0302\u0323", "\u1eb7\u0301", "q\u0307\u0323",
             "\u212b", "\u2126", "\u0958", "\u0915\u093c", "\u1100\u1161\u11a8", "\u1100\u1161",
             "\uac00\u11a8", "\u0344", "\u0308\u0301", "\u0340", "\ufb1d", "\u05d9\u05b4",
             "\u2adc", "\U0001D15E", "o\u0338\u0327\u0301", "\u0ddc\u0dca", "\u0f73",
             "A\u030a", "s\u0323\u0307", "s\u0307\u0323", "\u1e9b\u0323", "\u3099\u304b\u3099",
             "\u304b\u3099", "\u0b47\u0b56", "cafe\u0301", "caf\u00e9", "\uf900", "\u2f800"]
NUMBERS = ["0", "7", "42", "123", "1234", "12345", "1234567", "3.14159", "-2.5e-10", "1,000,000",
           "0x1F", "007", "192.168.0.1", "2024-02-29", "12:34:56", "\u00bd", "\u00b2\u00b3",
           "\u2160\u2163", "\u2460\u2461", "\u0663\u0664\u0665", "\u0967\u0968\u0969\u096a",
           "\uff11\uff12\uff13\uff14", "\u3007", "\u4e00\u4e8c\u4e09", "\U0001D7CF\U0001D7D0",
           "50%", "$19.99", "\u20ac5", "a1b2c3", "x\u00b2", "1st", "2nd", "\u0bf0", "\u3248"]
CODE = ["def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
        "if x:\n        y()\n    else:\n  z\n", "{\"key\": [1, 2.5, null, \"v\"]}",
        "<div class=\"a\">text</div>\n", "SELECT * FROM t WHERE a='b';", "a->b::c<d>&&e||!f",
        "#include <vector>\n\n\nint main() {}\n", "x = {'a': 1}  # note\n", "/* c */ // d\n",
        "https://example.org/a/b?c=d&e=%20#f", "user@example.org", "C:\\dir\\file.txt",
        "snake_case_name camelCaseName PascalName SCREAMING_CASE", "__init__", "....", "!?!?",
        "---",
        "***bold*** _it_ `code`", "| a | b |\n|---|---|\n", "\\begin{x}\\alpha^{2}\\end{x}",
        "\t\t\tindent\n\t\tless\n", "a\\nb", "$x_{1}$", "=> -> <- <= >= != ==", "();\n\n});\n"]
SPECIALS = ["<|endoftext|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
            "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<mask>", "<pad>", "<tool_call>",
            "</tool_call>", "<sep>", "zebra", "caf\u00e9ine", "cafe\u0301ine", "<|im_", "<|im_end|",
            "<|endoftext", "|>", "<|", "<|<|im_end|>|>", "  ", "ab", "abc", "<|reserved_1|>",
            "<|reserved_10|>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<unk>"]
INVALID = [b"\x80", b"\xbf\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xc3(", b"\xe2\x82",
           b"\xe2\x82A", b"\xe2(\xa1", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xed\xbf\xbf",
           b"\xf0\x9f\x98", b"\xf0\x9f", b"\xf0", b"\xf0\x80\x80\xaf", b"\xf4\x90\x80\x80",
           b"\xf5\x80\x80\x80", b"\xff\xfe", b"\xfe", b"\xf8\x88\x80\x80\x80", b"\xe1\x80\xe2\xf0"]


def assigned(code_point):
    return unicodedata.category(chr(code_point)) not in ("Cn", "Cs")


def script_word(rng, script, low=1, high=8):
    first, last = SCRIPTS[script]
    points = []
    while len(points) < rng.randint(low, high):
        point = rng.randint(first, last)
        if assigned(point):
            points.append(chr(point))
    return "".join(points)


def sentence(rng):
    words = [rng.choice(WORDS + NAMES + CONTRACTIONS[:7]) for _ in range(rng.randint(3, 9))]
    words[0] = words[0].capitalize()
    if rng.random() < 0.3:
        words.insert(rng.randint(1, len(words)), rng.choice(NUMBERS[:12]))
    text = " ".join(words)
    if rng.random() < 0.3:
        text = text.replace(" ", ", ", 1)
    return text + rng.choice([".", "?", "!", "", ":", "...", ".\n"])


def training_text():
    rng = random.Random(11)
    lines = [sentence(rng) for _ in range(3000)]
    lines += [rng.choice(CODE) for _ in range(200)]
    for script in ("cyrillic", "greek", "hiragana", "arabic", "hangul", "devanagari", "thai"):
        words = [script_word(rng, script, 2, 4) for _ in range(30)]
        lines += [" ".join(rng.choice(words) for _ in range(6)) for _ in range(40)]
    lines += [" " * rng.randint(1, 12) + "x\n\n" for _ in range(100)]
    lines += [rng.choice(EMOJI) * 2 for _ in range(100)]
    rng.shuffle(lines)
    return lines


def random_scalar(rng):
    while True:
        kind = rng.random()
        high = 0x7F if kind < 0.2 else 0xFFFF if kind < 0.8 else 0x10FFFF
        point = rng.randint(0, high)
        if assigned(point):
            return chr(point)


def piece(rng):
    kind = rng.randint(0, 9)
    if kind == 0:
        return rng.choice(SPACES)
    if kind == 1:
        return rng.choice(EMOJI)
    if kind == 2:
        return rng.choice(COMBINING)
    if kind == 3:
        return rng.choice(NUMBERS)
    if kind == 4:
        return rng.choice(SPECIALS)
    if kind == 5:
        return rng.choice(CONTRACTIONS)
    if kind == 6:
        return script_word(rng, rng.choice(list(SCRIPTS)), 1, 4)
    if kind == 7:
        return rng.choice(CODE)[:12]
    return rng.choice(WORDS)


def corpus():
    """Yields bytes, some of them not valid UTF-8."""
    rng = random.Random(23)
    texts = ["", " ", "a", "\n", "\x00", "\x7f", "A" * 70, "a" * 300, " " * 200, "\n" * 60,
             "ab" * 100, "1" * 100, "." * 90, "\U0001F600" * 40, "\u200d" * 40, "e\u0301" * 40,
             "\u0301\u0323" * 40, "\u4e00" * 70, " \n" * 50, "\t" * 50, "'" * 40, "'s" * 30]
    texts += CONTRACTIONS + EMOJI + COMBINING + NUMBERS + CODE + SPECIALS + SPACES
    texts += [chr(c) for c in range(256)]
    texts += [sentence(rng) for _ in range(150)]
    texts += [script_word(rng, s) for s in SCRIPTS for _ in range(3)]
    texts += [" ".join(script_word(rng, s, 2, 6) for _ in range(3))
              for s in SCRIPTS for _ in range(2)]
    texts += ["".join(rng.choice(SPACES) for _ in range(rng.randint(2, 8))) for _ in range(120)]
    texts += ["x" + "".join(rng.choice(SPACES[:12]) for _ in range(rng.randint(1, 6))) + "y"
              for _ in range(120)]
    texts += ["".join(rng.choice(EMOJI) for _ in range(rng.randint(2, 5))) for _ in range(60)]
    texts += ["".join(rng.choice(COMBINING) for _ in range(rng.randint(2, 6))) for _ in range(120)]
    texts += [rng.choice(["", " "]).join(rng.choice(NUMBERS) for _ in range(3)) for _ in range(80)]
    texts += [rng.choice(SPACES[:6]).join(rng.choice(SPECIALS) for _ in range(rng.randint(2, 5)))
              for _ in range(150)]
    texts += [rng.choice(WORDS) + s + rng.choice(["", " "] + WORDS) for s in SPECIALS
              for _ in range(3)]
    texts += ["".join(random_scalar(rng) for _ in range(rng.randint(1, 12))) for _ in range(350)]
    texts += ["".join(piece(rng) for _ in range(rng.randint(2, 8))) for _ in range(450)]
    items = [text.encode("utf-8") for text in texts]
    items += INVALID
    for _ in range(150):
        parts = [rng.choice(INVALID) if rng.random() < 0.4 else piece(rng).encode("utf-8")
                 for _ in range(rng.randint(2, 5))]
        items.append(b"".join(parts))
    for _ in range(80):
        items.append(bytes(rng.randint(0, 255) for _ in range(rng.randint(1, 12))))
    seen = set()
    for item in items:
        if item not in seen:
            seen.add(item)
            yield item
