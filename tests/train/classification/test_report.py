"""What a finished run shows: pictures with the names of any classes, and a table."""

import json
import logging
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from attnzoo.train import pictures
from attnzoo.train.classification import report
from attnzoo.train.classification.evaluation import Mistake, Scores
from attnzoo.train.models import ModelSpec
from attnzoo.train.run_folder import RunFolder

SCRIPTS = {'latin': 'Übergröße', 'cyrillic': 'Яблоко', 'chinese': '青い鳥', 'formula': '$\\nope$', 'cost': '5$ or 6$'}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch) -> dict[str, list[str]]:
    """The texts of each picture of a run whose classes bear these names."""
    folder = RunFolder(str(tmp_path))
    line = {'epoch': 1, 'train_loss': 1.0, 'loss': 1.0, 'top1': 50.0, 'top5': 100.0, 'lr': 0.1}
    folder.metrics.write_text(json.dumps(line) + '\n')
    data = {'input_size': (3, 8, 8), 'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    spec = ModelSpec('biformer_tiny', 5, {}, data, list(SCRIPTS.values()))
    mistakes = [Mistake(torch.zeros(3, 8, 8), label, (label + 1) % 5, 0.9) for label in range(5)]
    scores = Scores(50.0, 100.0, 1.0, 10, 1.0, torch.eye(5, dtype=torch.long), mistakes)
    texts: dict[str, list[str]] = {}
    save = matplotlib.figure.Figure.savefig

    def note(figure, path, **options):
        found = figure.findobj(matplotlib.text.Text)
        texts[path.stem] = [text.get_text() for text in found]
        save(figure, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, 'savefig', note)
    report.draw(folder, scores, spec)
    return texts


def test_names_are_written_in_any_script_or_numbered(drawn, tmp_path, caplog, recwarn, capfd):
    ticks = drawn['confusion_matrix']
    for script in ('latin', 'cyrillic', 'formula', 'cost'):
        assert SCRIPTS[script] in ticks, ticks
    assert any(f'true {SCRIPTS["cyrillic"]}' in title for title in drawn['wrong_predictions'])
    if SCRIPTS['chinese'] not in ticks:  # no font here has it
        assert 'class 2' in ticks and any('true class 2' in title for title in drawn['wrong_predictions'])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [str(warning.message) for warning in recwarn if 'lyph' in str(warning.message)]
    for name in ('confusion_matrix.png', 'wrong_predictions.png'):
        assert np.asarray(Image.open(tmp_path / name).convert('L')).std() > 5


def test_the_font_of_boxes_is_no_font():
    families, names = pictures.writable({0: 'plain', 1: '\U000f0000', 2: 'two\nlines'})
    assert names == {0: 'plain', 1: 'class 1', 2: 'class 2'}
    assert not any('Last Resort' in family for family in families)


def test_another_font_stands_in_where_it_has_the_letters():
    """Matplotlib's own mathematical font has letters that its plain one lacks."""
    families, names = pictures.writable({0: '\U0001d573'})
    assert len(families) > 1 and names == {0: '\U0001d573'}


@pytest.mark.parametrize(
    ('own', 'published', 'title'),
    [
        (297_802, 12_634_888, "biformer_tiny, 0.3 M of 12.6 M parameters (recipe's kwargs)"),
        (12_634_888, 12_634_888, 'biformer_tiny'),
        (297_802, None, 'biformer_tiny'),
    ],
)
def test_the_table_says_how_much_of_the_model_it_is(own, published, title, tmp_path, capfd):
    folder = RunFolder(str(tmp_path))
    numbers = {'top1': 1, 'top5': 2, 'images': 3, 'best_epoch': 4, 'epochs': 5, 'seconds': 6, 'images_per_second': 7}
    counts = {'parameters': own, 'default_parameters': published, 'peak_memory_bytes': 8, 'bad_images': []}
    folder.summary.write_text(json.dumps({'model': 'biformer_tiny', **numbers, **counts}))
    report.show_summary(folder)
    assert capfd.readouterr().out.splitlines()[0].strip() == title
