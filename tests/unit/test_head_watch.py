"""A head that goes silent: said once, and the main thread is interrupted before Ray ends the process."""

import socket
import threading

from actors.head_watch import HeadWatch


def test_a_head_that_answers_is_left_alone_and_one_that_is_gone_interrupts_once(capsys):
    head = socket.create_server(("127.0.0.1", 0))
    interrupted = threading.Event()
    address = f"127.0.0.1:{head.getsockname()[1]}"
    watch = HeadWatch(address, patience=0.3, every=0.02, interrupt=interrupted.set)
    watch.start()
    assert not interrupted.wait(0.5)
    head.close()
    assert interrupted.wait(20)
    watch.join(20)
    assert watch.is_lost
    said = capsys.readouterr().err
    assert said.startswith(f"the head of the Ray cluster at {address} has not answered for 0.3 s")
    assert said.count("\n") == 1


def test_a_watch_that_is_over_interrupts_nobody():
    interrupted = threading.Event()
    watch = HeadWatch("127.0.0.1:1", patience=60, every=0.01, interrupt=interrupted.set)
    watch.start()
    watch.end()
    watch.join(20)
    assert not watch.is_alive()
    assert not interrupted.is_set()
