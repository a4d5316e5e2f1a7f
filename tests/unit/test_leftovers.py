"""What a run of the tests leaves among the temporary files."""

from pathlib import Path

from tests.commands import ENVIRONMENT, finished, start
from tests.conftest import FOLDER_VARIABLE

REPOSITORY = Path(__file__).resolve().parents[2]
A_TEST = "tests/unit/test_commands.py"


def test_a_run_of_the_tests_leaves_nothing_but_the_folders_of_the_single_tests(tmp_path):
    environment = {key: value for key, value in ENVIRONMENT.items() if key != FOLDER_VARIABLE}
    run = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", A_TEST]
    done = finished(start(*run, folder=REPOSITORY, env=environment | {"TMPDIR": str(tmp_path)}))
    assert done.returncode == 0, done.stdout
    assert [path.name.partition("-of-")[0] for path in tmp_path.iterdir()] == ["pytest"]
