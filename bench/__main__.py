"""`python -m bench`: drain, latency and growth, in pairs; a table, and `bench/results/latest.json`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.drain import Drain, Drained, Variant
from bench.earlier import add_earlier
from bench.floor import floor_of
from bench.latency import latency_at
from bench.measure import Meter, conditions, fsync_us, settled, steal_share
from bench.ratio import ratio
from cli.world import Place, World
from deploy.local.stack import LocalStack

RESULTS = Path("bench/results/latest.json")
QUIET = 0.8
"""Below this share of the cores a drain tells less about itself than about what it waited for."""
_console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: cases per drain of each variant, pairs, seconds of latency, earlier cases."""

    cases: int
    naive_cases: int
    pairs: int
    latency_s: float
    earlier: int
    seed: int


FULL = Plan(cases=10_000, naive_cases=250, pairs=5, latency_s=12, earlier=1_000_000, seed=1)
QUICK = Plan(cases=2_000, naive_cases=60, pairs=2, latency_s=4, earlier=20_000, seed=1)


def _say(line: str) -> None:
    _console.print(f"[dim]· {line}[/dim]", highlight=False)


class Bench:
    """Runs the whole measurement on worlds of its own under `.run/bench`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._worlds: list[World] = []

    async def run(self) -> dict[str, Any]:
        """Measure everything; raises Incomplete or Behind when a run was not correct."""
        before = conditions()
        try:
            fresh, place = await self._world("fresh")
            drains, report = await self._drains(fresh, place)
            report |= await self._latency(fresh, place)
            report["growth"] = await self._growth(drains)
        finally:
            for world in self._worlds:
                world.stop_stages()
                world.stop_stack()
                world.wipe()
        report["conditions"] = {
            **before,
            "load_average_after": [round(value, 2) for value in os.getloadavg()],
            "steal_share": steal_share(),
            "fsync_us": fsync_us(RESULTS.parent),
            "synchronous_commit": "on",
            "acks": "all",
            "plan": {name: getattr(self._plan, name) for name in Plan.__slots__},
        }
        return report

    async def _world(self, name: str) -> tuple[World, Place]:
        _say(f"starting Kafka and PostgreSQL for the world '{name}'")
        world = World(Path(".run/bench") / name)
        world.stop_stages()
        world.stop_stack()
        world.wipe()
        self._worlds.append(world)
        place = await asyncio.to_thread(world.start_stack)
        await world.prepare(place)
        return world, place

    def _drain(self, world: World, place: Place, variant: Variant) -> Drain:
        cases = self._plan.cases if variant == "product" else self._plan.naive_cases
        return Drain(world, place, Meter.of(LocalStack(world.folder)), variant, cases)

    async def _drains(self, world: World, place: Place) -> tuple[Drain, dict[str, Any]]:
        """Product and naive in pairs, order shuffled; one discarded run of each first."""
        variants: dict[Variant, Drain] = {
            "product": self._drain(world, place, "product"),
            "naive": self._drain(world, place, "naive"),
        }
        for name, drain in variants.items():
            _say(f"warming up: {name}")
            await drain.run()
        dice = random.Random(self._plan.seed)
        runs: dict[str, list[Drained]] = {"product": [], "naive": []}
        for pair in range(self._plan.pairs):
            order = list(variants)
            dice.shuffle(order)
            for name in order:
                done = await variants[name].run()
                runs[name].append(done)
                _tell(f"pair {pair + 1} of {self._plan.pairs}, {name}", done)
        cpu = [
            (fast.cost.cpu / fast.handled, slow.cost.cpu / slow.handled)
            for fast, slow in zip(runs["product"], runs["naive"], strict=True)
        ]
        product = [done.figures() for done in runs["product"]]
        _say("floor: the pieces that cannot be left out, one by one")
        await settled(place.database_url)
        floor = await floor_of(place, Meter.of(LocalStack(world.folder)))
        return variants["product"], {
            "floor": floor,
            "floor_share": round(floor["us_per_event"] / _median(product, "cpu_us_per_event"), 3),
            "cores_busy_share": _median(product, "cores_busy_share"),
            "handled_events_per_s": _median(product, "handled_events_per_s"),
            "cases_per_s": _median(product, "cases_per_s"),
            "cpu_ms_per_case": _median(product, "cpu_ms_per_case"),
            "cpu_us_per_event": _median(product, "cpu_us_per_event"),
            "cpu_ratio_vs_naive": ratio(cpu, self._plan.seed),
            "pss_mib": max(figures["pss_mib"] for figures in product),
            "wal_bytes_per_case": _median(product, "wal_bytes_per_case"),
            "router_cases_per_core_s": round(
                1e6 / statistics.median(figures["stage_us_per_case"]["router"] for figures in product)
            ),
            "runs": {name: [done.figures() for done in list_] for name, list_ in runs.items()},
        }

    async def _latency(self, world: World, place: Place) -> dict[str, Any]:
        _say("latency: waiting until the database has tidied up after the drains")
        await settled(place.database_url)
        world.start_stages(place)
        await world.wait_ready()
        found: dict[str, dict[str, float]] = {}
        for rate in (50, 200):
            times = found[str(rate)] = await latency_at(world, place, rate, self._plan.latency_s)
            _say(f"latency at {rate} cases/s: p50 {times['p50']} ms, p99 {times['p99']} ms")
        world.stop_stages()
        return {"latency_ms": found}

    async def _growth(self, empty: Drain) -> dict[str, Any]:
        """A world with many earlier cases beside the one without, in pairs."""
        world, place = await self._world("grown")
        full = self._drain(world, place, "product")
        _say("growth: making the first cases of the grown world")
        await full.run()
        added = await add_earlier(place, self._plan.earlier, _say)
        await full.run()
        dice = random.Random(self._plan.seed)
        pairs: list[tuple[Drained, Drained]] = []
        for pair in range(self._plan.pairs):
            runs: dict[str, Drained] = {}
            order = [("grown", full), ("empty", empty)]
            dice.shuffle(order)
            for name, drain in order:
                runs[name] = await drain.run()
                _tell(f"growth, pair {pair + 1} of {self._plan.pairs}, {name}", runs[name])
            pairs.append((runs["grown"], runs["empty"]))
        return {
            "earlier_cases": added,
            "cpu": ratio([(a.cost.cpu / a.cases, b.cost.cpu / b.cases) for a, b in pairs], self._plan.seed),
            "wal": ratio([(a.cost.wal / a.cases, b.cost.wal / b.cases) for a, b in pairs], self._plan.seed),
        }


def _tell(what: str, done: Drained) -> None:
    figures = done.figures()
    _say(
        f"{what}: {figures['handled_events_per_s']:,} handled events/s,"
        f" {figures['cpu_us_per_event']} µs CPU each (workers {figures['workers_us']},"
        f" PostgreSQL {figures['postgres_us']}, Kafka {figures['broker_us']})"
    )


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return round(float(statistics.median(row[name] for row in rows)), 3)


def _show(report: dict[str, Any]) -> None:
    table = Table(title="Speed and cost on this machine", title_justify="left")
    for column in ("what", "measured", "goal"):
        table.add_column(column)
    against = report["cpu_ratio_vs_naive"]
    table.add_row(
        "handled events per second, four stages", f"{report['handled_events_per_s']:,.0f}", "≥ 20,000"
    )
    table.add_row("cases per second", f"{report['cases_per_s']:,.0f}", "")
    table.add_row("CPU per case", f"{report['cpu_ms_per_case']} ms", "")
    table.add_row(
        "CPU per handled event, and its floor",
        f"{report['cpu_us_per_event']} µs, {report['floor']['us_per_event']} µs"
        f" ({report['floor_share']:.0%} of it)",
        "",
    )
    table.add_row(
        "CPU per handled event against naive",
        f"1/{1 / against['median']:.0f} (1/{1 / against['low']:.0f} … 1/{1 / against['high']:.0f})",
        "≤ 1/25",
    )
    for rate, goal in (("50", "≤ 20 / 60 ms"), ("200", "≤ 40 / 120 ms")):
        times = report["latency_ms"][rate]
        table.add_row(
            f"call to department at {rate} cases/s, p50 / p99", f"{times['p50']} / {times['p99']} ms", goal
        )
    table.add_row("memory of four stages under backlog", f"{report['pss_mib']} MiB PSS", "≤ 250 MiB")
    table.add_row(
        "cases per second of the router's own CPU, classifier on",
        f"{report['router_cases_per_core_s']:,}",
        "≥ 800",
    )
    table.add_row("write-ahead log per case", f"{report['wal_bytes_per_case']:,.0f} B", "")
    growth = report["growth"]
    for name in ("cpu", "wal"):
        table.add_row(
            f"{name} per case with {growth['earlier_cases']:,} earlier cases",
            f"× {growth[name]['median']} ({growth[name]['low']} … {growth[name]['high']})",
            "≤ × 1.1",
        )
    Console().print(table)
    busy = report["cores_busy_share"]
    if busy < QUIET:
        print(
            f"noisy: the drains kept only {busy:.0%} of the cores busy that they could use;"
            " read the ratios, not the events per second"
        )


def main() -> int:
    """Measure, print the table, keep the figures."""
    words = argparse.ArgumentParser(prog="make bench", description=__doc__)
    words.add_argument(
        "--quick", action="store_true", help="small and short: does it work, not how fast is it"
    )
    words.add_argument("--seed", type=int, default=1, help="shuffles the order within pairs")
    words.add_argument("--json", action="store_true", help="print the JSON instead of the table")
    given = words.parse_args()
    base = QUICK if given.quick else FULL
    plan = Plan(base.cases, base.naive_cases, base.pairs, base.latency_s, base.earlier, given.seed)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    started = datetime.now().astimezone()
    report = asyncio.run(Bench(plan).run())
    report["measured_at"] = started.isoformat(timespec="seconds")
    RESULTS.write_text(json.dumps(report, indent=2))
    if given.json:
        print(json.dumps(report))
    else:
        _show(report)
        print(f"all figures: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
