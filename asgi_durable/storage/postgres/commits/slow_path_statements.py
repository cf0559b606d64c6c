"""The statements of the slow path of a commit."""

from __future__ import annotations

from asgi_durable.storage import tables
from asgi_durable.storage.postgres.commits.cancel import CancelStatements
from asgi_durable.storage.postgres.rows import OWNED, PostgresNames, each_of, list_of
from asgi_durable.storage.writes import MAX_INLINE_BYTES

__all__ = ["SlowPathStatements"]


class SlowPathStatements:
    """SQL text for one schema."""

    def __init__(self, names: PostgresNames) -> None:
        workflows, steps = names.workflows, names.steps
        # True for a dead executor too, as long as a transaction that it began may still commit.
        owner_lives = (
            f"EXISTS (SELECT 1 FROM {names.fences} AS f WHERE f.executor_id = w.executor_id)"
        )
        found = each_of(workflows, "w.workflow_id = wanted.id")
        wanted = f"unnest($2::text[]) AS wanted(id) {found}"
        self.fence = names.fence("$1::text")
        # Sorted, so that two processes that want the same workflows wait and do not deadlock.
        self.lock = (
            f"SELECT target.workflow_id FROM {wanted} "
            f"JOIN {workflows} AS target ON target.ctid = w.place WHERE w.state = 'PENDING' "
            f"AND (w.executor_id IS NULL OR w.executor_id = $1 OR NOT {owner_lives}) "
            "ORDER BY target.workflow_id FOR NO KEY UPDATE OF target"
        )
        self.find = (
            f"SELECT {list_of(tables.workflows, 'w')}, {owner_lives} AS owner_lives "
            f"FROM unnest($1::text[]) AS wanted(id) {found}"
        )
        self.find_with_responses = _find_with_responses(names, found, owner_lives)
        self.take = _take(names, found)
        self.set_fingerprints = _set_fingerprints(names, found)
        # Also set on a finished workflow, as its outcome may be dropped and it may be resumed.
        self.set_last_spans = (
            f"UPDATE {workflows} AS target SET last_span = wanted.last_span "
            f"FROM unnest($2::text[], $3::text[]) AS wanted(id, last_span) {found} "
            "WHERE target.ctid = w.place AND w.executor_id = $1"
        )
        self.drop = _drop_failures(names)
        self.cancel = CancelStatements(names)
        place = "s.workflow_id = wanted.id AND s.step_number = wanted.step_number"
        self.find_steps = (
            f"SELECT {list_of(tables.steps, 's')} "
            "FROM unnest($1::text[], $2::int4[]) AS wanted(id, step_number) "
            f"{each_of(steps, place, 's')}"
        )
        self.find_chunks = _find_chunks(names)
        self.cut_chunks = _cut_chunks(names)
        owned = f"{wanted} WHERE target.ctid = w.place AND {OWNED}"
        # Any log is longer than -1 entries, so the next crash counts as the first.
        self.clear_crash_count = (
            f"UPDATE {workflows} AS target SET crashed_at_entry = -1 FROM {owned}"
        )
        self.release = (
            f"UPDATE {workflows} AS target SET executor_id = NULL, "
            "retry_at_us = wanted.retry_at_us FROM unnest($2::text[], $3::int8[]) "
            f"AS wanted(id, retry_at_us) {found} WHERE target.ctid = w.place AND {OWNED}"
        )
        self.forget = _forget(names, owned)


def _find_with_responses(names: PostgresNames, found: str, owner_lives: str) -> str:
    """Return the statement that finds requests, $1, and short responses if $2 matches."""
    response = (
        f"LEFT JOIN LATERAL (SELECT {list_of(tables.responses, 'r')} FROM {names.responses} AS r "
        "WHERE r.workflow_id = w.workflow_id AND w.state <> 'PENDING' "
        "AND w.fingerprint = wanted.fingerprint "
        f"AND coalesce(octet_length(r.body), 0) <= {MAX_INLINE_BYTES} OFFSET 0) AS r ON true"
    )
    return (
        f"SELECT {list_of(tables.workflows, 'w')}, {owner_lives} AS owner_lives, "
        "r.status_code, r.headers, r.body, r.expires_at_us, r.forgotten_at_us, r.stream_end "
        f"FROM unnest($1::text[], $2::text[]) AS wanted(id, fingerprint) {found} {response}"
    )


def _find_chunks(names: PostgresNames) -> str:
    """Return the statement that finds chunks by their workflows, $1, and end offsets, $2."""
    place = "p.workflow_id = wanted.id AND p.end_offset = wanted.end_offset"
    return (
        f"SELECT {list_of(tables.pieces, 'p')} "
        "FROM unnest($1::text[], $2::int8[]) AS wanted(id, end_offset) "
        f"{each_of(names.pieces, place, 'p')}"
    )


