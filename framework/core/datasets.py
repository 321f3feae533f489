"""Datasets: add, change, list again, remove. What is wanted of them is in jobs.py.

A listing runs in a child process; `ListingBegan` is the promise, `StartListing` the wish, repeated on ticks and after a
take-over while the catalog says that one is under way and the fleet knows of none. Its `attempt` tells a late answer
from the one that is waited for.
"""

from __future__ import annotations

from stoker.framework.core import entries as e
from stoker.framework.core import events as ev
from stoker.framework.core import publishing
from stoker.framework.core.actions import Action, Answer, ForgetManifest, Frame, StartListing, StopListing
from stoker.framework.core.catalog import (
    Catalog,
    Dataset,
    dataset_added,
    dataset_changed,
    listing_began,
)
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.launches import clip, is_utf8, now_wall_ms
from stoker.framework.core.views import dataset_view
from stoker.framework.model import NAME, NAME_RULE, DatasetState, JobState, Policy, Refusal, Settings, Tier

SLOT_BYTES_DEFAULT = 1024**3  # block sizes of a dataset that is added while no executor is wanted


def dataset_requested(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.DatasetRequested, settings: Settings
) -> Frame:
    """Add a dataset and begin to list it; idempotent by name."""
    refusal = _dataset_refusal(event, settings)
    if refusal is not None:
        return refuse(event.reply_id, refusal)
    entry = e.DatasetAdded(
        dataset_id=catalog.dataset_id_next,
        name=event.name,
        source=event.source,
        options=tuple(sorted(event.options.items())),
        replicas=event.replicas,
        policy=event.policy,
        tier=event.tier,
        priority=event.priority,
        wall_ms=now_wall_ms(catalog, stamp),
    )
    existing = catalog.dataset_named(event.name)
    if existing is not None:
        return _added_again(catalog, fleet, stamp, event, existing, dataset_added(entry), settings)
    if event.tier == Tier.SSD and not (catalog.fleet and catalog.fleet.disk_bytes):
        return refuse(
            event.reply_id,
            Refusal(
                409,
                "does_not_fit",
                f"dataset {event.name!r} is to be on SSD, and the fleet's executors have no SSD tier",
                "give them one: stoker fleet set --disk 100GiB; or leave the tier out, for memory",
            ),
        )
    if len(catalog.datasets) >= settings.datasets_max:
        return refuse(
            event.reply_id,
            Refusal(
                409,
                "does_not_fit",
                f"there are {len(catalog.datasets)} datasets already",
                "remove one first: stoker dataset rm NAME",
            ),
        )
    began = e.ListingBegan(entry.dataset_id, 1)
    dataset = listing_began(dataset_added(entry), began)
    answer = Answer(event.reply_id, 201, dataset_view(catalog, fleet, dataset, stamp.now_ms))
    return Frame((entry, began), (*_start(catalog, fleet, dataset, settings), answer))


def change_requested(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.DatasetChangeRequested, settings: Settings
) -> Frame:
    """Change what may be changed of a dataset; executors and placement follow."""
    dataset = catalog.dataset_named(event.name)
    if dataset is None:
        return refuse(event.reply_id, no_such_dataset(event.name))
    entry = e.DatasetChanged(
        dataset.dataset_id,
        dataset.replicas if event.replicas is None else event.replicas,
        dataset.policy if event.policy is None else event.policy,
        dataset.priority if event.priority is None else event.priority,
    )
    refusal = _numbers_refusal(entry.replicas, entry.policy, entry.priority, settings)
    if refusal is not None:
        return refuse(event.reply_id, refusal)
    after = dataset_changed(dataset, entry)
    answer = Answer(event.reply_id, 200, dataset_view(catalog, fleet, after, stamp.now_ms))
    return Frame(() if after == dataset else (entry,), (answer,))


def refresh_requested(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.RefreshRequested, settings: Settings
) -> Frame:
    """List the source again; one listing at a time, so that a second request joins the first."""
    dataset = catalog.dataset_named(event.name)
    if dataset is None:
        return refuse(event.reply_id, no_such_dataset(event.name))
    return _list_again(catalog, fleet, stamp, event.reply_id, dataset, settings)


