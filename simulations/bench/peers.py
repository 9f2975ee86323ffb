"""The peers: transformers on the weights that our engine runs, alone and with its own cross-vocabulary drafting."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.candidate_generator import AssistantVocabTranslatorCache

from ...client.decoding.continuation import Generation
from ...client.decoding.options import Options
from ...client.spelling.text import TextCodec
from ...common.errors import FleetdraftError
from ...common.metrics import DraftCounters
from ...common.shape import DecoderShape
from ...common.weights import Weights


class PeerError(FleetdraftError):
    """transformers stopped while it generated."""


def llama(shape: DecoderShape, weights: Weights) -> Any:
    """transformers' own model in float32, of this shape and with these weights."""
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.context_limit,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.rms_eps,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    model.to(torch.float32).eval()
    missing, unexpected = model.load_state_dict({n: torch.from_numpy(w) for n, w in weights.items()}, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"} or (missing and not shape.tied):
        raise ValueError(f"weights do not fit transformers' Llama: missing {missing}, unexpected {unexpected}")
    return model


@dataclass(frozen=True, kw_only=True)
class Peers:
    """Target and drafter in transformers, for one pair.

    target, drafter: causal language models. codec: the target's tokenizer, as our engine has it. tokenizers: of target
    and drafter as transformers reads them, ``None`` where both vocabularies are the same, so that plain assisted
    generation serves.
    """

    target: Any
    drafter: Any
    codec: TextCodec
    tokenizers: tuple[Any, Any] | None

    def alone(self, prompt: str, options: Options) -> Generation:
        """The target without a drafter."""
        return self._generate(prompt, options, {})

    def assisted(self, prompt: str, options: Options, own_budget: bool = False) -> Generation:
        """transformers' assisted generation.

        | vocabularies | greedy                             | sampling                          |
        |--------------|------------------------------------|-----------------------------------|
        | the same     | assisted generation                | assisted generation               |
        | different    | universal assisted generation, UAG | token-level intersection, TLI     |

        Args:
          own_budget: draft as many tokens as transformers does when it is not told, instead of ours.
        """
        settings = self.drafter.generation_config
        settings.num_assistant_tokens = None if own_budget else options.draft_tokens
        settings.num_assistant_tokens_schedule = None if own_budget else "constant"
        arguments: dict[str, Any] = {"assistant_model": self.drafter}
        if self.tokenizers is not None:
            target, drafter = self.tokenizers
            arguments |= {"tokenizer": target, "assistant_tokenizer": drafter}
            translator(target, drafter, self.target.config.vocab_size, self.drafter)
        return self._generate(prompt, options, arguments)

    def _generate(self, prompt: str, options: Options, arguments: Mapping[str, Any]) -> Generation:
        started = time.perf_counter()
        tokens = self.codec.prompt_tokens(prompt)
        ids = torch.tensor([tokens])
        torch.manual_seed(options.seed)
        with _quiet(), torch.inference_mode(), _calls(self.target) as target, _calls(self.drafter) as drafter:
            try:
                sequence = self.target.generate(
                    ids, attention_mask=torch.ones_like(ids), **self._config(options), **arguments
                )
            except Exception as error:  # whatever stops transformers is a figure of the benchmark, not its end
                raise PeerError(f"{type(error).__name__}: {error}") from error
        new = tuple(sequence[0, len(tokens) :].tolist())
        text = b"".join(self.codec.vocabulary.token_bytes[token] for token in new).decode(errors="replace")
        counters = _counters(new, len(tokens), target, drafter, time.perf_counter() - started)
        ended = bool(new) and new[-1] in self.codec.vocabulary.eos
        return Generation(text=text, token_ids=new, counters=counters, finish_reason="eos" if ended else "length")

    def _config(self, options: Options) -> dict[str, Any]:
        """The same settings in transformers' words."""
        sampling, ends = options.sampling, list(self.codec.vocabulary.eos)
        chosen: dict[str, Any] = {"do_sample": not sampling.greedy, "max_new_tokens": options.max_new_tokens}
        if not sampling.greedy:
            chosen |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        if ends:
            chosen |= {"eos_token_id": ends, "pad_token_id": ends[0]}
        return chosen


def open_tokenizers(target: Path, drafter: Path) -> tuple[Any, Any]:
    """transformers' tokenizers of two Hugging Face directories."""
    first, second = (transformers.AutoTokenizer.from_pretrained(str(folder)) for folder in (target, drafter))
    return first, second


def translator(target: Any, drafter: Any, vocab_size: int, model: Any) -> Any:
    """The translator that transformers uses for TLI, put into its cache without pruning the drafter's head.

    The one that ``generate`` makes by itself prunes the head. In transformers 5.23 it keeps the logits in the order of
    ``get_vocab()``, which is none, and reads them by rising id: its q belongs to other tokens, so its output is not the
    target's. And where there is nothing to prune it stops: "no attribute 'assistant_overlap_token_ids'".

    Args:
      target, drafter: tokenizers.
      vocab_size: of the target.
      model: the drafter.
    """
    return AssistantVocabTranslatorCache.get_translator(
        target, drafter, vocab_size, assistant_model=model, assistant_prune_lm_head=False
    )


@contextmanager
def _calls(model: Any) -> Iterator[list[int]]:
    """How many tokens each call of a model read, while it is open."""
    lengths: list[int] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        lengths.append(int(ids.shape[1]))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


def _counters(
    new: tuple[int, ...], prompt: int, target: list[int], drafter: list[int], seconds: float
) -> DraftCounters:
    """What the calls tell: a target call reads one token that is settled and then its candidates.

    Each drafter call, also the one that reads the prompt, draws one draft token.
    """
    assisted = bool(drafter)
    drafted = sum(target) - prompt - (len(target) - 1) if assisted else 0
    return DraftCounters(
        prompts=1,
        tokens=len(new),
        target_calls=len(target),
        blocks=len(target) if assisted else 0,
        drafted=drafted,
        accepted=max(0, len(new) - len(target)) if assisted else 0,
        draft_tokens=len(drafter),
        drafter_calls=len(drafter),
        seconds=seconds,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' advice, which repeats with every text, off stderr."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
