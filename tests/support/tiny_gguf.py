"""A seeded Llama of a few thousand parameters, with its tokenizer, as one GGUF file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

END = 2


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    fields: Mapping[str, str | int | float] | None = None,
    tensors: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Writes it in float32, with tied embeddings of 32 numbers; returns `path`.

    `fields` of the architecture and `tensors` are added to those of a plain Llama.
    """
    import gguf
    import numpy as np

    letters = "abcdefgh"
    tokens = ["<|start|>", "<|other|>", "<|end|>", *letters, "ab", "cd"]
    hidden, inner, kv = 32, 48, 16
    shapes = {"token_embd": (len(tokens), hidden), "output_norm": (hidden,)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden),
                "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, hidden),
                "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden),
                "ffn_down": (hidden, inner),
            }.items()
        }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 10)
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(END)
    writer.add_chat_template("{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}")
    draw = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = draw.normal(0, 0.3, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values)
    for name, row in (tensors or {}).items():
        writer.add_tensor(name, np.array(row, np.float32))
    for name, value in (fields or {}).items():
        kind = {str: "string", int: "uint32", float: "float32"}[type(value)]
        getattr(writer, f"add_{kind}")(f"llama.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
