"""What requests for work have in common, whatever the work: a key that was used before, no room, a cluster that ends."""

from __future__ import annotations

from stoker.framework.core import events as ev
from stoker.framework.core.actions import Answer, Frame
from stoker.framework.core.catalog import Catalog
from stoker.framework.core.datasets import refuse
from stoker.framework.core.fleet import Fleet
from stoker.framework.core.job_table import Job
from stoker.framework.core.views import job_view
from stoker.framework.model import Refusal, Settings


def repeated(
    catalog: Catalog, fleet: Fleet, stamp: ev.Stamp, reply_id: int, known: Job, *, is_same: bool
) -> Frame:
    """Answer a request whose key made the job `known`: with that job, or, unless it `is_same`, that the key is taken."""
    if is_same:
        return Frame(actions=(Answer(reply_id, 200, job_view(catalog, fleet, known, stamp.now_ms)),))
    message = f"the Idempotency-Key was used for another request, job {known.job_id}"
    return refuse(reply_id, Refusal(409, "key_reused", message, "make a new key for a new request"))


def uninstalling(hint: str) -> Refusal:
    """Return why a cluster that ends takes no more requests for work."""
    return Refusal(409, "uninstalling", "the cluster is being uninstalled", hint)


def has_room_for_job(catalog: Catalog, settings: Settings) -> bool:
    """Return whether there is room for another job, of any kind.

    Jobs are forgotten in the order of their wishes, so one that never ends can hold up the forgetting: all of them count too.
    """
    jobs_max = settings.jobs_kept_max + 2 * settings.jobs_active_max
    return catalog.jobs.active_count < settings.jobs_active_max and len(catalog.jobs) < jobs_max
