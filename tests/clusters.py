"""A cluster of labelled nodes on this machine, whose workers are forked as those of a private cluster are.

`python -m tests.clusters SITE...` starts a head and a node for each site, prints the address and does what it is told,
a line each: `add SITE` and `remove SITE`, answered by `done`; it ends with its standard input. Ray is imported late:
before, this process can be forked.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from actors import forking
from actors.session import node_starts

SMALL: dict[str, Any] = {"object_store_memory": 80 << 20, "num_cpus": 1}


@contextlib.contextmanager
def cluster(**head: Any) -> Iterator[Any]:
    """Yield a `ray.cluster_utils.Cluster` of a head, and end it."""
    forking.start()
    with forking.workers_forked(), forking.launcher_as_python(), node_starts():
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **SMALL, **head})
        try:
            yield made
        finally:
            made.shutdown()


def serve(sites: list[str]) -> None:
    with cluster() as made:
        nodes = {site: made.add_node(labels={"site": site}, **SMALL) for site in sites}
        print(made.address, flush=True)
        for line in sys.stdin:
            change, site = line.split()
            if change == "remove":
                made.remove_node(nodes.pop(site), allow_graceful=False)
            else:
                nodes[site] = made.add_node(labels={"site": site}, **SMALL)
            print("done", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
