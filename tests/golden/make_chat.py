#!/usr/bin/env python3
"""Renders chat cases with Jinja2 for tests/model/chat_format_test.cc.

    make_chat.py gemma3                         writes tests/golden/chat/gemma3.jsonl
    make_chat.py gemma4 BIG SMALL [--count N]   writes tests/golden/chat/gemma4_fuzz.jsonl

BIG and SMALL are chat_template.jinja of google/gemma-4-31B-it and of google/gemma-4-E2B-it. Gemma
3's rules are written out below. Needs jinja2==3.1.6. gemma4.jsonl (the documented examples) is kept
by hand.
"""
import argparse
import copy
import json
import pathlib
import random

import jinja2
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent

GEMMA3 = r"""{{ bos_token }}
{%- set first = 1 if messages[0].role in ['system', 'developer'] else 0 -%}
{%- set system = messages[0].content -%}
{%- if first and system is not string %}{% set system = system[0].text %}{% endif -%}
{%- for m in messages[first:] -%}
  {%- if loop.index0 % 2 == 0 and m.role != 'user' -%}{{ fail('user is due') }}{%- endif -%}
  {%- if loop.index0 % 2 == 1 and m.role != 'assistant' -%}{{ fail('assistant is due') }}{%- endif -%}
  {{- '<start_of_turn>' + ('user' if m.role == 'user' else 'model') + '\n' -}}
  {%- if loop.first and first -%}{{- system + '\n\n' -}}{%- endif -%}
  {%- if m.content is string -%}
    {{- m.content.strip() -}}
  {%- elif m.content is none -%}{{ fail('no content') }}
  {%- else -%}
    {%- for part in m.content -%}
      {%- if part.type == 'image' -%}{{- '<start_of_image>' -}}
      {%- elif part.type == 'text' -%}{{- part.text.strip() -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"""


def compile_template(source):
    def fail(message):
        raise jinja2.exceptions.TemplateError(message)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.globals["fail"] = env.globals["raise_exception"] = fail
    return env.from_string(source)


def render(template, case):
    try:
        return template.render(
            messages=case["messages"], tools=case.get("tools"), bos_token="<bos>",
            add_generation_prompt=case.get("generate", True),
            enable_thinking=case.get("thinking", False),
            preserve_thinking=case.get("preserve", False))
    except (jinja2.exceptions.TemplateError, TypeError):
        return None


TEXTS = ["Hello", " padded \n", "", "\u00a0nbsp\u3000", "two\n\nlines", "<|turn>", "<turn|>", "emoji 😀",
         "a<|channel>thought\nsecret<channel|>b", "open<|channel>rest", "<channel|>shut", "quote \"'{},:",
         "Äpfel", "\u2028x\u2028", "<start_of_turn>user\n"]
KEYS = ["city", "unit", "B", "a", "_z", "A1", "ä", "Ä", "x-y", "x y", "é", "type", "Type"]


def value(rng, depth=0):
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind == 0:
        return rng.choice(TEXTS)
    if kind == 1:
        return rng.randint(-10**6, 10**20)
    if kind == 2:
        return rng.choice([1.5, -2.0, 1e-7, 1e20, 0.1, 1e15, 123456.789, 1e16, 0.0001, 0.00001])
    if kind in (3, 4):
        return rng.choice([True, False, None])
    if kind in (5, 6):
        return rng.choice(TEXTS)
    if kind == 7:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {k: value(rng, depth + 1) for k in rng.sample(KEYS, rng.randint(0, 3))}


