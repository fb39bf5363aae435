"""Where Shakespeare comes from: here, the network (which no test uses), or the package."""

import io
import urllib.error
from pathlib import Path

import pytest

from nn.data import read_documents
from nn.data.shakespeare import PAGES, find_shakespeare


class Network:
    """What answers instead of the network."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: bytes | Exception = AssertionError("not to be asked")

    def __call__(self, url: str, timeout: float) -> io.BytesIO:
        self.asked.append(url)
        if isinstance(self.answer, Exception):
            raise self.answer
        return io.BytesIO(self.answer)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    found = Network()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nn.data.shakespeare.urlopen", found)
    return found


@pytest.mark.parametrize("name", ["shakespeare.txt", "data/shakespeare.txt"])
def test_a_file_that_is_here_is_taken(network: Network, name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("Who's there?")
    assert find_shakespeare(download=True) == Path(name)
    assert network.asked == []


def test_the_network_is_asked_only_on_demand(network: Network) -> None:
    assert find_shakespeare() == PAGES
    assert network.asked == []


def test_a_download_is_kept(network: Network) -> None:
    network.answer = "First Citizen:\nBefore we proceed any further, hear me – speak.\n".encode()
    path = find_shakespeare(download=True)
    assert path == Path("data/shakespeare.txt")
    assert path.read_bytes() == network.answer
    assert find_shakespeare(download=True) == path
    assert len(network.asked) == 1


@pytest.mark.parametrize("answer", [urllib.error.URLError("no route to host"), TimeoutError("timed out"),
                                    b"<html>Please log in</html>", b"First Citizen:\xff"])
def test_without_an_answer_the_pages_are_taken_and_named(
    network: Network, answer: bytes | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    network.answer = answer
    assert find_shakespeare(download=True) == PAGES
    (message,) = caplog.messages
    assert message.startswith("no Shakespeare from the network (")
    assert "11 kB that come with cuda-nn" in message
    assert not Path("data").exists()


def test_the_pages_are_text_to_learn_from() -> None:
    (document,) = read_documents(PAGES)
    assert document.text.count("SONNET") == 7
    assert "To be, or not to be" in document.text
