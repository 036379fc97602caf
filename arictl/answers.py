"""What each command answers with `--json`: the dataclass whose fields it has. docs/arictl.md is generated of it."""

from __future__ import annotations

from arictl import (
    audit_command,
    call_commands,
    connection_commands,
    dead_letter_commands,
    doctor,
    installation_commands,
    output,
    process_commands,
    question_commands,
    quota_commands,
    user_commands,
)
from shared.operator import (
    call_queries,
    connection_list,
    connection_tests,
    dead_letter_actions,
    host_loss,
    organization_usage,
    overview_sample,
)

#: Command → one of these dataclasses.
ANSWERS: dict[str, tuple[type, ...]] = {
    "audit": (audit_command.AuditPage,),
    "call": (call_commands.PlacedCall,),
    "calls": (call_queries.Page,),
    "changes": (question_commands.ChangeList,),
    "connection add": (output.Done,),
    "connection drain": (connection_commands.Acted,),
    "connection list": (connection_list.ConnectionList,),
    "connection park": (connection_commands.Acted,),
    "connection remove": (output.Done,),
    "connection resync": (connection_commands.Acted,),
    "connection take-over": (output.Done,),
    "connection test": (connection_tests.ConnectionReport,),
    "connection unpark": (connection_commands.Acted,),
    "db upgrade": (output.Done,),
    "dlq discard": (dead_letter_commands.Settled,),
    # Groups, or letters with --each.
    "dlq list": (dead_letter_actions.Overview, dead_letter_commands.LetterPage),
    "dlq retry": (dead_letter_commands.Settled,),
    "dlq set": (dead_letter_commands.SetList,),
    "dlq show": (dead_letter_actions.OpenedLetter,),
    "doctor": (doctor.Diagnosis,),
    "errors": (process_commands.ErrorList,),
    "hangup": (output.Done,),
    "installation draw": (output.Done,),
    "installation keep": (output.Done,),
    "installation show": (installation_commands.Prefixes,),
    "log-level": (output.Done,),
    "losses": (question_commands.LossList,),
    # With --without, what remains.
    "processes": (process_commands.ProcessList, host_loss.HostLoss),
    "quota list": (quota_commands.QuotaList,),
    "quota remove": (output.Done,),
    "quota set": (output.Done,),
    "quota show": (organization_usage.Limits,),
    "steps": (question_commands.StepList,),
    "top": (overview_sample.Sample,),
    "trace": (call_commands.TracedCall,),
    "usage": (organization_usage.Usage,),
    "user add": (output.Done,),
    "user list": (user_commands.UserList,),
    "user passwd": (output.Done,),
    "user remove": (output.Done,),
}
