"""MMLU: CSV files -> questions with examples before them, as Hendrycks et al. (2021) and the paper ask them.

A file has a header (subject, question, A, B, C, D, answer, in any order), or is one of the original files
without one (question, A, B, C, D, answer; the subject is in its name, ``anatomy_test.csv``). The prompt is

    The following are multiple choice questions (with answers) about {subject}.

    {question}
    A. {A}
    B. {B}
    C. {C}
    D. {D}
    Answer: {answer}

    ... the other examples, of the same subject, then the question up to "Answer:"

and the options are " A" to " D". In a chat that text is the user's turn, and the options are "A" to "D". (The
original program writes two spaces before the subject, by accident.) A cell is a text whatever it says: "None"
and "NA" are answers.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from tuco_vllm.errors import InputError
from tuco_vllm.sweep.files import DataFile, in_unicode
from tuco_vllm.sweep.question import Question, RowError, question_or_error, text_in, user_turn

LETTERS = ("A", "B", "C", "D")
_COLUMNS = ("question", *LETTERS, "answer")
_LONGEST_FIELD = 1 << 26

_CATEGORIES = {
    "STEM": "abstract_algebra astronomy college_biology college_chemistry college_computer_science "
    "college_mathematics college_physics computer_security conceptual_physics electrical_engineering "
    "elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science "
    "high_school_mathematics high_school_physics high_school_statistics machine_learning",
    "humanities": "formal_logic high_school_european_history high_school_us_history "
    "high_school_world_history international_law jurisprudence logical_fallacies moral_disputes "
    "moral_scenarios philosophy prehistory professional_law world_religions",
    "social sciences": "econometrics high_school_geography high_school_government_and_politics "
    "high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality "
    "professional_psychology public_relations security_studies sociology us_foreign_policy",
    "other": "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging "
    "management marketing medical_genetics miscellaneous nutrition professional_accounting "
    "professional_medicine virology",
}
GROUPS = {subject: category for category, names in _CATEGORIES.items() for subject in names.split()}
"""Subject -> one of Hendrycks' four categories, the group of its rows; of other subjects there is none."""

Examples = Mapping[str, Sequence[tuple[str, str]]]
"""Subject -> the examples' questions and what stands in the prompt for each."""


def mmlu_questions(
    files: Sequence[DataFile], examples: Examples, *, shots: int, chat: bool
) -> list[Question]:
    """The files' questions, each behind ``shots`` examples of its subject.

    Raises InputError for a file that is not such a CSV, and for a subject with too few examples.
    """
    rows = [(file, number, row) for file in files for number, row in _rows(file)]
    for subject in dict.fromkeys(row.get("subject", "") for _, _, row in rows):
        if subject.strip() and (count := len(examples.get(subject, ()))) < shots:
            raise InputError(
                f"--few-shot has {count} examples of {subject!r:.60} and {shots} are asked for: "
                "add some, or say --shots"
            )
    questions = []
    for file, number, row in rows:
        name, subject = f"{file.name}:{number}", row.get("subject", "")

        def read(row: Mapping[str, str] = row, name: str = name, subject: str = subject) -> Question:
            return _question(name, text_in(subject, "subject"), row, examples, shots, chat)

        questions.append(question_or_error(name, in_unicode(subject) or file.task, read))
    return questions


def read_examples(files: Sequence[DataFile]) -> Examples:
    """The examples of every subject, in the files' order. Raises InputError for a row that is none."""
    examples: dict[str, list[tuple[str, str]]] = {}
    for file in files:
        for number, row in _rows(file):
            try:
                subject = text_in(row.get("subject"), "subject")
                text, answer = _asked(row), _answer(row)
            except RowError as error:
                raise InputError(f"{file.path}, row {number}: {error}: an example has to be whole") from error
            examples.setdefault(subject, []).append((row["question"], f"{text} {LETTERS[answer]}\n\n"))
    return examples


def _question(
    name: str, subject: str, row: Mapping[str, str], examples: Examples, shots: int, chat: bool
) -> Question:
    text, answer = _asked(row), _answer(row)
    before = list(examples.get(subject, ()))[:shots]
    if any(question == row["question"] for question, _ in before):
        raise RowError("the question is one of the examples before it: it would be told its answer")
    about = subject.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    prompt = user_turn(head + "".join(shown for _, shown in before) + text, chat=chat)
    options = LETTERS if chat else tuple(f" {letter}" for letter in LETTERS)
    return Question(name, subject, GROUPS.get(subject), prompt, options, answer)


def _asked(row: Mapping[str, str]) -> str:
    if "" in row:
        raise RowError(row[""])
    question = text_in(row["question"], "question")
    choices = (f"{letter}. {text_in(row[letter], letter)}" for letter in LETTERS)
    return "\n".join([question, *choices, "Answer:"])


def _answer(row: Mapping[str, str]) -> int:
    answer = row["answer"].strip()
    if answer not in LETTERS:
        raise RowError(f"answer is {answer!r:.40}, not A, B, C or D")
    return LETTERS.index(answer)


def _rows(file: DataFile) -> Iterator[tuple[int, dict[str, str]]]:
    """The file's records by column; one with other fields than the header has them at "", in words."""
    records = _records(file)
    header = [name.strip() for name in records[0]] if records else []
    named = {name: place for place, name in enumerate(header) if name in ("subject", *_COLUMNS)}
    in_name = file.task
    for ending in ("_test", "_val", "_dev"):
        in_name = in_name.removesuffix(ending)
    if set(_COLUMNS) <= set(named):
        records = records[1:]
    elif len(header) == len(_COLUMNS) and header[-1] in LETTERS:
        header, named = [*_COLUMNS], {name: place for place, name in enumerate(_COLUMNS)}
    else:
        raise InputError(
            f"{file.path} is no MMLU file: it has neither a header with {', '.join(_COLUMNS)} nor six "
            "columns of which the last says A, B, C or D"
        )
    for number, fields in enumerate(records):
        if len(fields) != len(header):
            row = {"": f"the row has {len(fields)} fields, the file {len(header)}"}
            place = named.get("subject")
            known = place is not None and place < len(fields)
            yield number, row | {"subject": fields[place] if known and place is not None else in_name}
        else:
            yield number, {"subject": in_name} | {name: fields[place] for name, place in named.items()}


def _records(file: DataFile) -> list[list[str]]:
    csv.field_size_limit(_LONGEST_FIELD)  # the default refuses fields over 128 KiB; process-wide
    text = file.data.decode("utf-8-sig", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        return [fields for fields in reader if fields]
    except csv.Error as error:
        raise InputError(
            f"{file.path}, line {reader.line_num}: {error}: close the quote, and double quotes within a text"
        ) from error
