"""The verb that reads the audit."""

from typing import Final

from sqlalchemy import or_, select

from envctl.accounts.rights import require
from envctl.calling import Caller, Context
from envctl.database.models import AuditRow
from envctl.verbs.people_models import AskAudit, AuditPage, AuditView
from envctl.verbs.verb import Verb


def admin_audit(context: Context, caller: Caller, request: AskAudit) -> AuditPage:
    """The newest first. Pages hang on row numbers, so that a row that comes meanwhile moves nothing."""
    require(caller, "admin:read", "operator")
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(request.limit + 1)
    if request.before is not None:
        query = query.where(AuditRow.id < request.before)
    if request.actor:
        query = query.where(AuditRow.actor == request.actor)
    if request.verb:
        query = query.where(
            or_(AuditRow.verb == request.verb, AuditRow.verb.startswith(request.verb + ".", autoescape=True))
        )
    if request.environment:
        query = query.where(AuditRow.environment_id == request.environment)
    if request.outcome:
        query = query.where(AuditRow.outcome == request.outcome)
    if request.since is not None:
        query = query.where(AuditRow.at >= request.since)
    if request.until is not None:
        query = query.where(AuditRow.at < request.until)
    with context.database.read() as session:
        rows = session.scalars(query).all()
    shown = rows[: request.limit]
    views = [
        AuditView(
            id=row.id,
            at=row.at,
            actor=row.actor,
            via=row.via,
            address=row.address,
            verb=row.verb,
            target=row.target,
            environment_id=row.environment_id,
            outcome=row.outcome,
            detail=row.detail,
        )
        for row in shown
    ]
    return AuditPage(rows=views, before=shown[-1].id if len(rows) > request.limit else None)


VERBS: Final = (
    Verb(
        "admin.audit", "GET", "/admin/audit", "admin:read", admin_audit, AskAudit, AuditPage, "Show who did what, and when",
        "operator",
    ),
)  # fmt: skip
