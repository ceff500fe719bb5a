//! Fields of the log records.

use std::io;
use std::time::Duration;

use log::kv::{self, Key, Value, VisitSource};

use super::ExchangeEnd;
use crate::backend::Lease;
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::summary::Summary;
use crate::tunnel::TunnelEnd;

/// One field of a log record.
pub(super) type KeyValue<'v> = (&'static str, Value<'v>);

/// Hands fields to a visitor.
pub(super) fn put<'v, const N: usize>(
    visitor: &mut dyn VisitSource<'v>,
    fields: [KeyValue<'v>; N],
) -> Result<(), kv::Error> {
    fields.into_iter().try_for_each(|(key, value)| visitor.visit_pair(Key::from(key), value))
}

/// Returns the fields of a response of the proxy.
pub(super) fn refused_fields(response: &ErrorResponse) -> [KeyValue<'_>; 3] {
    let ErrorResponse { status, reason, detail, .. } = response;
    [
        ("status", status.into()),
        ("reason", Value::from(*reason)),
        ("detail", Value::from(&**detail)),
    ]
}

/// Returns the fields that tell what a request without a tunnel asked for.
pub(super) fn asked_fields(summary: Option<&Summary>) -> [KeyValue<'_>; 2] {
    [("path", or_null(summary.and_then(Summary::path))), request_id_field(summary)]
}

/// Returns the field of the request id.
pub(super) fn request_id_field(summary: Option<&Summary>) -> KeyValue<'_> {
    ("request_id", or_null(summary.and_then(Summary::request_id)))
}

/// Returns the fields of a backend's own answer.
pub(super) fn declined_fields(lease: &Lease, status: u16) -> [KeyValue<'_>; 3] {
    [
        ("backend", lease.backend().name().into()),
        ("status", status.into()),
        ("reason", "backend_status".into()),
    ]
}

/// Returns the fields of an exchange that is no handshake.
pub(super) fn exchange_fields<'v>(exchanged: &ExchangeEnd<'v>) -> [KeyValue<'v>; 6] {
    let backend = exchanged.backend;
    [
        ("backend", or_null(backend)),
        ("method", exchanged.method.into()),
        ("status", exchanged.status.map_or(Value::null(), Value::from)),
        ("reason", exchanged.reason.into()),
        ("fault", or_null(exchanged.fault)),
        ("duration_ms", handshake_ms(exchanged.duration)),
    ]
}

/// Returns the fields of a tunnel that opens.
pub(super) fn started_fields(lease: &Lease, handshake: Duration) -> [KeyValue<'_>; 2] {
    [("backend", lease.backend().name().into()), ("handshake_ms", handshake_ms(handshake))]
}

/// Returns the fields of a tunnel that is over.
pub(super) fn tunnel_fields<'v>(
    lease: &'v Lease,
    handshake: Duration,
    lifetime: Duration,
    end: &'v TunnelEnd,
) -> [KeyValue<'v>; 13] {
    // Null where a side sent no Close, or one without a code.
    let code = |code: Option<u16>| code.map_or(Value::null(), Value::from);
    [
        ("backend", lease.backend().name().into()),
        ("status", 101.into()),
        ("handshake_ms", handshake_ms(handshake)),
        ("lifetime_ms", milliseconds(lifetime)),
        ("bytes_to_backend", end.written_to.backend.into()),
        ("bytes_to_client", end.written_to.client.into()),
        ("ended_by", end.reason.ended_by().into()),
        ("reason", end.reason.name().into()),
        ("client_close", code(end.sent_by.client.close_code())),
        ("backend_close", code(end.sent_by.backend.close_code())),
        ("client_messages", end.sent_by.client.messages().into()),
        ("backend_messages", end.sent_by.backend.messages().into()),
        ("opaque", end.opaque.into()),
    ]
}

/// Returns the fields that tell what a tunnel's request asked for.
pub(super) fn request_fields(summary: Option<&Summary>) -> [KeyValue<'_>; 5] {
    let [path, host, chain, id, trace] = summary.map_or([None; 5], Summary::values).map(or_null);
    [
        ("path", path),
        ("host", host),
        ("forwarded_for", chain),
        ("request_id", id),
        ("traceparent", trace),
    ]
}

/// Returns the counts of the frames of a tunnel.
pub(super) fn frame_fields(end: &TunnelEnd) -> [KeyValue<'_>; 12] {
    let (client, backend) = (&end.sent_by.client, &end.sent_by.backend);
    [
        ("client_text", client.text.into()),
        ("client_binary", client.binary.into()),
        ("client_pings", client.pings.into()),
        ("client_pongs", client.pongs.into()),
        ("client_frames", client.frames.into()),
        ("client_payload", client.payload.into()),
        ("backend_text", backend.text.into()),
        ("backend_binary", backend.binary.into()),
        ("backend_pings", backend.pings.into()),
        ("backend_pongs", backend.pongs.into()),
        ("backend_frames", backend.frames.into()),
        ("backend_payload", backend.payload.into()),
    ]
}

/// Returns a text, null where there is none.
fn or_null(value: Option<&str>) -> Value<'_> {
    value.map_or(Value::null(), Value::from)
}

/// Returns the time of a handshake in milliseconds, with its fraction.
pub(super) fn handshake_ms(handshake: Duration) -> Value<'static> {
    Value::from(handshake.as_secs_f64() * 1_000.0)
}

/// Returns an error's words.
pub(super) fn text<'v>(error: &'v &io::Error) -> Value<'v> {
    Value::from_display(error)
}

/// Returns a time in whole milliseconds.
pub(super) fn milliseconds(time: Duration) -> Value<'static> {
    Value::from(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
