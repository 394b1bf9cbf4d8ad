"""Ends of long texts: the tokens that the whole text has there, and no more text tokenised than they take."""

import random

import pytest
import tiny_models
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tuco_vllm.long_texts import LongTexts
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.prompts import PromptEncoder

LIMIT = 40
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = ["the", "cat", "sat", "(on)", "a", "mat,", "said:", "no!", "1234", "x=y;", "it's", "aaaaaaaa"]
WORDS += ["café", "Zoë", "東京", "…", "<pad>"]
GAPS = [" "] * 20 + ["  ", "\n", "\n\n", " \n ", "\t", "   "]
CORPUS = ["the cat sat on the mat, and said: no! it's a café 1234 aaaa\n\n  x = y; " * 9]


def sentencepiece():
    """A space is a sign like others, put before a text too, and nothing splits it: Llama 2."""
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None


def metaspace():
    return None, pre_tokenizers.Metaspace(prepend_scheme="first")


def byte_level():
    return None, pre_tokenizers.ByteLevel(add_prefix_space=True)


def llama3():
    split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    return normalizers.NFC(), pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


KINDS = (sentencepiece, metaspace, byte_level, llama3)


def tokenizer(kind, *special, model=models.BPE, trainer=trainers.BpeTrainer):
    built = Tokenizer(model(unk_token="<unk>"))
    # Trained on split words, so that no token has a space inside, as those of Llama 2 have none.
    built.normalizer, built.pre_tokenizer = (
        (None, pre_tokenizers.Metaspace()) if kind is sentencepiece else kind()
    )
    names = ["<s>", "</s>", "<unk>", "<pad>", *special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(
        CORPUS, trainer(vocab_size=420, special_tokens=names, initial_alphabet=alphabet)
    )
    built.normalizer, built.pre_tokenizer = kind()
    built.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>")


def text(seed, words=1500):
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(GAPS) for _ in range(words))


class Counting:
    """A tokenizer that knows how many characters it was given."""

    def __init__(self, inner):
        self.inner, self.characters = inner, 0

    def encode(self, text, **options):
        self.characters += len(text)
        return self.inner.encode(text, **options)

    def __len__(self):
        return len(self.inner)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_a_text_have_the_tokens_of_the_whole(kind, seed):
    known = tokenizer(kind)
    counting = Counting(known)
    long = text(seed)
    full = known.encode(long)
    for limit in (1, 2, 7, LIMIT):
        expected = {"left": [0, *full[len(full) - limit + 1 :]], "right": [*full[: limit - 1], 1]}
        for side, ids in expected.items():
            encoder = PromptEncoder(counting, on_long=f"truncate-{side}", max_model_len=limit)
            counting.characters = 0
            assert encoder.encode(long).token_ids == ids
            assert counting.characters < 500 + 60 * limit < len(long)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_given_of_an_end_is_the_wholes(kind):
    known = tokenizer(kind)
    for seed in range(12):
        long = text(seed)
        full = known.encode(long)
        head, tail = (
            end(long, LIMIT, special=True) for end in (LongTexts(known).head, LongTexts(known).tail)
        )
        assert all(LIMIT < len(end) < len(full) / 2 for end in (head, tail))
        assert head == [*full[: len(head) - 1], 1]
        assert tail == [0, *full[1 - len(tail) :]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_chats_text_is_cut_alike(kind):
    known = tokenizer(kind)
    known.chat_template = "{{ bos_token }}{{ messages[0].content }} :"
    for seed in range(5):
        chat = [{"role": "user", "content": text(seed)}]
        full = PromptEncoder(known).encode(chat).token_ids
        left, right = (
            PromptEncoder(known, on_long=f"truncate-{side}", max_model_len=LIMIT).encode(chat).token_ids
            for side in ("left", "right")
        )
        assert left == full[:1] + full[1 - LIMIT :]
        assert right == full[:LIMIT]


@pytest.mark.parametrize("long", ["東京" * 2000, "x" * 5000, "a\tb\n" * 2000])
def test_a_text_without_a_place_to_cut_is_tokenised_whole(long):
    known = tokenizer(byte_level)
    assert LongTexts(known).head(long, 5, special=True) == known.encode(long)
    assert LongTexts(known).tail(long, 5, special=True) == known.encode(long)


def test_where_a_token_reaches_across_a_space_nothing_is_cut():
    across = tokenizer(byte_level, "cat sat")
    long = "a cat sat " * 500
    assert LongTexts(across).head(long, 5, special=True) == across.encode(long)
    assert len(LongTexts(tokenizer(byte_level, "<|begin▁of|>")).head(long, 5, special=True)) < 100


@pytest.mark.parametrize("kind", [byte_level, llama3])
def test_a_text_of_too_many_characters_is_refused_before_it_is_tokenised(kind):
    counting = Counting(tokenizer(kind))
    encoder = PromptEncoder(counting, max_model_len=LIMIT)
    longest = max(map(len, counting.get_vocab()))
    assert encoder.encode("a" * 10).token_ids  # what is found out once has been
    encoder._texts.longest_token  # noqa: B018
    counting.characters = 0
    with pytest.raises(PromptError, match=f"{LIMIT * longest + 1} characters, more than the {LIMIT} tokens"):
        encoder.encode("x" * (LIMIT * longest + 1))
    assert counting.characters == 0
    with pytest.raises(PromptError, match=f"prompt has {LIMIT * longest + 2} tokens"):
        encoder.encode("x" * (LIMIT * longest))


def test_a_text_of_too_many_tokens_is_refused_by_its_beginning():
    counting = Counting(tokenizer(byte_level, "<|" + "long" * 2000 + "|>"))
    encoder = PromptEncoder(counting, max_model_len=LIMIT)
    encoder._texts.longest_token  # noqa: B018
    counting.characters = 0
    with pytest.raises(PromptError, match=f"prompt has more than {LIMIT} tokens, which is the limit: "):
        encoder.encode(text(0))
    assert counting.characters < 100 + 20 * LIMIT


def lossy():
    known = {
        "white space is dropped": (None, pre_tokenizers.WhitespaceSplit()),
        "white space is collapsed": (normalizers.Replace(Regex(r"\s+"), "▁"), None),
        "controls are dropped": (normalizers.Replace(Regex(r"\p{Cc}"), ""), pre_tokenizers.ByteLevel()),
        "accents are dropped": (
            normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
            pre_tokenizers.ByteLevel(),
        ),
    }
    return [pytest.param(lambda parts=parts: parts, id=name) for name, parts in known.items()]


@pytest.mark.parametrize("kind", lossy())
def test_a_tokenizer_that_drops_characters_has_no_longest_token(kind):
    assert LongTexts(tokenizer(kind)).longest_token is None


def test_nor_has_one_with_unknown_words_or_a_special_token_that_takes_white_space():
    words = tokenizer(
        lambda: (None, pre_tokenizers.ByteLevel()), model=models.WordPiece, trainer=trainers.WordPieceTrainer
    )
    assert LongTexts(words).longest_token is None
    taking = tiny_models.tokenizer()
    assert LongTexts(taking).longest_token == len("<|assistant|>")
    taking.add_tokens(AddedToken("<mask>", lstrip=True))
    assert LongTexts(taking).longest_token is None
    long = " " * 5000 + "<mask>"
    assert len(PromptEncoder(taking, max_model_len=LIMIT).encode(long).token_ids) == 1
