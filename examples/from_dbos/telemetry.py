"""Telemetry: spans of requests, runs and steps, and log lines, sent to an OTLP receiver."""

from __future__ import annotations

import logging
import os

from fastapi import FastAPI

from asgi_durable import Durable, Telemetry
from asgi_durable_fastapi import install

OTLP = os.environ.get("OTLP_URL", "http://localhost:4318")

app = FastAPI()
durable = Durable(
    telemetry=Telemetry(
        otlp_traces_endpoints=[f"{OTLP}/v1/traces"],
        otlp_logs_endpoints=[f"{OTLP}/v1/logs"],
        log_names=["asgi_durable", "shop"],
    )
)
install(app, durable)
logger = logging.getLogger("shop")


@durable.step
async def pack(item: str) -> str:
    """Pack an item; its span is below that of the workflow's run."""
    logger.warning("packing %s", item)
    return f"packed {item}"


@app.post("/parcels/{item}")
@durable.workflow
async def send_parcel(item: str) -> dict[str, str]:
    """Respond with what was packed."""
    return {"parcel": await pack(item)}
