"""From files to questions: every kind of data, and what strangers put into it."""

import json

import pytest

from tuco_vllm.errors import InputError
from tuco_vllm.sweep.datasets import Asking, drawn, read_questions
from tuco_vllm.sweep.question import Question

HEADER = "subject,question,A,B,C,D,answer\n"
ROW = 'anatomy,"Which, of\nthese?",None,NA,"a ""quoted"" one",4,C\n'
DEV = HEADER + "".join(f"anatomy,Example {n}?,1,2,3,4,{letter}\n" for n, letter in enumerate("ABCDA"))


def read(tmp_path, kind, name, text, **asking):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_questions(kind, [str(path)], Asking(**asking))[0]


def own(tmp_path, *lines, **asking):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return read(tmp_path, "jsonl", "own.jsonl", "\n".join(lines), **asking)


@pytest.fixture
def dev(tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "dev.csv").write_text(DEV)
    return (str(tmp_path / "few" / "dev.csv"),)


GOOD = {"prompt": "Is it?", "options": [" Yes", " No"], "answer": 1, "task": "t", "group": "g", "id": 7}


def test_a_row_of_our_own_format(tmp_path):
    [question] = own(tmp_path, GOOD)
    assert question == Question("7", "t", "g", "Is it?", (" Yes", " No"), 1)
    [named] = own(tmp_path, {"prompt": "Is it?", "options": ["a", "b"], "answer": "b"})
    assert (named.id, named.task, named.group, named.answer) == ("own.jsonl:0", "own", None, 1)


def test_a_prompt_is_the_users_turn_in_a_chat_and_messages_are_what_they_are(tmp_path):
    assert own(tmp_path, GOOD, chat=True)[0].prompt == [{"role": "user", "content": "Is it?"}]
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    row = {**GOOD, "prompt": None, "messages": messages}
    assert own(tmp_path, row)[0].prompt == own(tmp_path, row, chat=True)[0].prompt == messages


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": None}, "prompt is null"),
        ({"prompt": 3}, "prompt is a number"),
        ({"prompt": "\ud800"}, "prompt is not UTF-8 text"),
        ({"messages": [{"role": "user", "content": "u"}]}, "which is asked?"),
        ({"prompt": None, "messages": []}, "messages is not a list of messages"),
        ({"prompt": None, "messages": ["u"]}, "messages is not a list of messages"),
        (
            {"prompt": None, "messages": [{"role": "assistant", "content": "u"}]},
            "ends with an assistant turn",
        ),
        ({"options": "ab"}, "options is a string, not a list"),
        ({"options": ["a"]}, "options has 1 entries"),
        ({"options": [str(n) for n in range(129)]}, "options has 129 entries"),
        ({"options": ["a", None]}, "option 1 is null"),
        ({"answer": 2}, "options count from 0 to 1"),
        ({"answer": -1}, "options count from 0 to 1"),
        ({"answer": True}, "answer is a boolean"),
        ({"answer": float("nan")}, "answer is a number, not the number of an option"),
        ({"answer": 0.0}, "answer is a number, not the number of an option"),
        ({"answer": " Maybe"}, "not one of the options"),
        ({"answer": " Yes", "options": [" Yes", " Yes"]}, "not one of the options"),
        ({"answer": 10**400}, "options count from 0 to 1"),
        ({"task": 1.5}, "task is a number"),
        ({"task": " "}, "task is empty"),
        ({"group": "\udc00"}, "group is not UTF-8 text"),
        ({"id": "i" * 201}, "id has 201 characters"),
    ],
)
def test_an_odd_row_costs_itself_only(tmp_path, change, reason):
    odd, good = own(tmp_path, {**GOOD, **change}, GOOD)
    assert reason in odd.error
    assert good.error is None
    json.dumps(odd.task).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "a list, not an object"),
        ("3", "a number, not an object"),
        ("[" * 100_000, "not JSON"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
    ],
)
def test_an_odd_line_costs_itself_only(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    odd, good = read(tmp_path, "jsonl", "x.jsonl", line + b"\n\n" + json.dumps(GOOD).encode())
    assert reason in odd.error
    assert (good.error, odd.id) == (None, "x.jsonl:0")


def test_where_no_row_can_be_asked_the_first_reason_is_told(tmp_path):
    with pytest.raises(InputError, match=r"not one of 2 rows is jsonl.*options is null"):
        own(tmp_path, {"prompt": "a"}, {"prompt": "b"})
    with pytest.raises(InputError, match="there is no row"):
        own(tmp_path, "", " ")


def test_mmlu_is_asked_in_hendrycks_template(tmp_path, dev):
    [question] = read(tmp_path, "mmlu-csv", "t.csv", HEADER + ROW, few_shot=dev)
    examples = "".join(
        f"Example {n}?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: {letter}\n\n" for n, letter in enumerate("ABCDA")
    )
    assert question.prompt == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        + examples
        + "Which, of\n"
        'these?\nA. None\nB. NA\nC. a "quoted" one\nD. 4\nAnswer:'
    )
    assert (question.options, question.answer) == ((" A", " B", " C", " D"), 2)
    assert (question.task, question.group, question.id) == ("anatomy", "other", "t.csv:0")


