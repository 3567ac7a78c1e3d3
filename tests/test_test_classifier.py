"""The accuracies of a checkpoint by `tools/test_classifier.py`."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from classifiers import CONFIG, TEST, results


def test_the_test_tool_finds_the_same_accuracies(trained, fork_tool, class_folder, tmp_path):
    run = fork_tool(TEST, CONFIG, trained / 'epoch_4.pth', '--work-dir', tmp_path / 'test', cwd=tmp_path,
                     env=dict(CIFAR10_ROOT=str(class_folder)))
    assert run.returncode == 0, run.stdout[-3000:]
    line = [line for line in run.stdout.splitlines() if 'Epoch(test)' in line][-1]
    for name, value in results(trained)['metrics'].items():
        if name != 'epoch':
            assert f'{name}: {value:.4f}' in line
    assert 'Traceback' not in run.stdout


@pytest.fixture(scope='module')
def test_tool(fork_tool, class_folder):
    def run(checkpoint, *options, root=class_folder) -> str:
        run = fork_tool(TEST, CONFIG, checkpoint, '--work-dir', checkpoint.parent / 'test', *options,
                         cwd=checkpoint.parent, env=dict(CIFAR10_ROOT=str(root)))
        assert 'Traceback' not in run.stdout
        return run.stdout
    return run


def test_the_config_of_the_training_stays_as_it_was(trained, fork_tool, class_folder, tmp_path):
    work_dir = shutil.copytree(trained, tmp_path / 'work_dirs' / 'classifier_tiny')
    before = (work_dir / 'classifier_tiny.py').read_text()
    run = fork_tool(TEST, CONFIG, work_dir / 'epoch_4.pth', '--cfg-options', 'model.backbone.drop_path_rate=0',
                    'model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=gone.pth',
                    cwd=tmp_path, env=dict(CIFAR10_ROOT=str(class_folder)))
    assert run.returncode == 0 and 'Epoch(test)' in run.stdout, run.stdout[-3000:]
    assert (work_dir / 'classifier_tiny.py').read_text() == before
    assert 'drop_path_rate=0,' in (work_dir / 'test' / 'classifier_tiny.py').read_text()


def test_other_classes_than_the_checkpoint_s(trained, test_tool, class_folder, tmp_path):
    root, checkpoint = shutil.copytree(class_folder, tmp_path / 'data'), shutil.copy(trained / 'epoch_4.pth', tmp_path)
    shutil.copytree(root / 'val' / 'dots', root / 'val' / 'waves')
    assert 'mmtok: model.num_classes=4, but the data have 5 classes' in test_tool(Path(checkpoint), root=root)
    shutil.rmtree(root / 'val' / 'waves')
    shutil.rmtree(root / 'val' / 'checks')
    output = test_tool(Path(checkpoint), root=root)
    assert "mmtok: the checkpoint has 4 classes and the test data 3; only the checkpoint has 'checks': have" in output
    assert 'Epoch(test)' not in output


@pytest.mark.parametrize('size', [0, 300, 100_000])
def test_a_damaged_checkpoint(size, trained, test_tool, tmp_path):
    content = (trained / 'epoch_4.pth').read_bytes()
    (tmp_path / 'half.pth').write_bytes(content[:size])
    last = test_tool(tmp_path / 'half.pth').strip().splitlines()[-1]
    assert last.startswith(f"mmtok: checkpoint '{tmp_path}/half.pth' is ")


def test_a_model_that_was_trained_otherwise(trained, test_tool, tmp_path):
    """Its tensors have the same shapes. Of a file without a config nothing is known."""
    whole = torch.load(trained / 'epoch_4.pth', weights_only=False)
    torch.save(dict(whole, meta={}), tmp_path / 'bare.pth')
    assert 'with other settings' not in test_tool(tmp_path / 'bare.pth')
    output = test_tool(trained / 'epoch_4.pth', '--cfg-options', 'model.backbone.arch.num_heads=4',
                       'model.backbone.drop_path_rate=0')
    assert ('was trained with other settings than it is tested with: model.backbone.arch.num_heads was 2 and is 4.'
            in output and 'Epoch(test)' in output)


def test_a_checkpoint_of_another_model(trained, test_tool, tmp_path):
    whole = torch.load(trained / 'epoch_4.pth', weights_only=False)
    torch.save({'foo': torch.zeros(3)}, tmp_path / 'foo.pth')
    output = test_tool(tmp_path / 'foo.pth')
    assert re.search(r"^mmtok: the checkpoint '\S+foo.pth' does not fit .*: it lacks \d+ of the model's tensors, "
                     r"such as 'backbone\S+; the model lacks 1 of its tensors, such as 'foo'", output, re.M)
    published = {name: value for name, value in whole['state_dict'].items() if 'token_prop' not in name}
    torch.save(published, tmp_path / 'some.pth')
    line = [line for line in test_tool(tmp_path / 'some.pth').splitlines() if 'Epoch(test)' in line][-1]
    assert f'accuracy/top1: {results(trained)["metrics"]["ema/top1"]:.4f}' in line and 'ema/' not in line
