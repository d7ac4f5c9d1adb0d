"""The load's processes: a job for one, or shared by several where one could not keep a machine of many cores busy."""

import dataclasses
import json
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from perf.builds import Build
from perf.load import FlowResult, Job, Result
from perf.machine import ROOT, Usage

COUNTED = ("tokens", "events", "tokens_before", "ended", "answers", "gaps", "arrivals", "unanswered", "errors")
"""Of a FlowResult: what several have together."""


def run(job: Job, build: Build, processes: int = 1) -> Result:
    """Have so many processes do the job, each for a part of its clients; raises RuntimeError when one fails."""
    with ThreadPoolExecutor(processes) as threads:
        return together(list(threads.map(lambda part: run_alone(part, build), parts(job, processes))))


def parts(job: Job, processes: int) -> Iterator[Job]:
    for number in range(processes):
        flows = [
            dataclasses.replace(
                flow,
                connections=flow.connections // processes + (number < flow.connections % processes),
                rate=flow.rate / processes,
                requests=flow.requests[number::processes] or flow.requests,
            )
            for flow in job.flows
        ]
        yield dataclasses.replace(job, flows=[flow for flow in flows if flow.connections or flow.rate], seed=number)


def run_alone(job: Job, build: Build) -> Result:
    done = subprocess.run(
        [build.python, "-m", "perf.load"],
        input=json.dumps(dataclasses.asdict(job)),
        cwd=ROOT,
        env=build.environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError("the load process failed")
    values = json.loads(done.stdout)
    values["usage"] = {role: Usage(**each) for role, each in values["usage"].items()}
    flows = values["flows"] = {name: FlowResult(**each) for name, each in values["flows"].items()}
    for flow in flows.values():
        flow.arrivals = [(moment, tokens) for moment, tokens in flow.arrivals]
    return Result(**values)


def together(results: Sequence[Result]) -> Result:
    """Of processes whose windows are as good as the same: what all counted, and what the first one saw of others."""
    first = results[0]
    loads = [result.usage["load"] for result in results]
    usage = first.usage | {"load": dataclasses.replace(first.usage["load"], cpu=sum(load.cpu for load in loads))}
    names = dict.fromkeys(name for result in results for name in result.flows)
    flows = {name: all_of([result.flows[name] for result in results if name in result.flows]) for name in names}
    return dataclasses.replace(
        first, usage=usage, lateness_p99=max(result.lateness_p99 for result in results), flows=flows
    )


def all_of(results: Sequence[FlowResult]) -> FlowResult:
    whole = FlowResult()
    for result in results:
        for name in COUNTED:
            setattr(whole, name, getattr(whole, name) + getattr(result, name))
        whole.first_error = whole.first_error or result.first_error
    whole.gaps.sort()
    whole.arrivals.sort()
    return whole
