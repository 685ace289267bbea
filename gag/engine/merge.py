"""Write a domain's expert as a model of its own, for servers that load no adapter."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from gag.errors import SettingsError
from gag.models.experts import ADAPTER
from gag.models.loading import load_backbone
from gag.project.domain import load_domain
from gag.project.project import Project


def merge_expert(project: Project, name: str, out: Path) -> None:
    """Write the weights of a domain's expert: its adapter merged into the backbone, or as they were tuned.

    Args:
        project: whose domain it is.
        name: of the domain.
        out: folder to write; it must not be there.

    Raises:
        ArtifactError: the domain is not whole.
        SettingsError: the folder is there already.
    """
    if out.exists():
        raise SettingsError(f"{out} is there already; name a new folder")
    expert = load_domain(project.domain(name)).expert
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".merging-") as beside:
        whole = Path(beside) / out.name
        if (expert / ADAPTER).is_file():
            from peft import PeftModel

            backbone = load_backbone(project.settings.expert, project.root)
            tuned: Any = PeftModel.from_pretrained(backbone.model, str(expert))
            tuned.merge_and_unload().save_pretrained(whole)
            backbone.tokenizer.save_pretrained(whole)
        else:
            shutil.copytree(expert, whole)
        whole.rename(out)