def removal_requested(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.DatasetRemovalRequested
) -> Frame:
    """Forget the dataset, with its jobs cancelled; executors free what they hold of it, the under store is not touched."""
    dataset = catalog.dataset_named(event.name)
    if dataset is None:
        return refuse(event.reply_id, no_such_dataset(event.name))
    entries: list[e.Entry] = [
        e.JobFinished(
            job_id=job.job_id,
            state=JobState.CANCELLED.value,
            bytes=0,
            files=0,
            error_count=0,
            errors=(),
            message=f"dataset {dataset.name} was removed",
            wall_ms=now_wall_ms(catalog, stamp),
        )
        for job in catalog.active_jobs()
        if job.dataset_id == dataset.dataset_id
    ]
    actions: list[Action] = [StopListing(dataset.dataset_id)] if dataset.is_listing else []
    elsewhere = {
        version.digest
        for other in catalog.datasets.values()
        if other.dataset_id != dataset.dataset_id
        for version in other.versions
    }
    digests = {version.digest for version in dataset.versions}
    listed = fleet.listed.get(dataset.dataset_id)
    if listed is not None:
        digests.add(listed.manifested.digest)
    digests -= elsewhere
    actions += [ForgetManifest(digest) for digest in sorted(digests)]
    answer = Answer(event.reply_id, 200, dataset_view(catalog, fleet, dataset, stamp.now_ms))
    return Frame((*entries, e.DatasetRemoved(dataset.dataset_id)), (*actions, answer))


def listing_finished(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, event: ev.ListingFinished, settings: Settings
) -> Frame:
    """Journal the listing's result, if it is the one that is waited for; a new dataset's as publishing.py says."""
    dataset = catalog.datasets.get(event.dataset_id)
    manifested = event.manifested
    if dataset is None or not dataset.is_listing or dataset.attempt != event.attempt:
        # Late: of a dataset removed since, or of an attempt given up. Nothing will point to what it stored.
        if manifested is None or manifested.digest in catalog.manifest_digests():
            return Frame()
        return Frame(actions=(ForgetManifest(manifested.digest),))
    if manifested is None:
        error = clip(event.error or "the listing ended without a word", settings.error_bytes_max)
        return Frame((e.ListingFailed(dataset.dataset_id, error),))
    if dataset.current is None:
        return publishing.publish(catalog, fleet, stamp)
    entry = e.DatasetListed(dataset.dataset_id, manifested, now_wall_ms(catalog, stamp))
    kept = {v.digest for v in (*dataset.versions, manifested)[-entry.versions_kept :]}
    kept |= {v.digest for d in catalog.datasets.values() if d is not dataset for v in d.versions}
    gone = sorted({v.digest for v in dataset.versions} - kept)
    return Frame((entry,), tuple(ForgetManifest(digest) for digest in gone))


def converge(catalog: Catalog, fleet: Fleet, settings: Settings) -> Frame:
    """Start listings that the catalog promises and nobody runs."""
    room = settings.listings_running_max - len(fleet.listings)
    if room <= 0:
        return Frame()
    known = fleet.listings.keys() | fleet.listed.keys()
    missing = [d for d in catalog.datasets.values() if d.is_listing and d.dataset_id not in known]
    return Frame(actions=tuple(start_listing(catalog, fleet, dataset) for dataset in missing[:room]))


def start_listing(catalog: Catalog, fleet: Fleet, dataset: Dataset) -> StartListing:
    """Return the action for the dataset's listing as it is promised."""
    current = dataset.current
    slot_bytes = SLOT_BYTES_DEFAULT
    if catalog.fleet is not None:
        is_on_disk = dataset.tier == Tier.SSD and catalog.fleet.disk_bytes
        slot_bytes = catalog.fleet.disk_bytes if is_on_disk else catalog.fleet.mem_bytes
    return StartListing(
        dataset_id=dataset.dataset_id,
        attempt=dataset.attempt,
        source=dataset.source,
        options=dataset.options,
        generation=max(catalog.generation_min, 1 if current is None else current.generation),
        version=1 if current is None else current.version + 1,
        previous="" if current is None else current.digest,
        slot_bytes=slot_bytes,
        clear_version=publishing.clear_version(catalog, fleet, dataset),
    )


