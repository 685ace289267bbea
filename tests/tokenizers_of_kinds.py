"""Tokenizers as they are published, each kind in a few pieces, and chat templates of their ways."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.conftest import TOKENIZER

MARK = "\u2581"  # sentencepiece's space
CONTROL = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|channel|>"]
PLAIN = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = {
    "plain": PLAIN,
    "trims": PLAIN.replace("m['content'] }}", "m['content'] | trim }}"),
    "no_system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + PLAIN,
    "drops_system": "{% for m in messages if m['role'] != 'system' %}"
    + PLAIN.removeprefix("{% for m in messages %}"),
    "alternates": "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + PLAIN,
    "spaced": "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ '<<SYS>> ' + m['content'] + ' <</SYS>> ' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + '<|end|>' }}{% endif %}{% endfor %}",
    "dated": "Today is {{ strftime_now('%d %b %Y') }}.\n" + PLAIN,
    "channelled": "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' %}<|channel|>final\n{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
}


def _letters() -> dict[str, int]:
    pieces = ["<pad>", "<eos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256)), MARK]
    return {piece: i for i, piece in enumerate([*pieces, *(chr(c) for c in range(33, 127))])}


def _bytes_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )


def gemma_like() -> PreTrainedTokenizerBase:
    """Line breaks, tabs, runs of spaces and HTML elements are added tokens that are not special."""
    vocab = _letters()
    text = ["\n", "\n\n", "\t", MARK * 2, "<table>", "</h1>"]
    for piece in text:
        vocab[piece] = len(vocab)
    merges = [("\n", "\n"), (MARK, MARK)]
    back = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    back.normalizer = normalizers.Replace(" ", MARK)
    back.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    back.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in text])
    return dressed(back)


def sentencepiece_like() -> PreTrainedTokenizerBase:
    """The first word of a text, and it alone, gets a mark for a space before it: Mistral, Phi-3."""
    back = Tokenizer(models.BPE(_letters(), [], unk_token="<unk>", byte_fallback=True))
    back.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first", split=False)
    back.decoder = _bytes_decoder()
    return dressed(back)


def legacy_llama_like() -> PreTrainedTokenizerBase:
    """Every piece between control tokens gets that mark: Llama 2 as it was first converted."""
    back = Tokenizer(models.BPE(_letters(), [], unk_token="<unk>", byte_fallback=True))
    back.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    back.decoder = _bytes_decoder()
    return dressed(back)


def whole_words_like() -> PreTrainedTokenizerBase:
    """A word that stands in the vocabulary is taken whole, without merges: Llama 3."""
    bundled = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    back = Tokenizer(models.BPE(bundled.get_vocab(with_added_tokens=False), [], ignore_merges=True))
    back.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"<[^<>\s]+>| ?\p{L}+| ?\p{N}{1,3}|\s+|."), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    back.decoder = decoders.ByteLevel()
    return dressed(back)


def unigram_like() -> PreTrainedTokenizerBase:
    """Pieces with scores; control tokens stand in the same list and could be found as text: T5, XLM-R."""
    pieces = [(piece, -float(i)) for piece, i in _letters().items()]
    pieces += [(token, -1.0) for token in CONTROL]
    back = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    back.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always")
    back.decoder = _bytes_decoder()
    return dressed(back)


def greedy_controls() -> PreTrainedTokenizerBase:
    """Control tokens that take the white space after them along: Phi-3's."""
    back = Tokenizer(models.BPE(_letters(), [], unk_token="<unk>", byte_fallback=True))
    back.normalizer = normalizers.Replace(" ", MARK)
    back.decoder = _bytes_decoder()
    return dressed(back, rstrip=True)


def byte_level() -> PreTrainedTokenizerBase:
    """The bundled tokenizer, which puts a space before a text."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|channel|>"]})
    return tokenizer


def dressed(back: Tokenizer, rstrip: bool = False) -> PreTrainedTokenizerBase:
    """Give a tokenizer control tokens and a chat template."""
    back.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=rstrip) for t in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=back, eos_token="<|end|>", pad_token="<pad>", unk_token="<unk>", chat_template=PLAIN
    )


KINDS = {
    made.__name__: made
    for made in (
        gemma_like, sentencepiece_like, legacy_llama_like, whole_words_like, unigram_like, greedy_controls,
        byte_level,
    )
}  # fmt: skip


def saved(tokenizer: PreTrainedTokenizerBase, folder: Path) -> PreTrainedTokenizerBase:
    """Return a tokenizer as it comes back from its files."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
