"""One federated round can be read: the files that it enters are few."""

from tests.trace_round import functions_of_a_round


def test_one_guarded_round_enters_at_most_twenty_files(tmp_path):
    files = {file for file, _ in functions_of_a_round(str(tmp_path))}
    assert len(files) <= 20, sorted(files)
