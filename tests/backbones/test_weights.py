"""Published weights from a server on this machine: the real clients, and what they make of what goes wrong."""

import hashlib
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch

import pytest
import timm
import torch
from check import official_state_dict

from attnzoo.backbones import WeightsNotFoundError, _weights, crossformer


class Server(ThreadingHTTPServer):
    """Serves `content` at every path that is in `paths`; the first download breaks off in the middle."""

    def __init__(self, content, paths, breaks=False):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.paths, self.breaks, self.ranges = content, paths, breaks, []
        self.etag = hashlib.sha256(content).hexdigest()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f'http://127.0.0.1:{self.server_port}'


class Handler(BaseHTTPRequestHandler):
    def answer(self, body):
        server = self.server
        if self.path not in server.paths:
            self.send_error(404)
            return
        start = 0
        if asked := self.headers.get('Range'):
            start = int(asked.removeprefix('bytes=').rstrip('-'))
            server.ranges.append(start)
        content = server.content[start:]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header('Content-Range', f'bytes {start}-{len(server.content) - 1}/{len(server.content)}')
        for name, value in (
            ('Content-Length', len(content)),
            ('Accept-Ranges', 'bytes'),
            ('ETag', f'"{server.etag}"'),
            ('X-Repo-Commit', 'c' * 40),
        ):
            self.send_header(name, str(value))
        self.end_headers()
        if body and server.breaks:
            server.breaks = False
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif body:
            self.wfile.write(content)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_hub_is_asked_and_a_broken_download_goes_on(serve, tmp_path):
    """huggingface_hub's own client, in a process that is pointed at this machine."""
    weights = official_state_dict('transnext_micro')
    torch.save({'model': weights}, tmp_path / 'file.pth')
    path = '/DaiShiResearch/transnext-micro-224-1k/resolve/main/transnext_micro_224_1k.pth'
    server = serve((tmp_path / 'file.pth').read_bytes(), {path}, breaks=True)
    program = """
import timm, torch, attnzoo
model = timm.create_model('transnext_micro', pretrained=True, num_classes=7)
torch.save(model.state_dict(), 'loaded.pth')
"""
    environment = {
        'HF_ENDPOINT': server.address,
        'HF_HOME': str(tmp_path / 'cache'),
        'HF_HUB_DISABLE_XET': '1',
        'HOME': str(tmp_path),
        'OMP_NUM_THREADS': '1',
    }
    run = [sys.executable, '-c', program]
    subprocess.run(run, cwd=tmp_path, env=environment, check=True, capture_output=True)
    loaded = torch.load(tmp_path / 'loaded.pth')
    assert torch.equal(loaded['stages.2.blocks.3.attn.q.weight'], weights['block3.3.attn.q.weight'])
    assert loaded['head.fc.weight'].shape == (7, 384)
    assert server.ranges and server.ranges[0] > 0, 'the second attempt should have asked for the rest only'

    server.paths.clear()  # what is in the cache needs no server
    subprocess.run(run, cwd=tmp_path, env={**environment, 'HF_HUB_OFFLINE': '1'}, check=True, capture_output=True)


def test_what_the_hub_does_not_have_is_one_line_with_the_file_and_its_place(tmp_path):
    program = """
import timm, attnzoo
try:
    timm.create_model('transnext_micro', pretrained=True)
except attnzoo.WeightsNotFoundError as error:
    print(error)
"""
    environment = {'HF_HOME': str(tmp_path), 'HF_HUB_OFFLINE': '1', 'HOME': str(tmp_path)}
    done = subprocess.run([sys.executable, '-c', program], env=environment, check=True, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith('transnext_micro.in1k: cannot download DaiShiResearch/transnext-micro-224-1k from the ')
    assert 'transnext_micro_224_1k.pth' in line and str(tmp_path / '.cache' / 'torch' / 'hub' / 'checkpoints') in line


def test_an_official_file_of_the_hub_may_be_placed_by_hand(tmp_path):
    weights = official_state_dict('transnext_micro')
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    torch.save(weights, folder / 'transnext_micro_224_1k.pth')
    with patch('torch.hub.get_dir', return_value=str(tmp_path)):
        model = timm.create_model('transnext_micro', pretrained=True)
    assert torch.equal(model.stem.conv.weight, weights['patch_embed1.proj.weight'])


@pytest.fixture
def drive(serve, tmp_path, monkeypatch):
    """Google Drive, played by a server on this machine; the folder of checkpoints is empty."""

    def start(content):
        server = serve(content, {'/1YSkU9enn-ITyrbxLH13zNcBYvWSEidfq'})
        monkeypatch.setattr(_weights, 'DRIVE_DOWNLOAD', server.address + '/{}')
        return tmp_path / 'checkpoints'

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    return start


def test_a_file_on_google_drive_is_downloaded_once(drive, tmp_path):
    weights = official_state_dict('crossformer_tiny')
    torch.save({'model': weights}, tmp_path / 'file.pth')
    folder = drive((tmp_path / 'file.pth').read_bytes())
    model = timm.create_model('crossformer_tiny', pretrained=True)
    own = model.state_dict()
    for key, value in crossformer.checkpoint_filter_fn(weights, model).items():
        assert torch.equal(own[key], value), key
    assert [path.name for path in folder.iterdir()] == ['crossformer-t.pth']
    drive(b'')  # another server, which is not asked
    timm.create_model('crossformer_tiny', pretrained=True)


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'\n<!DOCTYPE html><title>Quota exceeded</title>', 'it answers with a web page in place of the file'),
        (None, 'HTTP Error 404'),
    ],
)
def test_a_page_in_place_of_the_file_is_refused(content, reason, drive, monkeypatch):
    folder = drive(content or b'x')
    if content is None:
        monkeypatch.setattr(_weights, 'DRIVE_DOWNLOAD', _weights.DRIVE_DOWNLOAD + '/gone')
    with pytest.raises(WeightsNotFoundError) as error:
        timm.create_model('crossformer_tiny', pretrained=True)
    assert reason in str(error.value) and 'Place crossformer-t.pth' in str(error.value)
    assert '\n' not in str(error.value) and not list(folder.iterdir())
