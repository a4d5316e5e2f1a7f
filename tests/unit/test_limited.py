"""No test can hold up the others: one that crashes or hangs has failed, and what it leaves running is ended."""

import os
import subprocess
import sys

import pytest

from tests.conftest import FOLDER_VARIABLE

TESTS = {
    "crashes": """
        import os, signal, subprocess, time
        def test_before(): pass
        def test_that_crashes(): os.kill(os.getpid(), signal.SIGSEGV)
        def test_between(): pass
        def test_that_leaves_a_process():
            os.posix_spawn("/bin/sleep", ["sleep", "1234.5"], os.environ, setsid=True)
        def test_that_hangs(): time.sleep(1234)
        def test_after(): pass
    """,
    "others": "def test_one(): pass\ndef test_two(): pass\ndef test_three(): pass",
}
BY_ITSELF = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile", "-rA"]
LIMITS = ["-o", "faulthandler_timeout=5", "-o", "faulthandler_exit_on_timeout=true"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", FOLDER_VARIABLE))}


def limited(seconds: float, *words: str, folder) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "tests.limited", str(seconds), *words]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_crash_a_hang_and_a_forgotten_process_are_named_and_all_other_tests_run(tmp_path):
    for name, content in TESTS.items():
        lines = content.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        (tmp_path / f"test_{name}.py").write_text("\n".join(line[indent:] for line in lines))
    done = limited(240, sys.executable, "-m", "pytest", *BY_ITSELF, *LIMITS, folder=tmp_path)
    printed = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    failed = {line.split("::")[1].split()[0] for line in printed if line.startswith("FAILED")}
    passed = {line.split("::")[1] for line in printed if line.startswith("PASSED")}
    assert failed == {"test_that_crashes", "test_that_hangs"}
    assert passed >= {"test_before", "test_between", "test_after", "test_one", "test_two", "test_three"}
    assert "Timeout" in done.stderr
    left = printed[printed.index("left running, and killed:") + 1]
    assert left.split()[1:] == ["sleep", "1234.5"]


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_run_that_takes_too_long_says_what_it_was_doing(tmp_path):
    done = limited(1, "/bin/sh", "-c", "sleep 1234", folder=tmp_path)
    assert done.returncode == 124
    assert "no end after 1 s; running:" in done.stdout
    stopped = "import os, signal, time\ndef test_that_hangs(): os.kill(os.getpid(), signal.SIGTERM); time.sleep(1234)"
    (tmp_path / "test_long.py").write_text(stopped)
    done = limited(240, sys.executable, "-m", "pytest", "-p", "tests.conftest", folder=tmp_path)
    assert done.returncode == 2
    assert "stopped by SIGTERM; running: test_long.py::test_that_hangs" in done.stdout