def _cut_chunks(names: PostgresNames) -> str:
    """Return the statement that deletes chunks of workflows, $1, between $2 and $3, exclusive."""
    place = "p.workflow_id = cut.id AND p.end_offset > cut.till AND p.end_offset < cut.at"
    return (
        f"DELETE FROM {names.pieces} AS target "
        "USING unnest($1::text[], $2::int8[], $3::int8[]) AS cut(id, till, at) "
        f"{each_of(names.pieces, place, 'p')} WHERE target.ctid = p.place"
    )


def _take(names: PostgresNames, found: str) -> str:
    return (
        f"UPDATE {names.workflows} AS target SET executor_id = $1, attempts = w.attempts + 1, "
        "updated_at_us = wanted.at_us, retry_at_us = NULL, "
        "request_id = CASE WHEN wanted.is_claim THEN wanted.request_id ELSE w.request_id END, "
        "fingerprint = coalesce(wanted.fingerprint, w.fingerprint) "
        "FROM unnest($2::text[], $3::int8[], $4::bool[], $5::text[], $6::text[]) "
        f"AS wanted(id, at_us, is_claim, request_id, fingerprint) {found} "
        "WHERE target.ctid = w.place"
    )


def _drop_failures(names: PostgresNames) -> str:
    """Return the statement with which a retry of a failed request drops trailing failures.

    It deletes the failed steps at the end of the log, which are then run again. A child that was
    called and ended in ERROR becomes PENDING, owned by the executor, and loses its own trailing
    failures. All records up to the last one that stays remain: a success, a failure of a step
    that runs at most once, and a child that succeeded or was cancelled. So an error that was
    caught and followed by such a record stays recorded. A child that was only started is not
    changed.

    Its parameters are the executor and the ids of the workflows.
    """
    # The failure of a step that runs at most once has an output as well, and is final.
    is_dropped = "s.error IS NOT NULL AND s.output IS NULL"
    # The place of the last record that stays; failures behind it are dropped.
    last_remaining = (
        "greatest("
        f"(SELECT max(s.step_number) FROM {names.steps} AS s"
        f" WHERE s.workflow_id = {{id}} AND NOT ({is_dropped})), "
        f"(SELECT max(c.parent_step) FROM {names.workflows} AS c"
        " WHERE c.parent_id = {id} AND c.state IN ('SUCCESS', 'CANCELLED')), -1)"
    )
    return (
        "WITH RECURSIVE resumed(workflow_id, last_remaining) AS ("
        f'SELECT id COLLATE "C", {last_remaining.format(id="id")} FROM unnest($2::text[]) AS id '
        "UNION ALL "
        f"SELECT child.workflow_id, {last_remaining.format(id='child.workflow_id')} "
        f"FROM resumed JOIN {names.workflows} AS child ON child.parent_id = resumed.workflow_id "
        "WHERE child.state = 'ERROR' AND child.awaited "
        "AND child.parent_step > resumed.last_remaining"
        f"), dropped AS (DELETE FROM {names.steps} AS s USING resumed "
        f"WHERE s.workflow_id = resumed.workflow_id AND {is_dropped} "
        "AND s.step_number > resumed.last_remaining) "
        f"UPDATE {names.workflows} AS w SET state = 'PENDING', error = NULL, executor_id = $1 "
        "FROM resumed WHERE w.workflow_id = resumed.workflow_id AND w.state = 'ERROR'"
    )


def _set_fingerprints(names: PostgresNames, found: str) -> str:
    return (
        f"UPDATE {names.workflows} AS target SET fingerprint = wanted.fingerprint "
        "FROM unnest($2::text[], $3::text[], $4::text[]) AS wanted(id, pending, fingerprint) "
        f"{found} WHERE target.ctid = w.place AND {OWNED} AND w.fingerprint = wanted.pending "
        "RETURNING target.workflow_id"
    )


def _forget(names: PostgresNames, owned: str) -> str:
    return (
        f"WITH forgotten AS (DELETE FROM {names.workflows} AS target USING {owned} "
        "AND w.fingerprint IS NOT NULL "
        f"AND NOT EXISTS (SELECT 1 FROM {names.steps} AS s WHERE s.workflow_id = w.workflow_id) "
        f"AND NOT EXISTS (SELECT 1 FROM {names.workflows} AS c WHERE c.parent_id = w.workflow_id) "
        f"RETURNING target.workflow_id) DELETE FROM {names.pieces} AS p USING forgotten "
        "WHERE p.workflow_id = forgotten.workflow_id"
    )