def test_mmlu_in_a_chat_and_without_examples(tmp_path, dev):
    [question] = read(tmp_path, "mmlu-csv", "t.csv", HEADER + ROW, shots=0, chat=True)
    assert question.options == ("A", "B", "C", "D")
    assert question.prompt[0]["content"].startswith(
        "The following are multiple choice questions (with answers) about anatomy.\n\nWhich, of"
    )
    [two] = read(tmp_path, "mmlu-csv", "t.csv", HEADER + ROW, few_shot=dev, shots=2)
    assert two.prompt.count("Answer:") == 3


def test_an_original_file_has_no_header_and_its_subject_in_its_name(tmp_path):
    dev = tmp_path / "high_school_physics_dev.csv"
    dev.write_text("E?,1,2,3,4,A\n")
    [question] = read(
        tmp_path, "mmlu-csv", "high_school_physics_test.csv", "Q?,5,6,7,8,D\n", few_shot=(str(dev),), shots=1
    )
    assert (question.task, question.group, question.answer) == ("high_school_physics", "STEM", 3)
    assert "about high school physics.\n\nE?\nA. 1" in question.prompt


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("anatomy,Q?,1,2,3,4,E", "answer is 'E'"),
        ("anatomy,Q?,1,2,3,4,", "answer is ''"),
        ("anatomy,Q?,1,2,3,A", "the row has 6 fields, the file 7"),
        ("anatomy,Q?,1,,3,4,A", "B is empty"),
        ("anatomy,,1,2,3,4,A", "question is empty"),
        (",Q?,1,2,3,4,A", "subject is empty"),
        ("anatomy,Example 3?,1,2,3,4,A", "one of the examples before it"),
    ],
)
def test_an_odd_row_of_mmlu_costs_itself_only(tmp_path, dev, row, reason):
    odd, good = read(tmp_path, "mmlu-csv", "t.csv", HEADER + row + "\n" + ROW, few_shot=dev)
    assert reason in odd.error
    assert good.error is None


def test_bytes_that_are_no_text_cost_their_row(tmp_path, dev):
    text = HEADER.encode() + b"anatomy,Q\xff?,1,2,3,4,A\n" + ROW.encode()
    odd, good = read(tmp_path, "mmlu-csv", "t.csv", text, few_shot=dev)
    assert "question is not UTF-8" in odd.error
    assert good.error is None


