"""When a learner trains what: the schedules by name. It trains nothing.

``LoRA`` is one training of the adapter; ``head`` one of the acceptance head, where there is one.
"""

from dataclasses import dataclass
from typing import Literal, get_args

Schedule = Literal["prompts", "joint", "interleaved", "idle"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """after_texts: the LoRA is trained at a text's end, once enough texts came; else somebody trains what is due.

    head_with_lora: the head after each training of the LoRA. head_between: the head after each other text.
    """

    after_texts: bool
    head_with_lora: bool
    head_between: bool


#: | schedule    | LoRA                    | head                       |
#: |-------------|-------------------------|----------------------------|
#: | prompts     | every so many texts     | never                      |
#: | joint       | every so many texts     | behind the LoRA            |
#: | interleaved | every so many texts     | after each text in between |
#: | idle        | when somebody says so   | behind the LoRA            |
#:
#: A learner that is given no head trains none: ``online.py`` gives none with ``prompts`` and ``idle``, where the
#: controller trains its own between blocks.
PLANS: dict[Schedule, Plan] = {
    "prompts": Plan(after_texts=True, head_with_lora=False, head_between=False),
    "joint": Plan(after_texts=True, head_with_lora=True, head_between=False),
    "interleaved": Plan(after_texts=True, head_with_lora=False, head_between=True),
    "idle": Plan(after_texts=False, head_with_lora=True, head_between=False),
}
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
