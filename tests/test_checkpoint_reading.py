"""Files that are no checkpoint, damaged or dangerous: one sentence each, and nothing of them is loaded or run."""

import argparse
import io
import pickle
import sys
import threading
import types
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from mmtok.backbones import DeiT
from mmtok.checkpoint import read_checkpoint
from mmtok.checkpoint.archive import STORAGES
from mmtok.checkpoint.reading import check_readable
from mmtok.errors import CheckpointError, ConfigError

NANO = dict(embed_dims=16, depth=2, num_heads=2)
TENSORS = {'a': torch.arange(6.0).view(2, 3), 'b': torch.ones(3, dtype=torch.bfloat16)}


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), 'w')


def whole(path):
    torch.save(TENSORS, path)
    return path.read_bytes()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('readme.txt', 'hello')
    return buffer.getvalue()


BAD = {
    'empty': (lambda path: b'', 'is empty: copy or download it again'),
    'truncated': (lambda path: whole(path)[:-300], 'is damaged or cut short (File is not a zip file)'),
    'html': (lambda path: b'\n<!DOCTYPE html><html>404</html>', 'is a web page, not a checkpoint'),
    'text': (lambda path: b'hello there\n', 'is a text file, not a checkpoint'),
    'lfs': (lambda path: b'version https://git-lfs.github.com/spec/v1\noid', 'is a pointer of Git LFS'),
    'gzip': (lambda path: b'\x1f\x8b\x08\x00', 'is compressed with gzip: unpack it'),
    'binary': (lambda path: bytes(range(3, 200)), 'is of an unknown kind, not a checkpoint'),
    'npz': (lambda path: npz(), 'is a NumPy archive, not a checkpoint of PyTorch'),
    'zip': (lambda path: zipped(), 'is a zip file, not a checkpoint of PyTorch'),
    'list': (lambda path: pickled([torch.ones(1)]), 'holds a list where a dict of tensors was expected'),
    'no tensors': (lambda path: pickled({'epoch': 3, 'lr': 0.1}), 'holds no torch tensors, only epoch, lr'),
    'cut pickle': (lambda path: pickled(TENSORS, _use_new_zipfile_serialization=False)[:200],
                   'is damaged or cut short'),
    'bare pickle': (lambda path: pickle.dumps({'a': 1}), 'is a pickle that torch.save did not write'),
}


def pickled(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize('fault', BAD)
def test_a_bad_file_is_named_with_its_fault(fault, tmp_path):
    make, message = BAD[fault]
    content = make(tmp_path / 'file.pth')
    (tmp_path / 'file.pth').write_bytes(content)
    refused(tmp_path / 'file.pth', message)


def refused(checkpoint, message, **options):
    """One sentence, and the backbone is as it was."""
    model = DeiT(NANO, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint), **options))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        model.init_weights()
    text = str(caught.value)
    assert message in text and '\n' not in text and text.endswith('training starts from scratch)'), text
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('content, message', [
    (None, 'does not exist: put it there'), ('half', 'is damaged or cut short'), ('legacy', 'is damaged or cut short'),
    ('safetensors', r'is a .safetensors file, which mmengine does not load: write it as .pth')])
def test_what_mmengine_cannot_load_is_said_before_it_tries(content, message, tmp_path):
    path, state = tmp_path / 'x.pth', dict(weight=torch.ones(1000))
    if content == 'safetensors':
        save_file(state, path)
    elif content:
        torch.save(state, path, _use_new_zipfile_serialization=content != 'legacy')
        check_readable(str(path))
        path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match=message):
        check_readable(str(path))


def test_what_mmengine_loads_itself_is_not_looked_at():
    for place in (None, 'https://nowhere/x.pth', 's3://bucket/x.pth'):
        check_readable(place)


def test_a_cut_safetensors_file(tmp_path):
    save_file(TENSORS, tmp_path / 'file.safetensors')
    content = (tmp_path / 'file.safetensors').read_bytes()
    for length in (20, len(content) - 4):
        (tmp_path / 'file.safetensors').write_bytes(content[:length])
        refused(tmp_path / 'file.safetensors', 'cut short')