def no_such_dataset(name: str) -> Refusal:
    return Refusal(404, "not_found", f"there is no dataset {name!r}", "see them all: stoker dataset ls")


def refuse(reply_id: int, refusal: Refusal) -> Frame:
    return Frame(actions=(Answer(reply_id, refusal.status, None, refusal),))


def _added_again(
    catalog: Catalog,
    fleet: Fleet,
    stamp: ev.Stamp,
    event: ev.DatasetRequested,
    existing: Dataset,
    asked: Dataset,
    settings: Settings,
) -> Frame:
    differs = [name for name in _BODY if getattr(existing, name) != getattr(asked, name)]
    if differs:
        text = ", ".join(f"{n}: {getattr(existing, n)!r}" for n in differs if n != "options")
        text = text or "other options"
        return refuse(
            event.reply_id,
            Refusal(
                409,
                "exists_differently",
                f"dataset {event.name!r} exists with other values ({text})",
                f"take another name, or remove it first: stoker dataset rm {event.name}",
            ),
        )
    if existing.state == DatasetState.FAILED:
        return _list_again(catalog, fleet, stamp, event.reply_id, existing, settings)
    view = dataset_view(catalog, fleet, existing, stamp.now_ms)
    return Frame(actions=(Answer(event.reply_id, 200, view),))


_BODY = ("source", "options", "replicas", "policy", "tier", "priority")


def _list_again(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, reply_id: int, dataset: Dataset, settings: Settings
) -> Frame:
    if dataset.is_listing:
        view = dataset_view(catalog, fleet, dataset, stamp.now_ms)
        return Frame(actions=(Answer(reply_id, 200, view),))
    began = e.ListingBegan(dataset.dataset_id, dataset.attempt + 1)
    after = listing_began(dataset, began)
    answer = Answer(reply_id, 200, dataset_view(catalog, fleet, after, stamp.now_ms))
    return Frame((began,), (*_start(catalog, fleet, after, settings), answer))


def _start(catalog: Catalog, fleet: Fleet, dataset: Dataset, settings: Settings) -> tuple[Action, ...]:
    if len(fleet.listings) >= settings.listings_running_max:
        return ()  # a tick starts it once there is room
    return (start_listing(catalog, fleet, dataset),)


def _dataset_refusal(event: ev.DatasetRequested, settings: Settings) -> Refusal | None:
    if not NAME.fullmatch(event.name):
        return _bad(f"{event.name[:80]!r} is not a name of a dataset", f"a name is {NAME_RULE}")
    if not event.source or len(event.source.encode("utf-8", "replace")) > settings.source_bytes_max:
        return _bad(
            "the source is empty or too long",
            f"a URL such as s3://bucket/prefix, at most {settings.source_bytes_max} bytes",
        )
    if not is_utf8(event.source, *event.options, *event.options.values()):
        return _bad("the source or an option is not Unicode text", "send it as UTF-8")
    options_bytes = sum(len(k.encode()) + len(v.encode()) for k, v in event.options.items())
    if options_bytes > settings.options_bytes_max:
        return _bad(
            f"the options are {options_bytes} bytes long",
            f"at most {settings.options_bytes_max} are allowed",
        )
    if event.tier not in {tier.value for tier in Tier}:
        return _bad(f"{event.tier!r} is not a tier", "tiers: " + ", ".join(t.value for t in Tier))
    return _numbers_refusal(event.replicas, event.policy, event.priority, settings)


def _numbers_refusal(replicas: int, policy: str, priority: int, settings: Settings) -> Refusal | None:
    if not 1 <= replicas <= settings.replicas_max:
        return _bad(f"{replicas} replicas", f"1 to {settings.replicas_max} are allowed")
    if policy not in {p.value for p in Policy}:
        return _bad(f"{policy!r} is not a policy", "policies: " + ", ".join(p.value for p in Policy))
    if abs(priority) > settings.priority_max:
        return _bad(f"priority {priority}", f"at most {settings.priority_max} either way, higher comes first")
    return None


def _bad(message: str, hint: str) -> Refusal:
    return Refusal(400, "bad_request", message, hint)
