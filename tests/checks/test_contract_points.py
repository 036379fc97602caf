"""The points of the contract with the platform, 2026-02 and newest, each with tests that exist."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT, INTEGRATION, ACCEPTANCE = "tests/unit/", "tests/integration/", "tests/acceptance/"

#: What the point is about → the file and the names of its tests.
POINTS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "1 where configurations are": [
        (
            INTEGRATION + "test_newest_configurations.py",
            ("test_every_active_row_of_an_asterisk_is_a_configuration_and_the_stale_rows_are_none",),
        ),
        (
            INTEGRATION + "test_platform_layouts.py",
            ("test_the_layout_is_told_by_the_new_table_and_not_by_the_old_rows",),
        ),
    ],
    "2 ARI user and Stasis app": [
        (
            INTEGRATION + "test_newest_configurations.py",
            ("test_the_ari_user_and_the_stasis_app_may_have_different_names",),
        )
    ],
    "3 several configurations on one PBX": [
        (
            INTEGRATION + "test_newest_configurations.py",
            ("test_configurations_of_one_organization_on_one_asterisk_are_connections_by_their_apps",),
        ),
        (
            ACCEPTANCE + "test_newest_layout.py",
            ("test_two_configurations_on_one_asterisk_serve_by_their_apps_and_only_their_own_numbers",),
        ),
    ],
    "4 inactive configurations": [
        (
            INTEGRATION + "test_platform_deactivations.py",
            (
                "test_a_configuration_is_deactivated_as_the_platform_does_it_and_taken_up_when_it_is_reactivated",
                "test_no_configuration_is_deactivated_under_a_call_that_is_being_set_up",
                "test_a_configuration_without_a_websocket_client_is_deactivated_at_once",
            ),
        ),
        (
            INTEGRATION + "test_deactivation.py",
            ("test_an_answer_that_has_lasted_for_a_minute_deactivates", "test_an_error_of_ours_deactivates_none"),
        ),
    ],
    "5 inbound route": [
        (
            INTEGRATION + "test_newest_routes.py",
            (
                "test_a_call_is_routed_by_the_canonical_number",
                "test_a_number_that_is_not_there_or_not_active_has_no_route",
                "test_the_number_of_another_configuration_has_no_route_here",
            ),
        ),
        (
            ACCEPTANCE + "test_newest_layout.py",
            ("test_a_caller_without_a_route_is_hung_up_with_the_reason_and_gets_no_run",),
        ),
    ],
    "6 columns of a run": [
        (INTEGRATION + "test_newest_runs.py", ("test_a_run_is_written_as_the_platform_reads_it",)),
        (
            INTEGRATION + "test_platform_api.py",
            ("test_a_run_without_a_json_column_is_refused_as_the_platform_s_tables_refuse_it",),
        ),
    ],
    "7 definition of a run": [
        (
            INTEGRATION + "test_newest_routes.py",
            ("test_a_workflow_without_a_definition_is_refused_since_its_run_would_be_ended_at_once",),
        ),
        (INTEGRATION + "test_newest_runs.py", ("test_a_run_of_a_draft_is_served_as_it_is",)),
    ],
    "8 initial_context": [(INTEGRATION + "test_newest_runs.py", ("test_a_run_is_written_as_the_platform_reads_it",))],
    "9 names of the legs, and merges": [
        (INTEGRATION + "test_dograh_runs.py", ("test_legs_that_are_named_from_the_start_are_not_written_again",)),
        (
            INTEGRATION + "test_run_endings.py",
            ("test_a_key_that_the_platform_writes_at_the_same_time_is_kept_when_it_is_first",),
        ),
    ],
    "10 a run by its call": [
        (
            INTEGRATION + "test_plans.py",
            ("test_the_run_of_an_unanswered_call_is_found_by_its_index_however_many_there_are_and_however_old_it_is",),
        )
    ],
    "11 media URL": [
        (
            UNIT + "test_media_url.py",
            ("test_on_the_newest_layout_the_parameters_name_the_organization_and_so_does_the_token",),
        )
    ],
    "12 token": [
        (
            UNIT + "test_media_url.py",
            ("test_a_secret_that_only_we_know_signs_no_token_for_the_newest_platform",),
        )
    ],
    "13 who completes connected runs": [
        (
            INTEGRATION + "test_newest_runs.py",
            ("test_connected_runs_are_completed_by_whom_the_tables_name_unless_it_is_set",),
        ),
        (
            ACCEPTANCE + "test_beside_the_platform.py",
            ("test_a_caller_is_served_and_the_platform_completes_the_run",),
        ),
    ],
    "14 runs that never connected": [
        (
            INTEGRATION + "test_outbox.py",
            (
                "test_a_worker_of_arq_runs_the_job_of_each_ended_run_once",
                "test_a_campaign_is_told_that_it_calls_once_more",
            ),
        ),
        (
            UNIT + "test_unanswered_events.py",
            ("test_the_event_that_tells_more_ends_the_run_in_any_order_and_at_any_delay_of_the_platform_s_write",),
        ),
        (
            ACCEPTANCE + "test_real_platform.py",
            ("test_calls_that_the_platform_places_end_as_what_they_were",),
        ),
    ],
    "15 calls that the platform places": [
        (
            INTEGRATION + "test_newest_runs.py",
            ("test_a_leg_without_a_user_gets_its_run_and_the_settings_of_the_configuration_it_came_by",),
        )
    ],
    "16 the agent's hang-up": [
        (
            ACCEPTANCE + "test_real_platform.py",
            ("test_an_agent_hangs_up_by_the_configuration_that_the_run_names",),
        )
    ],
    "17 calls counted together": [
        (
            INTEGRATION + "test_platform_slots.py",
            ("test_the_api_s_calls_and_ours_together_never_exceed_the_limit",),
        ),
        (INTEGRATION + "test_platform_limits.py", ("test_the_platform_of_2026_02_limits_its_campaigns_alone",)),
    ],
    "18 the run of a channel": [
        (INTEGRATION + "test_platform_slots.py", ("test_a_slot_is_written_as_the_platform_writes_it",))
    ],
    "19 the database of its Redis": [
        (
            INTEGRATION + "test_platform_redis_checks.py",
            ("test_a_database_without_the_api_s_keys_is_said", "test_one_database_for_both_is_said"),
        )
    ],
    "20 transfers": [
        (
            ACCEPTANCE + "test_platform_transfers.py",
            ("test_an_answered_transfer_is_told_swapped_and_ends_with_either_side",),
        ),
        (
            ACCEPTANCE + "test_real_platform.py",
            ("test_transfers_end_as_the_platform_would_have_them",),
        ),
    ],
    "21 quota": [
        (
            INTEGRATION + "test_run_authorization.py",
            (
                "test_each_key_of_the_organization_s_services_asks_for_its_own_credits",
                "test_a_managed_run_gets_its_correlation_id",
                "test_the_organization_s_account_is_asked_about_the_run",
            ),
        )
    ],
    "22 another PBX's data of callers": [
        (UNIT + "test_telephony_configuration.py", ("test_data_of_another_pbx_is_refused_by_name",))
    ],
    "23 digits": [(UNIT + "test_events.py", ("test_other_types_are_nothing",))],
    "24 nothing of the platform's is altered": [
        (
            INTEGRATION + "test_migrations.py",
            ("test_the_platform_s_tables_are_not_altered",),
        )
    ],
    "25 stand-alone tables": [
        (INTEGRATION + "test_stand_alone_tables.py", ("test_a_column_is_as_strict_as_the_platform_s",))
    ],
    "26 archived workflows": [
        (INTEGRATION + "test_newest_routes.py", ("test_a_workflow_that_may_not_serve_it_is_told",))
    ],
    "27 switching": [
        (
            ACCEPTANCE + "test_switching.py",
            ("test_the_page_s_commands_switch_on_check_and_roll_back",),
        )
    ],
}


@cache
def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("point", POINTS)
def test_a_point_of_the_contract_has_its_tests(point: str) -> None:
    lacking = [(path, name) for path, names in POINTS[point] for name in names if name not in functions(path)]
    assert lacking == []