def test_a_safetensors_file_with_damaged_metadata(tmp_path):
    save_file(TENSORS, tmp_path / 'file.safetensors', {'mmtok': 'no JSON'})
    refused(tmp_path / 'file.safetensors', 'is damaged or cut short (Expecting value')


def test_a_directory_names_what_is_in_it(tmp_path):
    refused(tmp_path, 'is a directory: name a file')
    for epoch in (9, 10):
        torch.save(TENSORS, tmp_path / f'epoch_{epoch}.pth')
    refused(tmp_path, "epoch_10.pth'")


@pytest.mark.parametrize('place, message', [
    ('https://127.0.0.1:9/model.pth', 'cannot be downloaded (['),
    ('https://127.0.0.1:abc/model.pth', 'cannot be downloaded (nonnumeric port'),
    ('https://127.0.0.1:9/a model.pth', 'cannot be downloaded'),
    ('~nobody-of-this-name/model.pth', 'cannot be read'),
    ('x' * 5000, 'cannot be read'),
    ('s3://bucket/model.pth', 'is no place that mmtok knows: name a file, http(s)://..., or timm://MODEL'),
    ('timm://deit_smal_patch16_224', "timm has no pretrained model 'deit_smal_patch16_224'"),
    ('timm://deit_small_patch16_224.fb_in1k', 'cannot be had through timm'),
])
def test_a_place_without_network(place, message, tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)  # else it tries for a minute
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    refused(place, message)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('where', ['beside', 'inside'])
def test_a_pickle_that_would_run_code_does_not(zipped, where, tmp_path):
    attack = Attack(tmp_path / 'marker')
    content = {'model': TENSORS, 'args': attack} if where == 'beside' else attack
    torch.save(content, tmp_path / 'file.pth', _use_new_zipfile_serialization=zipped)
    refused(tmp_path / 'file.pth', 'io.open, which is not among the data that mmtok reads, and could run code')
    assert not (tmp_path / 'marker').exists()
    if where == 'beside':
        assert read_checkpoint(str(tmp_path / 'file.pth'), weights_only=False)['model'].keys() == TENSORS.keys()
        assert (tmp_path / 'marker').exists()  # the attack is one


NAMESPACE = b'cargparse\nNamespace\n'
HISTORY = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'


@pytest.mark.parametrize('code, refusal', [
    (b'cbuiltins\neval\n(S"1"\ntR.', 'builtins.eval'),
    (b'cos\nsystem\n(S"true"\ntR.', 'os.system'),
    (b'cbuiltins\ngetattr\n(cbuiltins\neval\nS"x"\ntR.', 'builtins.eval'),
    (b'c_codecs\nencode\n(S"x"\nS"hex"\ntR.', "_codecs.encode with 'hex'"),
    (HISTORY + b'}S"update"\nNsb.', 'a state for HistoryBuffer'),
    (NAMESPACE + b'}S"__eq__"\nNsb.', 'a state for Namespace'),
    (NAMESPACE + b')\x81(N}S"x"\nNstb.', 'a state for Namespace'),
    (b'S"x"\nQ.', "a reference 'x'"),
    (b'cnumpy\ndtype\n(S"O8"\ntR(I3\nS"|"\nNNNI-1\nI-1\nI0\ntb.', "an array of 'O8'"),
    (b'cnumpy\ndtype\n(S"i8"\ntR(I3\nS"|"\nN}NI-1\nI-1\nI63\ntb.', "an array of 'i8' with (3, '|', None, {}"),
])
def test_single_operations_are_refused(code, refusal, tmp_path):
    with zipfile.ZipFile(tmp_path / 'file.pth', 'w') as archive:
        archive.writestr('file/data.pkl', b'\x80\x02' + code)
        archive.writestr('file/version', '3\n')
    before = dict(vars(argparse.Namespace))
    refused(tmp_path / 'file.pth', f'holds {refusal}')
    assert dict(vars(argparse.Namespace)) == before


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_arrays_of_objects_are_refused(zipped, tmp_path):
    torch.save({'x': np.array([1, 'a'], dtype=object)}, tmp_path / 'file.pth', _use_new_zipfile_serialization=zipped)
    refused(tmp_path / 'file.pth', "holds an array of 'O8'")


