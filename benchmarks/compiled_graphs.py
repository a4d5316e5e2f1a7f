"""What Ray's compiled graphs would save: bare exchanges with four actors, by messages and by a compiled graph.

    python benchmarks/compiled_graphs.py

The actors only add one to the vector they receive, so this is transport alone; see benchmarks/speed.md.
"""

import time

import numpy as np

NUM_SILOS = 4
ROUNDS = {55_201: 400, 1_000_000: 60}
REPEATS = 3


def main() -> None:
    from actors.session import session

    with session("local", num_cpus=NUM_SILOS + 2):
        import ray

        @ray.remote
        class Adder:
            def fit(self, vector):
                return vector + 1

        @ray.remote
        class Averager:
            def __init__(self, silos):
                self.silos = silos

            def messages(self, num_rounds, size):
                vector, started = np.zeros(size, np.float32), time.perf_counter()
                for _ in range(num_rounds):
                    refs, answers = [silo.fit.remote(vector) for silo in self.silos], []
                    while refs:
                        ready, refs = ray.wait(refs)
                        answers.append(ray.get(ready[0]))
                    vector = sum(answers) / len(answers)
                return num_rounds / (time.perf_counter() - started)

            def graph(self, num_rounds, size):
                from ray.dag import InputNode, MultiOutputNode

                with InputNode() as given:
                    drawn = MultiOutputNode([silo.fit.bind(given) for silo in self.silos])
                compiled = drawn.experimental_compile(_buffer_size_bytes=4 * size + 100_000)
                vector = np.mean(ray.get(compiled.execute(np.zeros(size, np.float32))), axis=0)
                started = time.perf_counter()
                for _ in range(num_rounds):
                    answers = ray.get(compiled.execute(vector))
                    vector = sum(answers) / len(answers)
                rate = num_rounds / (time.perf_counter() - started)
                compiled.teardown()
                return rate

        averager = Averager.remote([Adder.remote() for _ in range(NUM_SILOS)])
        for size, num_rounds in ROUNDS.items():
            for way in ("messages", "graph"):
                rates = [ray.get(getattr(averager, way).remote(num_rounds, size)) for _ in range(REPEATS)]
                print(f"{size:>9,} parameters  {way:<8}  {min(rates):4.0f} to {max(rates):4.0f} rounds/s", flush=True)


if __name__ == "__main__":
    main()
