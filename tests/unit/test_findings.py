"""What a finding of the doctor may show."""

from __future__ import annotations

from shared.operator.checks.findings import without_password


def test_a_password_is_taken_out_of_a_librarys_words() -> None:
    url = "postgresql://u:hunter2%21@h/d"
    assert "hunter2" not in without_password(f"cannot open {url} as hunter2! with u:hunter2%21", url)
