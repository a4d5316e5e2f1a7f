"""Which process of pytest-xdist runs which file, also after one of them has crashed."""

from typing import Any

from xdist.scheduler import LoadFileScheduling


class FilesInOrder(LoadFileScheduling):
    """A file's tests go to one process. A test that its process does not survive has failed, and the rest of its file
    goes to another process.

    Of a crashed process xdist 3.8.0 hands out again the files that it had finished, too: whoever is given one waits for
    ever. And it runs the test that crashed again, until all processes have crashed.
    """

    def remove_node(self, node: Any) -> str | None:
        files = self.assigned_work.pop(node)
        running = next((test for tests in files.values() for test, is_done in tests.items() if not is_done), None)
        for name, tests in files.items():
            rest = {test: is_done for test, is_done in tests.items() if not is_done and test != running}
            if rest:
                self.workqueue[name] = rest
                self.workqueue.move_to_end(name, last=False)
        for other in self.nodes:
            self._reschedule(other)
        return running

    def _reschedule(self, node: Any) -> None:
        """Give a process two tests at least: it begins none before it knows the one after."""
        if node not in self.registered_collections or node.shutting_down:
            return
        while self.workqueue and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()
