import pytest

from elastic_train.adapters.launcher.child import exit_code_of, log_path, resolve_entry


def test_an_entry_is_found_by_module_and_name() -> None:
    assert resolve_entry("json:dumps")({"a": 1}) == '{"a": 1}'


def test_an_entry_may_be_an_attribute_of_a_class() -> None:
    assert resolve_entry("collections:Counter.most_common") is not None


@pytest.mark.parametrize(
    ("entry", "error"), [("no_such_module:f", ModuleNotFoundError), ("os:no_such_function", AttributeError)]
)
def test_an_entry_that_is_not_there_is_an_error(entry: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        resolve_entry(entry)


@pytest.mark.parametrize(
    ("code", "status"), [(None, 0), (0, 0), (3, 3), (-1, 255), (256, 0), ("a message", 1), ([], 1), (True, 1)]
)
def test_an_exit_is_mapped_as_the_interpreter_does(code: object, status: int) -> None:
    assert exit_code_of(code) == status


def test_a_worker_id_cannot_lead_out_of_the_log_directory() -> None:
    assert log_path("/logs", "../../etc/passwd") == "/logs/.._.._etc_passwd.log"
