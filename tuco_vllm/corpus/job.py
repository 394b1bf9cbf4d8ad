"""What is to be scored and how it is to lie in the output, as one value; what of it makes it this job."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tuco_vllm.config import Checkpoint
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.prompts import PromptEncoder
from tuco_vllm.score_requests import NO_MORE, MoreScores


@dataclass(frozen=True)
class ScoreJob:
    """A ``tuco score``; defaults are the command line's."""

    inputs: tuple[str, ...]
    out: str
    """A local directory, or the URL of a place in an object store."""
    file_format: str = "auto"
    columns: Columns = field(default_factory=Columns)
    chat_template: str = "auto"
    system_prompt: str | None = None
    on_long: str = "error"
    max_model_len: int | None = None
    dtype: str = "auto"
    row_dtype: str = "auto"
    limit: int | None = None
    layers: bool = True
    prompt: bool = True
    more: MoreScores = NO_MORE
    other_fts: tuple[Checkpoint, ...] = ()
    """Other adapters of the pair's base, under which each row is scored too."""
    rows_per_file: int = 10_000
    overwrite: bool = False
    extend: bool = False
    """Whether files that are new to a job which is there may be added to it."""
    trust_remote_code: bool = False
    command: tuple[str, ...] = ()

    def encoder(self, tokenizer: Any, vocab_size: int | None) -> PromptEncoder:
        """The job's prompts -> ids of FT's tokens, of any length until an engine says what it holds."""
        return PromptEncoder(
            tokenizer,
            vocab_size=vocab_size,
            chat_template=self.chat_template,
            system_prompt=self.system_prompt,
            on_long=self.on_long,
        )

    def identity_settings(self, template_sha256: str | None) -> dict[str, Any]:
        """The settings that a row's output depends on, as JSON values."""
        return {
            "chat_template": "none" if self.chat_template == "none" else template_sha256,
            "template_on_strings": self.chat_template not in ("auto", "none"),
            "system_prompt": self.system_prompt,
            "on_long": self.on_long,
            "max_model_len": self.max_model_len,
            "dtype": self.dtype,
            "row_dtype": self.row_dtype,
            "columns": asdict(self.columns),
            "limit": self.limit,
            "layers": self.layers,
            "prompt": self.prompt,
            "trace": self.more.trace,
            # Named only where they are asked for: jobs that began before there were any can go on.
            **{name: True for name in ("output_co", "relative_reward") if getattr(self.more, name)},
            **({"other_fts": [ft.fingerprint for ft in self.other_fts]} if self.other_fts else {}),
        }

    def settings(self) -> dict[str, Any]:
        """All that was asked, for people, as JSON values."""
        plain = replace(self, other_fts=())
        left_out = ("out", "command", "more")
        settings = {name: value for name, value in asdict(plain).items() if name not in left_out}
        return settings | self.more._asdict() | {"other_fts": [ft.name for ft in self.other_fts]}
