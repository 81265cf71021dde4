"""A seeded Llama of a few thousand parameters with a tokenizer of one token per character."""

import string
from pathlib import Path

VOCAB_SIZE = 97  # two special tokens and the 95 printable characters of ASCII
START, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }} {{ message['content'] }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def write_tiny_llama(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 4,
    hidden_size: int = 32,
    vocab_size: int = VOCAB_SIZE,
    max_length: int = 512,
) -> Path:
    """Writes model and tokenizer in Hugging Face's layout, weights in float32; returns `folder`.

    Grouped heads (4 query, 2 key-value), untied head. The weights are wide enough that the next
    token's distribution is neither flat nor certain (logits spread by about 1.7).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).float().save_pretrained(folder)
    write_tiny_tokenizer(folder)
    return folder


def write_tiny_tokenizer(folder: Path) -> None:
    """Writes the tokenizer and its chat template: `START` is 0, `END` is 1, a space is 2.

    A character outside printable ASCII becomes a question mark.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    printable = sorted(set(string.printable) - set("\t\n\r\x0b\x0c"))
    vocabulary = {token: index for index, token in enumerate([START, END, *printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        unk_token="?",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
