"""Models from folders and from a hub: a small one on localhost, which moves on and goes down."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from tiny_models import save_tiny

from wildshape.errors import UserError

diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusion")
import huggingface_hub  # noqa: E402
from huggingface_hub import constants  # noqa: E402

from pseudolabels.zero123plus.sources import commit_of, load_model  # noqa: E402
from pseudolabels.zero123plus.token_file import TokenFile, load_model_of, model_facts  # noqa: E402

CPU = torch.device("cpu")
REPOSITORY = "someone/tiny"
FIRST, SECOND = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """A repository with two commits, as far as its clients ask; ``main`` is the one of its main branch."""

    def __init__(self, folders):
        super().__init__(("127.0.0.1", 0), Answers)
        self.folders, self.main = folders, SECOND
        self.asked = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, path):
        """Status, headers and body."""
        self.asked.append(path)
        if path.startswith(f"/api/models/{REPOSITORY}"):
            _, _, question = path.partition(REPOSITORY)
            _, kind, revision = question.split("/") if question else ("", "revision", "main")
            commit = self.commit(revision)
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            root = self.folders[commit]
            files = {file.relative_to(root).as_posix(): file for file in root.rglob("*") if file.is_file()}
            if kind == "tree":
                found = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                    for name, file in files.items()
                ]
            else:
                names = [{"rfilename": name} for name in files]
                found = {"id": REPOSITORY, "sha": commit, "siblings": names}
            return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        if not path.startswith(f"/{REPOSITORY}/resolve/"):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        revision, _, name = path.removeprefix(f"/{REPOSITORY}/resolve/").partition("/")
        commit = self.commit(revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        file = self.folders[commit] / name
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        body = file.read_bytes()
        return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(body).hexdigest()}"'}, body

    def commit(self, revision):
        revision = self.main if revision == "main" else revision
        return revision if revision in self.folders else None


class Answers(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.reply(with_body=False)

    def do_GET(self):
        self.reply(with_body=True)

    def reply(self, with_body):
        status, headers, body = self.server.answer(self.path.partition("?")[0])
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *unused):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folders = {name: tmp_path / name for name in (FIRST, SECOND)}
    for seed, folder in enumerate(folders.values()):
        save_tiny(folder, seed=seed)
    server = Hub(folders)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def weights(folder):
    return load_model(str(folder), device=CPU).unet.state_dict()


def test_a_repository_is_read_at_one_commit_and_stays_there(hub, tmp_path):
    model = load_model(REPOSITORY, device=CPU)
    assert model.revision == SECOND
    torch.testing.assert_close(model.unet.state_dict(), weights(hub.folders[SECOND]), rtol=0, atol=0)
    early = load_model(REPOSITORY, device=CPU, revision=FIRST)
    assert early.revision == FIRST
    torch.testing.assert_close(early.unet.state_dict(), weights(hub.folders[FIRST]), rtol=0, atol=0)

    # What tokens were learnt with is what finds points, though the main branch has moved on.
    tokens = TokenFile(torch.zeros(4, model.width), torch.arange(2), torch.ones(4), {
        **model_facts(model, REPOSITORY), "image_size": 16
    })  # fmt: skip
    tokens.save(tmp_path / "tokens.pt")
    hub.main = FIRST
    assert commit_of(REPOSITORY, None) == FIRST
    again = load_model_of(TokenFile.load(tmp_path / "tokens.pt"), CPU)
    assert again.revision == SECOND
    with pytest.raises(UserError, match="found someone/tiny .*name that one, or learn tokens of this one"):
        load_model_of(tokens, CPU, REPOSITORY)


def test_without_a_network_the_cache_answers_or_one_line_says_what_to_run(hub, monkeypatch, capfd):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries five times
    load_model(REPOSITORY, device=CPU)
    capfd.readouterr()
    hub.shutdown()
    hub.server_close()
    assert load_model(REPOSITORY, device=CPU).revision == SECOND
    with pytest.raises(UserError) as refused:
        load_model("someone/other", device=CPU)
    assert str(refused.value) == (
        "--model someone/other: expected a folder, or a repository on the hub or in its cache; found none; "
        "where there is a network, run: hf download someone/other --local-dir FOLDER; then name that folder"
    )
    assert capfd.readouterr() == ("", "")


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(UserError, match="someone/other cannot be loaded"):
        load_model("someone/other", device=CPU)
    with pytest.raises(UserError, match="someone/tiny cannot be loaded"):
        load_model(REPOSITORY, device=CPU, revision="c" * 40)
    (hub.folders[SECOND] / "model_index.json").unlink()
    with pytest.raises(UserError, match="someone/tiny cannot be loaded"):
        load_model(REPOSITORY, device=CPU)
    with pytest.raises(UserError, match="no name/at all cannot be loaded"):
        load_model("no name/at all", device=CPU)