def test_nothing_is_handed_to_torchscript(tmp_path, monkeypatch):
    """Which runs what it loads, and which torch.load calls by what its own zip reader finds."""
    whole(tmp_path / 'file.pth')
    monkeypatch.setattr(torch, 'load', None)
    monkeypatch.setattr(torch.jit, 'load', None)
    assert read_checkpoint(str(tmp_path / 'file.pth')).keys() == TENSORS.keys()


def test_damage_inside_is_found(tmp_path):
    content = bytearray(pickled({'a': torch.zeros(1000)}))
    content[content.index(bytes(1000)) + 500] = 1
    (tmp_path / 'file.pth').write_bytes(content)
    refused(tmp_path / 'file.pth', 'is damaged or cut short (Bad CRC-32')


def test_tensors_of_every_kind_come_back(tmp_path):
    base = torch.arange(24.0)
    content = {str(dtype): torch.ones(3, dtype=dtype) for dtype in STORAGES.values()}
    content |= {'view': base[4:20].view(4, 4).t(), 'base': base, 'none': torch.zeros(0, 3), 'one': torch.tensor(2)}
    torch.save(content, tmp_path / 'file.pth')
    read = read_checkpoint(str(tmp_path / 'file.pth'))
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in content.items())
    assert read['view'].stride() == content['view'].stride()


def test_code_that_is_not_installed_is_named(tmp_path):
    module = types.ModuleType('gone_package')
    module.Thing = type('Thing', (), {'__module__': 'gone_package'})
    sys.modules['gone_package'] = module
    torch.save({'model': TENSORS, 'thing': module.Thing()}, tmp_path / 'file.pth')
    del sys.modules['gone_package']
    refused(tmp_path / 'file.pth', "needs code that is not installed here (No module named 'gone_package')",
            weights_only=False)