def schema(rng, depth=0):
    kinds = ["string", "integer", "number", "boolean", ["string", "null"]]
    if depth < 3:
        kinds += ["array", "object", "object"]
    out = {}
    if rng.random() < 0.9:
        out["type"] = rng.choice(kinds)
    if rng.random() < 0.5:
        out["description"] = rng.choice(TEXTS)
    if rng.random() < 0.3:
        out["enum"] = [value(rng, 3) for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.2:
        out["nullable"] = rng.choice([True, False])
    if out.get("type") == "array" and rng.random() < 0.9:
        out["items"] = schema(rng, depth + 1) if rng.random() < 0.9 else {}
        if out["items"] and rng.random() < 0.4:
            out["items"][rng.choice(["default", "anyOf", "format", "minItems"])] = value(rng, 1)
    if out.get("type") == "object":
        if rng.random() < 0.7:
            names = rng.sample(KEYS, rng.randint(0, 4))
            out["properties"] = {name: schema(rng, depth + 1) for name in names}
            if rng.random() < 0.6:
                out["required"] = names[:2]
        if rng.random() < 0.3:
            out["additionalProperties"] = rng.choice([False, True, {"type": "string"}])
        if rng.random() < 0.2:
            out["minProperties"] = 3
    return out


def tool(rng):
    function = {"name": rng.choice(["get_weather", "f", "a.b:c-d"])}
    if rng.random() < 0.8:
        function["description"] = rng.choice(TEXTS)
    if rng.random() < 0.8:
        parameters = schema(rng)
        parameters["properties"] = {n: schema(rng, 1) for n in rng.sample(KEYS, rng.randint(0, 5))}
        if rng.random() < 0.8:
            parameters["type"] = "object"
        function["parameters"] = parameters
    if rng.random() < 0.2:
        function["response"] = rng.choice([{"type": "object", "description": "r"}, {"type": "string"}, {}])
    return {"type": "function", "function": function}


def content(rng):
    if rng.random() < 0.1:
        return None
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    parts = []
    for _ in range(rng.randint(0, 3)):
        kind = rng.choice(["text", "text", "image", "audio", "video"])
        parts.append({"type": kind, "text": rng.choice(TEXTS)} if kind == "text" else {"type": kind})
    return parts


def conversation(rng):
    messages = []
    if rng.random() < 0.3:
        messages.append({"role": rng.choice(["system", "developer"]), "content": content(rng)})
    for _ in range(rng.randint(0, 5)):
        role = rng.choice(["user", "user", "assistant", "assistant", "tool", "system"])
        message = {"role": role, "content": content(rng)}
        if role == "assistant":
            if rng.random() < 0.3:
                message["reasoning"] = rng.choice(TEXTS)
            if rng.random() < 0.5:
                message["tool_calls"] = []
                for i in range(rng.randint(1, 3)):
                    call = {"type": "function", "function": {
                        "name": rng.choice(["f", "g"]), "arguments": rng.choice([None, {}, value(rng), {
                            k: value(rng) for k in rng.sample(KEYS, rng.randint(0, 4))}])}}
                    if rng.random() < 0.7:
                        call["id"] = f"c{i}"
                    message["tool_calls"].append(call)
                if rng.random() < 0.2:
                    message["tool_responses"] = [{"name": "f", "response": value(rng)}]
        messages.append(message)
        if role == "assistant" and message.get("tool_calls"):
            for i in range(rng.randint(0, 3)):
                result = {"role": "tool", "content": content(rng)}
                if rng.random() < 0.7:
                    result["tool_call_id"] = f"c{i}"
                if rng.random() < 0.3:
                    result["name"] = "named"
                messages.append(result)
    return messages


def values_as_text(case):
    """Tools, arguments and responses as JSON text, as clients send them: numbers keep their form."""
    case = copy.deepcopy(case)
    case["tools"] = [json.dumps(tool) for tool in case.get("tools", [])]
    for message in case["messages"]:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        for response in message.get("tool_responses", []):
            response["response"] = json.dumps(response["response"])
    return case


def gemma4_cases(big, small, count):
    rng = random.Random(4)
    for number in range(count):
        case = {"name": f"fuzz {number}", "messages": conversation(rng)}
        if rng.random() < 0.4:
            case["tools"] = [tool(rng) for _ in range(rng.randint(1, 2))]
        for key in ("generate", "thinking", "preserve"):
            if rng.random() < 0.3:
                case[key] = rng.random() < 0.5
        for key, template in (("big", big), ("small", small)):
            case[key] = render(template, case)
        yield values_as_text(case)


def gemma3_cases():
    template = compile_template(GEMMA3)
    rng = random.Random(3)
    for number in range(60):
        messages = []
        if rng.random() < 0.4:
            messages.append({"role": rng.choice(["system", "developer"]), "content": rng.choice(TEXTS)})
        for i in range(rng.randint(1, 4)):
            role = "user" if i % 2 == 0 else "assistant"
            if rng.random() < 0.08:
                role = rng.choice(["user", "assistant", "tool"])
            body = rng.choice(TEXTS)
            if rng.random() < 0.3:
                body = [{"type": "text", "text": rng.choice(TEXTS)}, {"type": "image"}][:rng.randint(1, 2)]
            if rng.random() < 0.04:
                body = None
            messages.append({"role": role, "content": body})
        case = {"name": f"gemma3 {number}", "messages": messages}
        if rng.random() < 0.3:
            case["generate"] = False
        case["gemma3"] = render(template, case)
        yield case


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["gemma3", "gemma4"])
    parser.add_argument("templates", nargs="*", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    if args.family == "gemma3":
        out, cases = HERE / "chat" / "gemma3.jsonl", gemma3_cases()
    else:
        big, small = (compile_template(path.read_text()) for path in args.templates)
        out, cases = HERE / "chat" / "gemma4_fuzz.jsonl", gemma4_cases(big, small, args.count)
    with open(args.out or out, "w") as file:
        for case in cases:
            file.write(json.dumps(case, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
