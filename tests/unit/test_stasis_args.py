"""The Stasis arguments that name a leg's run: read in every form Asterisk passes them on, refused when unusable."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import errors
from shared.call import stasis_args
from shared.call.stasis_args import RunArgs

WHOLE = RunArgs(workflow_run_id=3, workflow_id=7, user_id=9)


@pytest.mark.parametrize(
    ("args", "read"),
    [
        (["workflow_run_id=3", "workflow_id=7", "user_id=9"], WHOLE),
        (["workflow_run_id=3,workflow_id=7,user_id=9"], WHOLE),
        (["workflow_run_id=3,workflow_id=7", "user_id=9"], WHOLE),
        ([" user_id = 9", "workflow_id= 7", "workflow_run_id=3 "], WHOLE),
        (["language=de", "vip", "workflow_run_id=3", "workflow_id=7", "user_id=9", "user_id=9"], WHOLE),
        (["workflow_run_id=3", "workflow_id=7"], RunArgs(workflow_run_id=3, workflow_id=7)),
        (["workflow_run_id=1", "workflow_id=2147483647"], RunArgs(workflow_run_id=1, workflow_id=2**31 - 1)),
    ],
)
def test_arguments_are_read_however_they_are_cut(args: list[str], read: RunArgs) -> None:
    assert stasis_args.names_run(args)
    assert stasis_args.read(args) == read


@pytest.mark.parametrize("args", [[], ["vip"], ["language=de"], ["run=3"], [""], ["=3"], ["workflow_run_id"]])
def test_the_dialplan_s_own_arguments_name_no_run(args: list[str]) -> None:
    assert not stasis_args.names_run(args)


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["workflow_run_id=3"], "workflow_id is missing"),
        (["workflow_id=7", "user_id=9"], "workflow_run_id is missing"),
        (["workflow_run_id=3", "workflow_id=7", "workflow_run_id=4"], "workflow_run_id is given twice"),
        *(
            ([f"workflow_run_id={text}", "workflow_id=7"], "workflow_run_id is not the number of one")
            for text in ("", "0", "-3", "3.0", "3x", "0x3", "\u0663", "2147483648", "9" * 40, "3=3", "1 OR 1")
        ),
    ],
)
def test_unusable_arguments_are_refused_with_the_reason(args: list[str], reason: str) -> None:
    assert stasis_args.names_run(args)
    with pytest.raises(errors.InvalidStasisArgs, match=reason):
        stasis_args.read(args)


def test_the_product_s_own_arguments_read_back() -> None:
    for args in (WHOLE, RunArgs(workflow_run_id=3, workflow_id=7)):
        assert stasis_args.read([str(args)]) == args
        assert stasis_args.read(str(args).split(",")) == args


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.text(max_size=60) | st.builds("workflow_run_id={},workflow_id={}".format, st.text(), st.text())))
def test_any_arguments_are_read_or_refused(args: list[str]) -> None:
    try:
        read = stasis_args.read(args)
    except errors.InvalidStasisArgs:
        return
    assert 0 < read.workflow_run_id < 2**31
    assert 0 < read.workflow_id < 2**31


def test_a_dialled_leg_is_named_beside_its_run() -> None:
    args = stasis_args.RunArgs(workflow_run_id=9, workflow_id=1, user_id=2)
    text = stasis_args.of_leg(args, "aip-0-o")
    for said in ([text], text.split(",")):
        assert stasis_args.read(said) == args
        assert stasis_args.dialled_leg(said) == "aip-0-o"
    assert stasis_args.dialled_leg([str(args)]) is None
