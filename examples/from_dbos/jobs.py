"""Starting workflows from endpoints: the response comes at once, and the work continues."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from fastapi import FastAPI

from asgi_durable import Durable
from asgi_durable_fastapi import install

SECONDS = float(os.environ.get("JOB_SECONDS", "10"))

app = FastAPI()
durable = Durable()
install(app, durable)


@app.post("/jobs")
async def create_job(job_data: dict[str, Any]) -> dict[str, str]:
    """Start a workflow in the background."""
    handle = await durable.start_workflow(process_job, job_data)
    return {"workflow_id": handle.workflow_id, "status": "started"}


@app.get("/jobs/{workflow_id}")
async def get_job_status(workflow_id: str) -> dict[str, Any]:
    """Look at a workflow by its id."""
    handle = await durable.retrieve_workflow(workflow_id)
    status = await handle.get_status()
    return {
        "workflow_id": workflow_id,
        "status": status.status,
        "result": await handle.get_result() if status.status == "SUCCESS" else None,
    }


@durable.workflow
async def process_job(job_data: dict[str, Any]) -> dict[str, Any]:
    """Work for a while."""
    await asyncio.sleep(SECONDS)
    return {"processed": job_data}
