"""The settings of the remote engine: where the vLLM servers are."""

from gag.project.marks import Settings, computation


class RemoteSettings(Settings):
    """vLLM servers that run the models for `engine: remote`; this process holds no weights then."""

    base: tuple[str, ...] = computation(
        (), description="URLs of servers with the base, started with --enable-prompt-embeds"
    )
    expert: tuple[str, ...] = computation(
        (), description="URLs of servers with the expert backbone, started with --enable-lora"
    )
    experts: dict[str, tuple[str, ...]] = computation(
        {},
        description="domains whose expert has servers of its own, which run its weights (fully tuned, or "
        "written by `gag domains merge`), and their URLs",
    )
    encoder: str | None = computation(
        None,
        description="URL of a pooling server (MEAN) with the expert backbone, for `router.encoder.kind: "
        "expert`; none: the backbone is loaded here for that",
    )
    project: str | None = computation(
        None, description="the project's folder as the expert servers see it; none: as it is seen here"
    )
    states: str | None = computation(
        None, description="folder where the expert servers leave hidden states, for `readout.space: hidden`"
    )
    layers: tuple[int, ...] = computation(
        (), description="the layers whose states they leave, as they are started"
    )
    key_variable: str | None = computation(
        None, description="the environment variable of the servers' API key"
    )
    timeout: float = computation(60.0, gt=0, description="seconds without a token until a server is away")
