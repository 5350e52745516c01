"""Chat templates in the styles that models use, conversations, and what jinja2 makes of them.

The environment is the one chat templates are written for: sandboxed, trim_blocks and lstrip_blocks,
raise_exception, tools and documents defined as None.
"""

import json

from jinja2.exceptions import TemplateError, UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
        "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    "default_system": (
        "{% for message in messages %}\n"
        "  {%- if loop.first and messages[0]['role'] != 'system' %}\n"
        "    {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}\n"
        "  {%- endif %}\n"
        "  {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n  {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"),
    "header_ids": (
        "{% set turns = messages %}{% for message in turns %}{% set content = "
        "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] "
        "| trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"),
    "instruction": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = messages[0]['content'] %}{% else %}{% set rest = messages %}"
        "{% set system = false %}{% endif %}{% for message in rest %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and system != false %}"
        "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
        "{% endif %}{% endfor %}"),
    "blocks_on_lines": (
        "{# one block a line #}\n{% if tools is not none %}\nTOOLS\n{% endif %}\n"
        "{% for m in messages %}\n    {% if m.role == 'system' %}\nS: {{ m.content }}\n"
        "    {% elif m.role == 'user' or m.role == 'human' %}\nU: {{ m.content|trim }}\n"
        "    {% else %}\nA: {{ m.content }}{{ eos_token }}\n    {% endif %}\n{% endfor %}\n"
        "{% if add_generation_prompt %}\nA:\n{% endif %}\n\n"),
    "loop_variables": (
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }}:{{ loop.revindex }}:"
        "{{ loop.revindex0 }}{{ ' first' if loop.first }}{{ ' last' if loop.last else ' more' }}"
        "{% if not loop.last %}, {% endif %}{% endfor %}"),
    "tests_and_values": (
        "{{ undefined_name }}|{{ undefined_name is defined }}|{{ messages[-1].role is string }}|"
        "{{ messages[99] is undefined }}|{{ messages[0] is mapping }}|{{ none }}|{{ true }}|"
        "{{ (1 + 2) ~ '3' }}|{{ 5 - 2 - 1 }}|{{ 7 % 4 }}|{{ -7 % 4 }}|{{ 'a' 'b' }}|"
        "{{ messages | length }}|"
        "{{ 'use' in messages[0].role }}|{{ 'role' in messages[0] }}|"
        "{{ 'tool_calls' not in messages[0] }}|{{ messages[0].tool_calls is defined }}|"
        "{{ messages[0].content|length > 3 and not add_generation_prompt }}|"
        "{{ messages[0].content.startswith('A') or messages[0].content.endswith('?') }}|"
        "{{ 'yes' if tools else 'no' }}|{{ (messages[0].name or 'nobody') }}|{{ 3 >= 3 }}|"
        "{{ 'b' < 'a' }}|{{ 1 == true }}|{{ '1' == 1 }}|{{ messages[1:-1]|length }}"),
    "scopes": (
        "{% set x = 'outer' %}{% for m in messages %}{{ x }}-{% set x = m.role %}{{ x }};"
        "{% if loop.first %}{% set x = 'changed' %}{% endif %}{{ x }} {% endfor %}{{ x }}"
        "{% for a in messages %}{% for b in messages[:2] %}{{ loop.index }}{% endfor %}"
        "{{ loop.index0 }}{% endfor %}"),
    "space_signs": (
        "  a  {%- if true -%}   b   {%- endif +%}  \n  c {{- ' d ' -}}  e\n   {%+ if true %}\n f\n"
        "  {% endif %}g  {#- gone -#}  h\n\n  {# gone #}\n  i\t{% set y = 1 %}\nj\n"),
    "escapes":
        "{{ 'q\\'q' ~ \"d\\\"d\" ~ '\\\\' ~ '\\t|\\u00e9\\x41' }}"
        "\u00e9\U0001F600{{ '\U0001F600' }}",
}
CONVERSATIONS = [
    [("user", "Hello, who are you?")],
    [("system", " Answer in one word. "), ("user", "What is 2 + 2?\n"), ("assistant", "  four"),
     ("user", "And 3 + 3?")],
    [("user", "A\u00a0\u3000"), ("assistant", "\x1fB\n\n"), ("user", "<|im_end|> \U0001F600")],
    [("system", ""), ("user", "{{ messages }} {% endif %}"), ("assistant", "line one\nline two")],
    [],
]


def raise_exception(message):
    raise TemplateError(message)


def render(template, messages, add_generation_prompt):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render(
        messages=messages, add_generation_prompt=add_generation_prompt, bos_token="<s>",
        eos_token="</s>", tools=None, documents=None)


def write(path):
    cases = []
    for name, template in TEMPLATES.items():
        for conversation in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in conversation]
            for flag in (False, True):
                try:
                    expected = render(template, messages, flag)
                except (TemplateError, UndefinedError):
                    expected = None  # an error there is an error here
                cases.append({"template": name, "messages": messages,
                              "add_generation_prompt": flag, "expected": expected})
    data = {"templates": TEMPLATES, "cases": cases}
    path.write_text(json.dumps(data, ensure_ascii=True, indent=1) + "\n", encoding="utf-8")
