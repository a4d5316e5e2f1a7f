import signal

from tests.commands import PATIENCE, start


def test_a_command_hears_ctrl_c_although_the_tests_were_started_where_it_is_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as after nohup, by cron and for `make test &`
    try:
        process = start("-c", "import time; print('up', flush=True); time.sleep(600)", folder=tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert said.splitlines()[-1] == "KeyboardInterrupt"
