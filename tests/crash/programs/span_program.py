"""A program that dies in a chosen step: run by ``test_spans_across_a_crash``.

Arguments: the folder for the database and the spans; ``start``, ``keyed`` or ``go on``; the step
to die in, or ``-``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from support.asgi import answer, exchange, http_scope, keyed

from asgi_durable import Durable, Telemetry

FOLDER = Path(sys.argv[1])
WHAT = sys.argv[2]
DIE_IN = sys.argv[3]


class FileExporter(SpanExporter):
    """Writes each span into a file at once."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append a line for each."""
        with (FOLDER / "spans").open("a") as file:
            for span in spans:
                context = span.get_span_context()
                line = {
                    "name": span.name,
                    "trace": context.trace_id,
                    "id": context.span_id,
                    "parent": span.parent.span_id if span.parent else 0,
                    "links": {
                        (link.attributes or {})["durable.link"]: link.context.span_id
                        for link in span.links
                    },
                    "run": (span.attributes or {}).get("durable.run"),
                    "pid": os.getpid(),
                }
                file.write(json.dumps(line) + "\n")
        return SpanExportResult.SUCCESS


provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(FileExporter()))
durable = Durable(f"sqlite:///{FOLDER}/test.db", telemetry=Telemetry(tracer_provider=provider))


@durable.step(name="reserve")
async def reserve() -> None:
    """Do one thing."""


@durable.step(name="charge")
async def charge() -> None:
    """Do another thing, or die."""
    if DIE_IN == "charge":
        os.kill(os.getpid(), signal.SIGKILL)


@durable.workflow(name="order")
async def order() -> None:
    """Do both."""
    await reserve()
    await charge()


async def handle(scope, receive, send) -> None:
    """Start the workflow in the background, or do both here."""
    if WHAT == "start":
        await durable.options(workflow_id="w").start_workflow(order)
    else:
        await reserve()
        await charge()
    await answer(send)


async def main() -> None:
    """Send a request, or continue the workflow."""
    app = durable.wrap(handle)
    async with durable:
        if WHAT != "go on":
            await exchange(app, keyed() if WHAT == "keyed" else http_scope("POST"))
        if WHAT != "keyed":
            await (await durable.retrieve_workflow("w")).get_result()


asyncio.run(main())
