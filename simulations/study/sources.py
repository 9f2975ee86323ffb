"""Where the prompts of a study's task come from: a public data set, or two JSONL files. It knows no model."""

from dataclasses import dataclass
from pathlib import Path

from ...client.prompts import Prompt, read_prompts
from ...client.tasks import TASKS, renamed, train_prompts, unseen_prompts
from ...common.errors import ConfigError, PromptsError


@dataclass(frozen=True, kw_only=True)
class TaskTable:
    """One ``[[tasks]]``. Paths are relative to the study's file until the study is read.

    source: a name of ``client/tasks.py``, or ``jsonl``. directory: of its original files. train, unseen: the files of
    ``jsonl``. published: the column of ``published.toml``.
    """

    name: str
    source: str = "jsonl"
    directory: Path = Path()
    train: Path = Path()
    unseen: Path = Path()
    published: str = ""

    def __post_init__(self) -> None:
        if self.source not in (*TASKS, "jsonl"):
            raise ConfigError(f"source is {self.source!r}, expected one of {', '.join((*TASKS, 'jsonl'))}")
        given = {key for key in ("directory", "train", "unseen") if getattr(self, key) != Path()}
        expected = {"train", "unseen"} if self.source == "jsonl" else {"directory"}
        if given != expected:
            raise ConfigError(
                f"{self.name} has {', '.join(sorted(given)) or 'no files'}, expected {' and '.join(sorted(expected))} "
                f"of the source {self.source}"
            )

    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """All prompts to train on and all unseen ones, in the files' order.

        Guarantees:
          - No text is in both: what is unseen is left out of what is trained on (MBPP repeats a few).

        Raises:
          UserError: a file is missing or is not what its source says.
        """
        train, unseen = self._read()
        secret = {prompt.text for prompt in unseen}
        if not (kept := [prompt for prompt in train if prompt.text not in secret]):
            raise PromptsError(f"task {self.name!r} has no prompt to train on that is not among the unseen ones")
        return kept, unseen

    def _read(self) -> tuple[list[Prompt], list[Prompt]]:
        if self.source == "jsonl":
            return read_prompts(self.train), read_prompts(self.unseen)
        train, unseen = train_prompts(self.source, self.directory), unseen_prompts(self.source, self.directory)
        return renamed(train, self.name), renamed(unseen, self.name)
