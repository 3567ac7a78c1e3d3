"""Make one table and one picture of several trainings of a classifier.

    python tools/summarize.py work_dirs/run1 work_dirs/run2 ... --out table.md --plot curves.png

Each argument is a work directory with a results.json, or such a file. Trainings of one config, whatever their seed, are
one row: mean, standard deviation (of a sample) and number. --out and --plot are optional; --json writes the numbers.
"""

import argparse
import json
import statistics
from pathlib import Path

from mmtok.errors import DataError, StorageError

METRICS = ('accuracy/top1', 'accuracy/top5', 'ema/top1', 'ema/top5')


def read(path: str) -> dict:
    """A results.json, given by its own name or its folder's."""
    file = Path(path) / 'results.json' if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DataError(f'{path} holds no results.json: a training writes it after its first validation')
    try:
        found = json.loads(file.read_text())
        done, wanted = found['metrics']['epoch'], found['epochs']
        found['metrics'][METRICS[0]], [line[METRICS[0]] for line in found['curve']]
        [found[key] for key in ('config', 'config_hash', 'seed', 'processes')]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} is no results.json of tools/train_classifier.py ({error!r})') from error
    found['file'] = str(file)
    if done != wanted:
        raise DataError(f'{file} ends with epoch {done} of {wanted}: finish this training with --resume, or '
                        'leave it out')
    return found


def group(runs: list[dict]) -> dict[str, list[dict]]:
    """Runs by config, in the order of their first appearance.

    Raises:
        DataError: When configs of one name differ, or their training images, or a run is given twice.
    """
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(run['config'], []).append(run)
    for name, same in groups.items():
        if len({(run['config_hash'], run['epochs'], run['processes']) for run in same}) > 1:
            found = ', '.join(f'{run["file"]} ({run["config_hash"]}, {run["epochs"]} epochs, {run["processes"]} '
                              'processes)' for run in same)
            raise DataError(f'{len(same)} trainings of {name} have different settings: {found}; summarise them apart, '
                            'or give their configs different names')
        # Files that were written before data were recorded have none
        data = {json.dumps(run['data'], sort_keys=True): run for run in same if run.get('data')}
        if len(data) > 1:
            found = ', '.join(f'{run["file"]} ({known})' for known, run in data.items())
            raise DataError(f'{len(same)} trainings of {name} were made on different images: {found}; summarise them '
                            'apart')
        if len({run['seed'] for run in same}) < len(same):
            raise DataError(f'{len(same)} trainings of {name} share a seed: give each once, with a seed of its own')
    return groups


def statistics_of(values: list[float]) -> dict[str, float]:
    return dict(mean=round(statistics.mean(values), 3), n=len(values),
                deviation=round(statistics.stdev(values), 3) if len(values) > 1 else None)


def summarise(groups: dict[str, list[dict]]) -> list[dict]:
    """A row for each config: what the last validation found."""
    rows = []
    for name, runs in groups.items():
        metrics = [metric for metric in METRICS if all(metric in run['metrics'] for run in runs)]
        rows.append(dict(
            config=name, epochs=runs[0]['epochs'], parameters=runs[0].get('parameters'),
            seeds=sorted(run['seed'] for run in runs),
            devices=sorted({run.get('device', '') for run in runs}),
            torch=sorted({run.get('versions', {}).get('torch', '') for run in runs}),
            **{metric: statistics_of([run['metrics'][metric] for run in runs]) for metric in metrics}))
    return rows


def table(rows: list[dict]) -> str:
    """In Markdown; differences are to the first row."""
    metrics = [metric for metric in METRICS if any(metric in row for row in rows)]
    lines = ['| config | epochs | n | ' + ' | '.join(f'{metric} (%)' for metric in metrics) + ' | to the first |',
             '|---|---|---|' + '---|' * (len(metrics) + 1)]
    first = rows[0][metrics[0]]['mean']
    for row in rows:
        cells = []
        for metric in metrics:
            found = row.get(metric)
            cells.append('-' if found is None else f'{found["mean"]:.2f}' + (
                '' if found['deviation'] is None else f' ± {found["deviation"]:.2f}'))
        lines.append(f'| {row["config"]} | {row["epochs"]} | {row[metrics[0]]["n"]} | ' + ' | '.join(cells)
                     + f' | {row[metrics[0]]["mean"] - first:+.2f} |')
    if len({row['epochs'] for row in rows}) > 1:
        lines += ['', 'These trainings are not of one length: what they differ by is no effect of their configs alone.']
    return '\n'.join(lines)


def plot(groups: dict[str, list[dict]], path: str) -> None:
    """Top-1 over epochs: the mean of each config, and the range of its seeds."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axis = plt.subplots(figsize=(8, 5))
    for name, runs in groups.items():
        epochs = sorted(set.intersection(*({line['epoch'] for line in run['curve']} for run in runs)))
        curves = [[line['accuracy/top1'] for line in run['curve'] if line['epoch'] in epochs] for run in runs]
        points = list(zip(*curves, strict=True))
        line, = axis.plot(epochs, [statistics.mean(p) for p in points], marker='.', label=f'{name} ({len(runs)})')
        axis.fill_between(epochs, [min(p) for p in points], [max(p) for p in points], alpha=0.15,
                          color=line.get_color())
    several = any(len(runs) > 1 for runs in groups.values())
    axis.set(xlabel='epoch', ylabel='top-1 accuracy on the validation images (%)',
             title='Mean over seeds (their number in brackets); shaded: lowest to highest' if several else '')
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='RUN')
    parser.add_argument('--out', type=Path, help='write the table here too')
    parser.add_argument('--plot', help='draw top-1 over epochs here')
    parser.add_argument('--json', type=Path, help='write the rows here, with the seeds')
    args = parser.parse_args()
    groups = group([read(run) for run in args.runs])
    rows = summarise(groups)
    print(table(rows))
    try:
        if args.out:
            args.out.write_text(table(rows) + '\n')
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + '\n')
        if args.plot:
            plot(groups, args.plot)
    except OSError as error:
        raise StorageError(f'{error.filename} cannot be written ({error.strerror}): name another file') from error


if __name__ == '__main__':
    main()
