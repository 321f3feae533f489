"""`stoker`: the command line. This file only gathers the commands; each lives in the file that its subject names."""

from __future__ import annotations

import click

from stoker.framework.cli import bundle, clusters, datasets, demo, explain, fleet, jobs, journal, leaving


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="stoker")
def main() -> None:
    """Stoker keeps training jobs fed: one cache for the datasets of a Mesos cluster.

    Every command that talks to a scheduler takes --url (else STOKER_URL), --token (else STOKER_TOKEN) and --json.
    Exit codes: 0 done, 1 failed, 2 wrong usage.
    """


for command in (
    bundle.bundle,
    clusters.local,
    clusters.mesos,
    clusters.scheduler,
    datasets.dataset,
    demo.demo,
    explain.explain,
    fleet.fleet,
    jobs.free,
    jobs.job,
    jobs.load,
    journal.journal,
    leaving.drain,
    leaving.uninstall,
):
    main.add_command(command)
