"""Which observers a server has, by its settings."""

from serve.observability.metrics import CountRequests, Meters, process_meters
from serve.observability.records import Observer, Observers
from serve.observability.request_log import RequestLog
from serve.observability.samples import SampleWriter
from serve.observability.traces import TraceWriter
from serve.settings import ServerArgs


def observers_of(args: ServerArgs, meters: Meters | None = None) -> Observers:
    """The observers that the settings ask for; metrics and a log without text are always among them.

    Args:
        args: of the server.
        meters: what counts; None = this process's metrics.

    Raises:
        UserError: one of them cannot be.
    """
    meters = meters or process_meters()
    observers: list[Observer] = [CountRequests(meters), RequestLog(args.request_log, args.log_text)]
    if args.sample_share:
        observers.append(SampleWriter(args.sample_folder, args.sample_share, args.sample_mb, meters))
    if args.trace_share:
        observers.append(
            TraceWriter(args.trace_share, args.trace_uri, args.trace_experiment, args.log_text, meters),
        )
    return Observers(observers)
