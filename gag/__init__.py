"""Generation-Augmented Generation: private knowledge for a frozen language model, through injected vectors.

>>> from gag import GAG
>>> gag = GAG.open("my-project")
>>> gag.ask("Which support keeps platinum dispersed?").text
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gag.engine.answer import Answer, Knowledge
    from gag.engine.engine import GAG
    from gag.errors import GagError
    from gag.project.project import Project, load_project
    from gag.routing.router import Route

__version__ = "0.1.0"
__all__ = ["GAG", "Answer", "GagError", "Knowledge", "Project", "Route", "load_project"]
_HOME = {
    "GAG": "engine.engine",
    "Answer": "engine.answer",
    "GagError": "errors",
    "Route": "routing.router",
    "Knowledge": "engine.answer",
    "Project": "project.project",
    "load_project": "project.project",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import gag` stays light."""
    if name not in _HOME:
        raise AttributeError(f"module 'gag' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"gag.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
