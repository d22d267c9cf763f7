"""Report and live page on the command line: what is written, what is refused, and that training is untouched."""

import http.client
import socket
import threading
from pathlib import Path

import pytest
import torch

TRAIN = "--preset tiny --num_steps 4 --eigen_interval 2 --checkpoint_interval 4 --causal never --n_threads 1 --quiet"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from spectral.cli import train

    runs = tmp_path_factory.mktemp("live_runs")
    assert train([*TRAIN.split(), "--runs_dir", str(runs), "--run_name", "plain"]) == 0
    return runs / "plain"


@pytest.fixture
def taken():
    """A port that another process could be using."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def refused(capsys, command, *arguments):
    capsys.readouterr()
    assert command(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_the_report_is_written_and_its_path_is_the_last_line(finished, capsys, tmp_path):
    from spectral.cli import visualize

    assert visualize([str(finished), "--report_only", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_leaving_out_both_figures_and_report_is_refused(finished, capsys):
    from spectral.cli import visualize

    line = refused(capsys, visualize, str(finished), "--no_report", "--report_only")
    assert "--no_report and --report_only leave nothing to do" in line


def test_without_a_report_only_figures_are_written(capsys, tmp_path):
    from spectral.cli import train, visualize

    flags = [*TRAIN.split(), "--eigen_interval", "0", "--runs_dir", str(tmp_path), "--run_name", "run"]
    assert train(flags) == 0  # nothing is measured, so there are two figures
    assert visualize([str(tmp_path / "run"), "--no_report", "--formats", "png", "--dpi", "30"]) == 0
    assert not (tmp_path / "run" / "report.html").exists()
    assert "report:" not in capsys.readouterr().out


def test_a_port_in_use_is_one_line_and_no_run_is_begun(taken, capsys, tmp_path, finished):
    from spectral.cli import train, visualize

    line = refused(capsys, visualize, str(finished), "--live", "--port", str(taken))
    assert line == f"error: --port {taken} is in use; give another one, or --port 0 for a free one"
    where = ["--runs_dir", str(tmp_path), "--run_name", "new"]
    assert refused(capsys, train, *TRAIN.split(), *where, "--live", "--port", str(taken)) == line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--port 0", "--port is about the live page; add --live or drop it"),
        ("--open", "--open is about the live page"),
        ("--host 127.0.0.1", "--host is about the live page"),
        ("--live --port 70000", "--port 70000 is no port; give 1 to 65535"),
        ("--live --port x", "--port"),
        ("--live --port 0 --host 198.51.100.7", "--host '198.51.100.7' is no address of this machine"),
    ],
)
def test_mistakes_about_the_live_page_are_one_line(finished, capsys, tmp_path, flags, words):
    from spectral.cli import train, visualize

    assert words in refused(capsys, visualize, str(finished), *flags.split())
    assert words in refused(capsys, train, *TRAIN.split(), "--runs_dir", str(tmp_path), *flags.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_is_one_line(capsys, tmp_path):
    from spectral.cli import visualize

    assert "is no run folder" in refused(capsys, visualize, str(tmp_path), "--live", "--port", "0")
    assert "does not exist" in refused(capsys, visualize, str(tmp_path / "no"), "--live", "--port", "0")


def test_only_this_machine_can_reach_the_page_unless_asked_and_then_there_is_a_warning(capsys):
    from spectral.cli.live import _announce
    from spectral.plots.live.sockets import is_loopback, listen, url

    with listen("127.0.0.1", 0) as own, listen("0.0.0.0", 0) as everyone:
        assert is_loopback(own)
        assert not is_loopback(everyone)
        _announce(own, Path("run"), open_browser=False)
        assert capsys.readouterr().err == ""
        _announce(everyone, Path("run"), open_browser=False)
        found = capsys.readouterr()
        assert "warning: --host 0.0.0.0 lets every machine that reaches this one read run" in found.err
        assert found.out == f"live page of run: {url(everyone)}\n"


def test_the_server_ends_after_the_run_and_answers_to_its_own_names_only(finished):
    from spectral.plots.live import RunWatch, listen, serve

    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=serve, args=(RunWatch(finished), listening), kwargs={"linger": 3.0})
        thread.start()
        answers = {}
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "evil.example"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/", headers={"Host": host})
            answers[host.partition(":")[0]] = connection.getresponse().status
            connection.close()
        thread.join(60)
    assert answers == {"127.0.0.1": 200, "localhost": 200, "evil.example": 400}
    assert not thread.is_alive()


def test_a_watch_makes_new_content_only_when_there_is_something_new(finished):
    from spectral.plots.live import RunWatch

    watch = RunWatch(finished)
    version, beat = watch.look()
    content = watch.content()
    assert beat == {"status": "finished", "text": "finished"}
    assert watch.finished
    assert '"steps":[0,2,4]' in content
    assert watch.look()[0] == version
    assert watch.content() is content
    (finished / "transitions.json").write_text((finished / "transitions.json").read_text() + " ")
    assert watch.look()[0] != version


def test_a_live_page_leaves_the_training_as_it_is(finished, tmp_path, capsys):
    import numpy as np

    from spectral.cli import train
    from spectral.storage import open_run

    assert train([*TRAIN.split(), "--runs_dir", str(tmp_path), "--run_name", "live", "--live", "--port", "0"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"live page of {tmp_path / 'live'}: http://127.0.0.1:")
    port = int(printed.splitlines()[0].rstrip("/").rpartition(":")[2])
    runs = [open_run(path) for path in (finished, tmp_path / "live")]
    for name in runs[0].datasets():
        if not runs[0].attributes(name).get("wall_clock"):
            np.testing.assert_array_equal(*(run.read(name) for run in runs), err_msg=name)
    a, b = (torch.load(run.path / "model_final.pt", weights_only=True) for run in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    # The page's process still answers for a while, so that open pages hear how the run ended.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", "/")
    assert connection.getresponse().status == 200
    connection.close()
