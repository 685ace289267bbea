"""The settings of `gag serve`."""

from gag.project.marks import Settings, computation


class ServeSettings(Settings):
    """How a project is served over HTTP."""

    host: str = computation("127.0.0.1", description="address to listen at; 0.0.0.0: all, behind a proxy")
    port: int = computation(8080, ge=0, le=65535, description="0: any free one")
    keys: str | None = computation(
        None, description="file of keys (`gag serve --new-key`), relative to gag.yaml; none: all may ask"
    )
    waiting: int = computation(
        256, ge=1, description="questions that wait or are answered at most; more get 429"
    )
    prefill: int = computation(
        2048, ge=1, description="prompt tokens that join the running batch in one step, at most"
    )
    turns: int = computation(
        2, ge=1, le=2, description="user turns that are routed: 2 keeps a follow-up in its domain; 1 does not"
    )
    body_kb: int = computation(1024, ge=1, description="of a request, at most")
    drain_seconds: float = computation(
        30.0, ge=0, description="time to finish what was accepted, after a signal to stop"
    )
    ui: bool = computation(False, description="the playground at /ui, for people")
    cors: tuple[str, ...] = computation((), description="origins whose pages may ask")
    metrics_prefix: str = computation(
        "gag",
        pattern=r"[a-z][a-z0-9_]*",
        description="of names under /metrics; vllm: its dashboards work",
    )
