"""Edda, with the pool that its documentation advises for production."""

from __future__ import annotations

from edda import EddaApp, WorkflowContext, activity, workflow

__all__ = ["EddaContestant"]

POOL_SIZE, OVERFLOW = 20, 40


@activity
async def step(ctx: WorkflowContext, number: int) -> int:  # noqa: ARG001
    """Do what every contestant's step does: nothing."""
    return number + 1


@workflow
async def work(ctx: WorkflowContext, number: int, steps: int) -> int:
    """Call the step, over and over."""
    for _ in range(steps):
        number = await step(ctx, number)
    return number


class EddaContestant:
    """Runs workflows with Edda.

    Args:
        url: Its database.
    """

    def __init__(self, url: str) -> None:
        self._app = EddaApp(
            service_name="benchmarks",
            db_url=url.replace("postgresql://", "postgresql+asyncpg://"),
            pool_size=POOL_SIZE,
            max_overflow=OVERFLOW,
        )

    async def open(self) -> None:
        """Create the tables, and the first workflow alone: many first ones at once collide."""
        await self._app.initialize()
        await self.run(1, 0)

    async def close(self) -> None:
        """Stop."""
        await self._app.shutdown()

    async def run(self, steps: int, number: int) -> str:
        """Run a workflow to its end; to read its result would be one query more."""
        return await work.start(number=number, steps=steps)
