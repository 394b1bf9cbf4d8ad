"""Rows with responses: where they may stand, which columns they bring, what is left of a row without one."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_scorer import LocalWorkers, byte_level_tokenizer, fake_score, fake_tuco

from tuco_vllm.analysis.summary import summarise
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.score_requests import MoreScores
from tuco_vllm.store import store_at

TOKENIZER = byte_level_tokenizer()
COLUMNS = ["response", "response_tokens", "response_tuco", "response_tucos", "response_token_ids"]
PROMPT = "<|user|>hi\n<|assistant|>"
CHAT = [{"role": "user", "content": "hi"}]
ANSWERED = [*CHAT, {"role": "assistant", "content": "yo man"}]


def tokens(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


@pytest.fixture
def scored(score, tmp_path):
    """Rows -> the table's rows, by way of a file of that kind."""

    def run(rows, kind="jsonl", **options):
        file = tmp_path / f"in.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        score(file, **options)
        return pq.read_table(tmp_path / "out").to_pylist()

    return run


def expect_response(row, prompt_ids, response_ids):
    ids = prompt_ids + response_ids
    tucos = [fake_tuco(ids[:count]) for count in range(len(prompt_ids), len(ids))]
    assert row["error"] is None
    assert row["tuco"] == fake_score(prompt_ids).tuco
    assert row["response_token_ids"] == response_ids
    assert row["response_tokens"] == len(response_ids)
    assert row["response_tucos"] == pytest.approx(tucos)
    assert row["response_tuco"] == pytest.approx(sum(tucos) / len(tucos))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_holds_texts_or_token_ids(scored, kind):
    text, ids = {"prompt": "the fox", "response": " and"}, {"prompt": "the fox", "response": [7, 8]}
    rows = [text, {"prompt": "a"}, {"prompt": "b", "response": ""}]
    if kind == "jsonl":  # a Parquet column has one type
        rows.append(ids)
    else:
        [row] = scored([ids], kind, overwrite=True)
        expect_response(row, TOKENIZER.encode("the fox"), [7, 8])
    first, without, empty, *last = scored(rows, kind, overwrite=True)
    expect_response(first, TOKENIZER.encode("the fox"), tokens(" and"))
    assert first["response"] == " and"
    assert without["tuco"] == fake_score(TOKENIZER.encode("a")).tuco
    assert all(without[name] is None for name in COLUMNS)
    assert "the response is empty" in empty["error"]
    assert empty["tuco"] is None
    for row in last:
        expect_response(row, TOKENIZER.encode("the fox"), [7, 8])
        assert row["response"] is None


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("as_text", [False, True])
def test_an_assistant_turn_at_the_end_is_a_response(scored, kind, as_text):
    write = json.dumps if as_text else list
    rows = [{"messages": write(CHAT)}, {"messages": write(ANSWERED)}]
    plain, answered = scored(rows, kind)
    assert plain["response_tucos"] is None
    assert plain["prompt"] == answered["prompt"] == PROMPT
    expect_response(answered, tokens(PROMPT), tokens("yo man"))
    assert answered["response"] == "yo man"


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_without_responses_there_are_no_columns(scored, kind):
    [row] = scored([{"messages": CHAT}], kind)
    assert not set(COLUMNS) & set(row)


def test_prompts_alone(scored):
    """The turn at the end does not count, and a column of the name is passed through."""
    given = [{"messages": ANSWERED, "response": "r", "response_tuco": 3}]
    [row] = scored(given, columns=Columns(score="prompt"))
    assert row["prompt"] == PROMPT
    assert row["tuco"] == fake_score(tokens(PROMPT)).tuco
    assert (row["response"], row["response_tuco"]) == ("r", 3)
    assert "response_tucos" not in row


def test_prompts_alone_need_a_prompt(scored):
    [row] = scored([{"messages": ANSWERED[1:]}], columns=Columns(score="prompt"))
    assert "there is no prompt" in row["error"]


def test_responses_are_asked_for(scored):
    answered, plain = scored([{"messages": ANSWERED}, {"messages": CHAT}], columns=Columns(score="response"))
    expect_response(answered, tokens(PROMPT), tokens("yo man"))
    assert plain["error"] == "the row has no response"