@pytest.mark.parametrize(
    ("text", "asking", "message"),
    [
        (HEADER + ROW, {}, "mmlu-csv is asked with 5 examples: name their file by --few-shot"),
        (
            HEADER + ROW,
            {"shots": 6, "few": True},
            "--few-shot has 5 examples of 'anatomy' and 6 are asked for",
        ),
        (HEADER + "law,Q?,1,2,3,4,A\n", {"few": True}, "--few-shot has 0 examples of 'law'"),
        ("question,answer\nQ?,A\n", {"few": True}, "is no MMLU file"),
        ("", {"few": True}, "is no MMLU file"),
        (HEADER, {"few": True}, "there is no row"),
        (HEADER + 'anatomy,"Q?,1,2,3,4,A\n', {"few": True}, "close the quote"),
    ],
)
def test_a_file_that_is_no_mmlu_is_refused(tmp_path, dev, text, asking, message):
    few_shot = dev if asking.pop("few", False) else ()
    with pytest.raises(InputError, match=message.replace("(", "\\(")):
        read(tmp_path, "mmlu-csv", "t.csv", text, few_shot=few_shot, **asking)


def test_an_example_that_is_not_whole_is_refused(tmp_path):
    (tmp_path / "dev.csv").write_text(HEADER + "anatomy,Q?,1,2,3,4,X\n")
    with pytest.raises(InputError, match=r"dev\.csv, row 0: answer is 'X'"):
        read(tmp_path, "mmlu-csv", "t.csv", HEADER + ROW, few_shot=(str(tmp_path / "dev.csv"),), shots=1)


MWE = {
    "question": 'Would you?\n"x"',
    "answer_matching_behavior": " No",
    "answer_not_matching_behavior": " Yes",
}


def test_model_written_evaluations(tmp_path):
    text = json.dumps(MWE) + "\n" + json.dumps({**MWE, "answer_matching_behavior": " Yes"})
    good, bad = read(tmp_path, "mwe-jsonl", "narcissism.jsonl", text)
    assert good == Question(
        *("narcissism.jsonl:0", "narcissism", None),
        'Human: Would you?\n"x"\n\nAssistant:',
        (" Yes", " No"),
        1,
    )
    assert "are the same" in bad.error
    [chat] = read(tmp_path, "mwe-jsonl", "narcissism.jsonl", json.dumps(MWE), chat=True)
    assert chat.prompt == [{"role": "user", "content": MWE["question"]}]
    assert (chat.options, chat.answer) == (("Yes", "No"), 1)


def test_the_order_of_two_answers_does_not_say_which_matches(tmp_path):
    turned = {**MWE, "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    one, other = read(tmp_path, "mwe-jsonl", "n.jsonl", json.dumps(MWE) + "\n" + json.dumps(turned))
    assert one.options == other.options
    assert (one.answer, other.answer) == (1, 0)


def test_files_globs_and_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "c.txt", "sub/a.jsonl"):
        (tmp_path / name).write_text(json.dumps({**GOOD, "id": None, "task": None}) + "\n")

    def ids(*inputs):
        return [question.id for question in read_questions("jsonl", inputs, Asking())[0]]

    assert ids(str(tmp_path)) == ["a.jsonl:0", "b.jsonl:0"]
    assert ids(str(tmp_path / "*.jsonl"), str(tmp_path / "b.jsonl")) == ["a.jsonl:0", "b.jsonl:0"]
    assert ids(str(tmp_path / "sub/a.jsonl"), str(tmp_path / "a.jsonl")) == ["sub/a.jsonl:0", "a.jsonl:0"]
    for missing in ("nothing.jsonl", "*.nothing", "x" * 5000):
        with pytest.raises(InputError, match=r"no such file|cannot read"):
            ids(str(tmp_path / missing))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.jsonl file in it"):
        ids(str(tmp_path / "empty"))


def test_a_limit_is_of_each_task_and_draws_the_same_rows_each_time():
    rows = [Question(str(n), "ab"[n % 2]) for n in range(100)]
    few = drawn(rows, 10)
    assert [sum(row.task == task for row in few) for task in "ab"] == [10, 10]
    assert few == drawn(rows, 10)
    assert [int(row.id) for row in few] == sorted(int(row.id) for row in few)
    assert {row.id for row in few} != {row.id for row in rows[:20]}
    assert drawn([row for row in rows if row.task == "a"], 10) == [row for row in few if row.task == "a"]
    assert drawn(rows, 1000) == rows
