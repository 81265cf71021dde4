"""Prompts equal those of transformers, which runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from gateway.text.tokenizer import TextTokenizer
from specserve import chat_template
from specserve.chat_template import ChatTemplate, TemplateError

# Reads cases from stdin, writes what transformers makes of them to stdout.
REFERENCE = """
import json, sys
from transformers import AutoTokenizer
answers = []
for case in json.load(sys.stdin):
    tokenizer = AutoTokenizer.from_pretrained(case["folder"], **case.get("load", {}))
    if "save" in case:
        tokenizer.save_pretrained(case["save"])
    for messages in case["chats"]:
        for generate in (True, False):
            arguments = dict(add_generation_prompt=generate, **case.get("variables", {}))
            text = tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
            ids = tokenizer.apply_chat_template(messages, return_dict=False, **arguments)
            answers.append([text, list(ids)])
    for text in case.get("texts", ()):
        answers.append([text, tokenizer(text)["input_ids"]])
json.dump(answers, sys.stdout)
"""

TEMPLATES = {
    "plain": (
        "{{ bos_token }}{% for m in messages %}\n"
        "    {% if loop.first and m.role != 'system' %}\n"
        "<|im_start|>system\nYou help.<|im_end|>\n"
        "    {% endif %}\n"
        "<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "macros": (
        "{%- macro turn(m) -%}[{{ m.role | upper }}] {{ m.content }}{%- endmacro -%}"
        "{%- set ns = namespace(count=0, system='') -%}"
        "{%- for m in messages -%}"
        "{%- if m.role == 'system' -%}{%- set ns.system = m.content -%}"
        "{%- continue -%}{%- endif -%}"
        "{%- set ns.count = ns.count + 1 -%}"
        "{%- if ns.count > 5 -%}{%- break -%}{%- endif -%}"
        "{{ turn(m) }}{{ eos_token if m.role == 'assistant' else '' }}\n"
        "{%- endfor -%}{{ ns.system }}|{{ ns.count }}|{{ messages | tojson(indent=2) }}"
        "|{{ messages[0] | tojson }}|{{ tools is none }}|{{ documents is none }}"
    ),
    "generation": (
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ '<|im_start|>' + m.content }}{% endif %}{% endfor %}"
        "{{ dict(a=1) | tojson }}{{ unk_token is defined }}{{ pad_token is defined }}"
    ),
    "date": "{{ strftime_now('%Y') }}{{ messages[-1]['content'] }}{{ thinking | default('no') }}",
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be <b>brief</b> & 'kind'."},
        {"role": "user", "content": "  Größe?\n\n東京 🙂  "},
        {"role": "assistant", "content": "Ja.", "refusal": None},
        {"role": "user", "content": "<|im_end|> {{ injected }}"},
    ],
    [{"role": "user", "name": "Ann", "content": ""}, {"role": "assistant", "content": "x"}],
    [{"role": r, "content": str(i)} for i in range(4) for r in ("user", "assistant")],
]


def reference(cases: list[dict[str, Any]]) -> list[tuple[str, list[int]]]:
    process = subprocess.run(
        [sys.executable, "-c", REFERENCE],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [(text, ids) for text, ids in json.loads(process.stdout)]


def write(folder: Path, tokenizer: Tokenizer, where: str, source: str) -> dict[str, bytes]:
    """Write a tokenizer's files with the template in one of the places where it may be."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<|bos|>", "special": True},
        "eos_token": "<|im_end|>",
        "unk_token": None,
    }
    if where == "config":
        config["chat_template"] = source
    elif where == "list":
        config["chat_template"] = [
            {"name": "tool_use", "template": "tools!"},
            {"name": "default", "template": source},
        ]
    else:
        (folder / "chat_template.jinja").write_text(source)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


async def compare(
    files: dict[str, bytes], case: dict[str, Any], expected: list[tuple[str, list[int]]]
) -> None:
    """Take as many of `expected` as the case has, and compare them with the gateway's own."""
    found = chat_template.from_files(files)
    assert found is not None
    tokenizer = TextTokenizer(files)
    for messages in case["chats"]:
        for generate in (True, False):
            text, ids = expected.pop(0)
            variables = case.get("variables", {})
            mine = found.render(messages, add_generation_prompt=generate, variables=variables)
            assert mine == text
            assert await tokenizer.encode([mine], add_special_tokens=False) == [ids]
    for text in case.get("texts", ()):
        assert await tokenizer.encode([text], add_special_tokens=True) == [expected.pop(0)[1]]


async def test_equals_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Every template in every place, all in one process of transformers."""
    with_bos = Tokenizer.from_str(tokenizer.to_str())
    with_bos.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    cases: list[dict[str, Any]] = []
    files: list[dict[str, bytes]] = []
    for name, source in TEMPLATES.items():
        for where in ("config", "list", "file"):
            folder = tmp_path / f"{name}-{where}"
            folder.mkdir()
            files.append(write(folder, with_bos, where, source))
            variables = {"thinking": "yes"} if where == "file" else {}
            texts = ["Once upon", "東京 🙂", ""]
            case = {"folder": str(folder), "chats": CHATS, "variables": variables, "texts": texts}
            cases.append(case)
    expected = reference(cases)
    for case, contents in zip(cases, files, strict=True):
        await compare(contents, case, expected)
    assert not expected


@pytest.mark.slow
async def test_the_default_targets_template_and_tokenizer(tmp_path: Path) -> None:
    target = os.environ.get("HOLDCOURSE_TEST_TARGET", "")
    if not target:
        pytest.skip("HOLDCOURSE_TEST_TARGET names no .gguf file")
    texts = [text for chat in CHATS for message in chat if (text := message["content"])]
    case = {
        "folder": str(Path(target).parent),
        "load": {"gguf_file": Path(target).name},
        "save": str(tmp_path),
        "chats": CHATS,
        "texts": texts,
    }
    expected = reference([case])
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    await compare(files, case, expected)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[5].content + 'x' }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ 1 / 0 }}", "cannot render"),
    ],
)
def test_refusals_are_sentences(source: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        ChatTemplate(source, {}).render(CHATS[0])


def test_a_broken_template_is_refused_when_it_is_read() -> None:
    with pytest.raises(TemplateError, match="broken"):
        ChatTemplate("{% for %}", {})
    assert chat_template.from_files({}) is None
    config = json.dumps({"chat_template": [{"name": "rag", "template": "x"}]}).encode()
    assert chat_template.from_files({"tokenizer_config.json": config}) is None
