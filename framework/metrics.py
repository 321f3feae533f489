"""What /metrics tells: counters that the shells raise, and gauges computed from the catalog when asked.

One registry a process, made by daemon.py and passed down: no module-level state.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)


class Metrics:
    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.leading = Gauge("stoker_leading", "1 while this scheduler leads", registry=registry)
        self.following = Gauge(
            "stoker_following", "1 while this scheduler follows a leader", registry=registry
        )
        self.journal_next_index = Gauge(
            "stoker_journal_next_index", "Index of the first record not applied here", registry=registry
        )
        self.journal_behind_records = Gauge(
            "stoker_journal_behind_records", "Records heard of and not applied yet", registry=registry
        )
        self.lead_tries = Counter("stoker_lead_tries", "Times this process tried to lead", registry=registry)
        self.epoch = Gauge("stoker_epoch", "Epoch of this scheduler's last leadership", registry=registry)
        self.events = Counter("stoker_events", "Events decided", ["kind"], registry=registry)
        self.events_refused = Counter(
            "stoker_events_refused", "Events refused: the queue was full", registry=registry
        )
        self.queue_events = Gauge("stoker_queue_events", "Events waiting to be decided", registry=registry)
        self.entries = Counter("stoker_entries", "Entries decided", ["kind"], registry=registry)
        self.records = Counter("stoker_records", "Records made durable", registry=registry)
        self.actions = Counter("stoker_actions", "Actions performed", ["kind"], registry=registry)
        self.append_seconds = Histogram(
            "stoker_append_seconds", "Time of one append to the journal", buckets=SECONDS, registry=registry
        )
        self.mesos_calls = Counter(
            "stoker_mesos_calls", "Calls to Mesos", ["kind", "outcome"], registry=registry
        )
        self.requests = Counter("stoker_requests", "API requests", ["route", "status"], registry=registry)
        self.request_seconds = Histogram(
            "stoker_request_seconds", "Time of an API request", ["route"], buckets=SECONDS, registry=registry
        )
        self.listings = Gauge("stoker_listings", "Listings that run now", registry=registry)
        self.executors = Gauge("stoker_executors", "Executors", ["state"], registry=registry)
        self.volumes = Gauge(
            "stoker_volumes",
            "Persistent volumes; unknown: with this cluster's labels, and not in its journal",
            ["state"],
            registry=registry,
        )
        self.datasets = Gauge("stoker_datasets", "Datasets", ["state"], registry=registry)
        self.jobs = Gauge("stoker_jobs", "Jobs", ["state"], registry=registry)
        self.capacity_bytes = Gauge(
            "stoker_capacity_bytes", "MEM tier bytes of running executors", registry=registry
        )
        self.used_bytes = Gauge("stoker_used_bytes", "MEM tier bytes in use", registry=registry)
        self.disk_capacity_bytes = Gauge(
            "stoker_disk_capacity_bytes", "SSD tier bytes of running executors", registry=registry
        )
        self.disk_used_bytes = Gauge("stoker_disk_used_bytes", "SSD tier bytes in use", registry=registry)
        self.disk_errors = Gauge(
            "stoker_disk_errors", "Errors of SSD tiers, since their executors began", registry=registry
        )
        self.trouble = Gauge(
            "stoker_trouble",
            "1 while this leader keeps its hands off executors; GET /v1/leader has the reason",
            registry=registry,
        )
        self.refused_answers = Gauge(
            "stoker_refused_answers",
            "Answers and messages of deposed leaders that executors refused, since they began",
            registry=registry,
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return bytes(generate_latest(self.registry))
