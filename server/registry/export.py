"""A release as a PEFT directory for others: the tensors bit for bit, without the names of those who made them."""

import shutil
from pathlib import Path

from ...common.errors import UserError
from ...common.files import directory_written_whole, write_json
from ...common.lora import ABOUT
from ...common.peft_format import CONFIG, TENSORS, read_object
from .catalogue import Catalogue


def export(catalogue: Catalogue, name: str, out: Path, base_model: str = "") -> None:
    """Writes what transformers with peft, and this project's ``--adapter``, can load; whole or not at all.

    Args:
      out: an older export is replaced.
      base_model: name or path of the drafter's base, for those who load the directory alone.

    Raises:
      RegistryError: the release is damaged.
      UserError: ``out`` holds something else, or lies in the registry.
    """
    if out.absolute().resolve().is_relative_to(catalogue.root.resolve()):
        raise UserError(f"{out} lies in the registry {catalogue.root}; choose another directory")
    lineage = catalogue.directories.check(name)
    source = catalogue.directories.root / name
    about, config = read_object(source / ABOUT), read_object(source / CONFIG)
    told = {key: getattr(lineage, key) for key in ("number", "round", "rule", "parent", "privacy")}
    with directory_written_whole(out, ABOUT) as scratch:
        shutil.copyfile(source / TENSORS, scratch / TENSORS)
        write_json(scratch / CONFIG, config | ({"base_model_name_or_path": base_model} if base_model else {}))
        write_json(
            scratch / ABOUT, {key: about[key] for key in ("schema", "base", "layout", "digest")} | {"release": told}
        )