def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / 'file.pth'))
    refused(tmp_path / 'file.pth', 'is a TorchScript program, which would be run')


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_what_trainings_store_beside_weights_is_read(zipped, tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {'model': TENSORS, 'args': argparse.Namespace(lr=0.1, sizes=[1, 2]), 'log': {'loss': history},
               'rng': np.random.RandomState(0).get_state(), 'best': np.float64(0.5), 'dtype': torch.float16,
               'shape': torch.Size([2]), 'path': Path('/a/b'),
               'words': np.array(['ab', 'c']), 'names': {'a', 'b'}, 'parameter': torch.nn.Parameter(torch.ones(2))}
    torch.save(content, tmp_path / 'file.pth', _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(str(tmp_path / 'file.pth'))
    assert torch.equal(read['model']['a'], TENSORS['a']) and read['model']['b'].dtype == torch.bfloat16
    assert read['args'].sizes == [1, 2] and read['best'] == 0.5 and read['dtype'] is torch.float16
    assert np.array_equal(read['rng'][1], content['rng'][1]) and read['names'] == {'a', 'b'}
    assert read['path'] == '/a/b' and read['words'].tolist() == ['ab', 'c']
    assert read['log']['loss']['_log_history'].tolist() == [1.0, 2.0]


def test_a_yacs_config_is_a_dict(tmp_path, monkeypatch):
    module = types.ModuleType('yacs.config')

    class CfgNode(dict):
        pass
    CfgNode.__module__, CfgNode.__qualname__, module.CfgNode = 'yacs.config', 'CfgNode', CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    node = CfgNode(AMP=True)
    node.__dict__['__immutable__'] = True
    torch.save({'model': TENSORS, 'config': node}, tmp_path / 'file.pth')
    monkeypatch.undo()
    assert read_checkpoint(str(tmp_path / 'file.pth'))['config']['AMP'] is True


@pytest.mark.parametrize('init_cfg, message', [
    ('file.pth', "init_cfg='file.pth' must be None, or a dict such as"),
    (dict(checkpoint='file.pth'), "must be None, or a dict such as dict(type='Pretrained'"),
    (dict(type='pretrained', checkpoint='file.pth'), "has type='pretrained', which mmengine does not have"),
    (dict(type='Pretrained', checkpoint='file.pth', strict='no'), "init_cfg.strict='no' must be True or False"),
    (dict(type='Pretrained', checkpoint='file.pth', prefix=3), 'init_cfg.prefix=3 must be a name or None'),
    (dict(type='Pretrained'), 'has checkpoint=None: name a file, a URL or timm://MODEL'),
    (dict(type='Pretrained', checkpoint=''), "has checkpoint=''"),
    (dict(type='Pretrained', checkpoint='file.pth', stric=False), 'has no option stric; it takes checkpoint, prefix'),
    (dict(type='Pretrained', checkpoint='file.pth', img_size='224'), "img_size='224' must be a side or a pair"),
    ([dict(type='Pretrained', checkpoint=3)], 'has checkpoint=3'),
])
def test_a_wrong_init_cfg_is_refused_when_the_model_is_built(init_cfg, message):
    with pytest.raises(ConfigError) as caught:
        DeiT(NANO, init_cfg=init_cfg)
    assert message in str(caught.value)


def test_home_and_file_scheme(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(TENSORS, tmp_path / 'file.pth')
    for place in ('~/file.pth', f'file://{tmp_path}/file.pth'):
        assert read_checkpoint(place).keys() == TENSORS.keys()


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server on a folder, and torch.hub's cache in another one."""
    folder = tmp_path / 'web'
    folder.mkdir()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, text, *values):
            with (tmp_path / 'requests').open('a') as file:
                file.write(text % values + '\n')
    handler = partial(Handler, directory=folder)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}', folder
        server.shutdown()


def test_a_url_is_downloaded_once(web):
    address, folder = web
    torch.save(TENSORS, folder / 'model.pth')
    assert read_checkpoint(f'{address}/model.pth').keys() == TENSORS.keys()
    (folder / 'model.pth').unlink()
    assert read_checkpoint(f'{address}/model.pth').keys() == TENSORS.keys()


def test_files_of_one_name_are_kept_apart(web):
    address, folder = web
    for number in (1, 2):
        (folder / str(number)).mkdir()
        torch.save({'a': torch.tensor(number)}, folder / str(number) / 'model.pth')
        assert read_checkpoint(f'{address}/{number}/model.pth')['a'] == number


def test_what_a_url_may_lead_to(web, tmp_path):
    address, folder = web
    refused(f'{address}/gone.pth', 'cannot be downloaded: the server answers 404')
    (folder / 'page.pth').write_text('<html>Sign in</html>')
    refused(f'{address}/page.pth', 'page.pth: delete that to download it again)')
    torch.save(TENSORS, folder / 'model-0123abcd.pth')
    refused(f'{address}/model-0123abcd.pth', 'invalid hash value (expected "0123abcd"')


def test_timm_s_own_hub_code(tmp_path):
    peer = timm.create_model('deit_tiny_patch16_224')
    save_for_hf(peer, tmp_path / 'hub')
    model = DeiT('tiny', init_cfg=dict(type='Pretrained', checkpoint=f'timm://local-dir:{tmp_path}/hub'))
    model.init_weights()
    assert torch.equal(model.trunk.cls_token, peer.cls_token)


def test_timm_s_hub_code_of_old_is_not_trusted(tmp_path, monkeypatch):
    """Before it read weights only."""
    monkeypatch.setattr('timm.models._hub.load_state_dict_from_path', lambda path, weights_only=False: None)
    refused(f'timm://local-dir:{tmp_path}', 'could run code with timm')


def read_in_a_group(rank, url, folder):
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=2)
    try:
        read_checkpoint(url)
    except CheckpointError as error:
        (folder / f'error{rank}').write_text(str(error))


def test_several_processes_download_once_and_do_not_wait_for_ever(web, tmp_path):
    address, folder = web
    torch.save(TENSORS, folder / 'model.pth')
    torch.multiprocessing.spawn(read_in_a_group, (f'{address}/model.pth', tmp_path), nprocs=2)
    assert (tmp_path / 'requests').read_text().count('GET /model.pth') == 1
    assert not list(tmp_path.glob('error*'))
    (tmp_path / 'group').unlink(missing_ok=True)
    torch.multiprocessing.spawn(read_in_a_group, (f'{address}/gone.pth', tmp_path), nprocs=2)
    assert all('answers 404' in (tmp_path / f'error{rank}').read_text() for rank in range(2))