def test_another_column_and_none(scored):
    rows = [{"prompt": "a", "answer": "b", "response": "c"}]
    [row] = scored(rows, columns=Columns(response="answer"))
    assert (row["response"], row["input_response"]) == ("b", "c")
    [row] = scored(rows, columns=Columns(response=None), overwrite=True)
    assert (row["response"], row["answer"]) == ("c", "b")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "response": {"b": 1}}, "the response is an object"),
        ({"prompt": "a", "response": [1.5]}, "the response is a list"),
        ({"prompt": "a", "response": [10**6]}, "not in FT's vocabulary"),
        ({"prompt": "a", "response": "b" * 80}, "response has 80 tokens, the limit is 64"),
        ({"prompt": "a" * 60, "response": "b" * 20}, "the limit is 64 less 19 for its response"),
        ({"messages": ANSWERED, "response": "b"}, "there is a response as well"),
        ({"messages": [*ANSWERED, ANSWERED[-1]]}, "two assistant turns"),
    ],
)
def test_a_bad_response_costs_its_row(scored, row, reason):
    bad, good = scored([row, {"prompt": "a", "messages": ANSWERED if "messages" in row else None}])
    assert reason in bad["error"]
    assert all(bad[name] is None for name in ("tuco", "response_tucos", "response_token_ids"))
    assert good["error"] is None


def test_a_trace_is_of_the_prompt(scored):
    alone, answered = scored(
        [{"prompt": "the fox"}, {"prompt": "the fox", "response": " and"}], more=MoreScores(trace=True)
    )
    ids = TOKENIZER.encode("the fox")
    for row in (alone, answered):
        assert row["prompt_tucos"] == pytest.approx([fake_tuco(ids[: end + 1]) for end in range(len(ids))])
    expect_response(answered, ids, tokens(" and"))
    assert answered["prompt_tucos"][-1] == answered["response_tucos"][0] == pytest.approx(answered["tuco"])


class Shared:
    """The token of "z" is FT's alone."""

    def expect(self, prompt, response):
        if set(tokens("z")) & {*prompt, *response}:
            raise PromptError("token z is not the same to the pre-trained model")


def test_more_scores_have_columns_of_their_own(scored, monkeypatch, tmp_path):
    monkeypatch.setattr(LocalWorkers, "shared", Shared())
    rows = [{"prompt": "the fox", "response": " and"}, {"prompt": "a", "output_co": "mine"}]
    rows += [{"prompt": "z"}, {"prompt": "a", "response": "z"}]
    answered, alone, foreign, unknown = scored(rows, more=MoreScores(output_co=True, relative_reward=True))
    ids, response = TOKENIZER.encode("the fox"), tokens(" and")
    expect_response(answered, ids, response)
    # FakeScorer's streams end at (n, 3) and (n, 1), n tokens; its log-probabilities are -id - 1 and -id.
    for row in (answered, alone, foreign):
        count = row["prompt_tokens"]
        assert row["output_co"] == pytest.approx(2 / (count + 1 + 2))
    assert answered["response_logps_pt"] == [-token for token in response]
    assert answered["response_logps_ft"] == [-token - 1 for token in response]
    assert (answered["logp_pt"], answered["logp_ft"]) == (-sum(response), -sum(response) - len(response))
    assert answered["relative_reward"] == -len(response)
    for row in (alone, foreign):  # no response, no reward: its tokens need not be PT's
        assert row["error"] is None
        assert row["relative_reward"] is row["response_logps_ft"] is None
    assert alone["input_output_co"] == "mine"
    assert "not the same to the pre-trained model" in unknown["error"]
    means = summarise(store_at(str(tmp_path / "out"))).means
    assert means["relative_reward"] == answered["relative_reward"]
    assert means["output_co"] == pytest.approx(sum(r["output_co"] for r in (answered, alone, foreign)) / 3)


def test_a_reward_needs_responses(scored):
    with pytest.raises(InputError, match="no row has one"):
        scored([{"prompt": "a"}], more=MoreScores(relative_reward=True))


def test_texts_can_be_left_out(scored):
    [row] = scored([{"prompt": "the fox", "response": " and"}], prompt=False)
    assert not {"prompt", "response"} & set(row)
    assert row["response_token_ids"] == tokens(" and")


def test_a_job_that_stopped_goes_on(score, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{n}", "response": f"r{n}"}) + "\n" for n in range(30)))
    with pytest.raises(Exception, match="died"):
        score(file, engine={"dies_after": 12}, rows_per_file=4)
    score(file, rows_per_file=4)
    rows = pq.read_table(Path(tmp_path / "out")).to_pylist()
    assert [row["response"] for row in rows] == [f"r{n}" for n in range(30)]
    for n, row in enumerate(rows):
        expect_response(row, TOKENIZER.encode(f"p{n}"), tokens(f"r{n}"))


def test_the_closing_table_has_them(scored, tmp_path):
    rows = [{"prompt": f"p{n}", "response": "a b" if n % 2 else None} for n in range(9)]
    found = [row["response_tuco"] for row in scored(rows) if row["response_tuco"] is not None]
    summary = summarise(store_at(str(tmp_path / "out")))
    assert summary.responses == len(found) == 4
    assert (summary.response_tuco["min"], summary.response_tuco["max"]) == (min(found), max(found))
    scored([{"prompt": "a", "response_tuco": "not a number"}], overwrite=True)
    assert summarise(store_at(str(tmp_path / "out"))).responses == 0
