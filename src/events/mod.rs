//! Events of the connections and the sections, as values.
//!
//! An event is made once, where it happens, and [emitted](Event::emit). It knows its name, its
//! level and its [`fields`], and no format: a log record carries the fields as key-values.

mod backends;
mod counts;
#[cfg(feature = "admin")]
mod ending;
mod fields;

use std::io;
use std::time::Duration;

use log::kv::{self, Source, Value, VisitSource};
use log::{Level, Record};

pub(crate) use self::backends::BackendEvent;
pub(crate) use self::counts::OUTCOMES;
use self::fields::{
    asked_fields, declined_fields, exchange_fields, frame_fields, milliseconds, put,
    refused_fields, request_fields, request_id_field, started_fields, text, tunnel_fields,
};
use crate::backend::{Backend, Lease};
use crate::handshake::error_response::ErrorResponse;
use crate::handshake::summary::Summary;
use crate::section::{Client, Section};
use crate::tunnel::TunnelEnd;

/// Target of the log records.
const TARGET: &str = "ws_proxy";

/// The mend that [`Event::Hint`] names.
const HINT: &str = "the backend refused a handshake with an Origin; if it compares Origin with \
                    Host, set host = \"preserve\" in this section";

/// Something that the log tells of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    /// A section begins to serve.
    Listening { section: &'a Section },
    /// A shutdown has begun, and the section still accepts for `delay`.
    LameDuck { section: &'a Section, delay: Duration },
    /// The section no longer accepts, and closes its tunnels over `spread`.
    Draining { section: &'a Section, spread: Duration },
    /// The section no longer accepts, and its tunnels go on.
    Retired { section: &'a Section },
    /// The section is done; `all_ended` is false where connections had to be cut.
    Stopped { section: &'a Section, all_ended: bool },
    /// The listening socket could not be registered with its event loop.
    ListenFailed { section: &'a Section, error: &'a io::Error },
    /// Accepting failed, for the `failures`th time since the last such event.
    AcceptFailed { section: &'a Section, failures: u64, pause: Duration, error: &'a io::Error },

    /// Something has become of the section's backends.
    Backends { section: &'a Section, event: BackendEvent<'a> },

    /// A client's socket could not be registered with its event loop.
    RegisterFailed { client: &'a Client, error: &'a io::Error },
    /// A client was closed without an answer, since too many are being refused already.
    Dropped { client: &'a Client },
    /// A client never sent a byte; `ended_by` is "client", "timeout" or "proxy".
    Silent { client: &'a Client, ended_by: &'static str },
    /// A client closed its connection, or it broke, before it had an answer.
    ClientGone { client: &'a Client, stage: Stage, summary: Option<&'a Summary> },
    /// A client got an error response of this proxy. `summary` is that of its request, if it sent
    /// one.
    Refused { client: &'a Client, response: &'a ErrorResponse, summary: Option<&'a Summary> },
    /// An exchange that is no handshake is over.
    Exchange { client: &'a Client, exchanged: &'a ExchangeEnd<'a>, summary: Option<&'a Summary> },
    /// A client was told whether the section is ready.
    Probed { client: &'a Client, status: u16 },
    /// An error response could not be sent.
    AnswerFailed { error: &'a io::Error },

    /// No address of a backend could be connected to.
    BackendUnreachable { backend: &'a Backend, error: &'a io::Error },
    /// This host could not open a socket for a connection to a backend; `response` is what the
    /// client gets.
    Shortage { backend: &'a Backend, error: &'a io::Error, response: &'a ErrorResponse },
    /// A backend's answer was missing, late or invalid; `response` is what the client gets.
    BackendFaulty { backend: &'a Backend, response: &'a ErrorResponse },
    /// A backend's 101 has a choice that it may not make, which is passed on.
    HandshakeDeviation { backend: &'a Backend, detail: &'static str },
    /// A client got the backend's own answer, which was no 101. `fault` is the error that kept it
    /// from getting all of it.
    Declined {
        client: &'a Client,
        lease: &'a Lease,
        status: u16,
        fault: Option<&'a io::Error>,
        summary: Option<&'a Summary>,
    },
    /// A backend refused a browser, and a setting may mend that.
    Hint { section: &'a Section, status: u16 },

    /// A tunnel has opened, `handshake` after the accept.
    TunnelStarted {
        client: &'a Client,
        lease: &'a Lease,
        handshake: Duration,
        summary: Option<&'a Summary>,
    },
    /// A tunnel is over. Both times count from the accept: `handshake` to the verified 101,
    /// `lifetime` to the end.
    TunnelEnded {
        client: &'a Client,
        lease: &'a Lease,
        handshake: Duration,
        lifetime: Duration,
        end: &'a TunnelEnd,
        summary: Option<&'a Summary>,
    },
    /// The frames of a tunnel that is over.
    TunnelFrames { client: &'a Client, end: &'a TunnelEnd },
}

/// An exchange that is no handshake, at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExchangeEnd<'a> {
    pub(crate) method: &'a str,
    /// Name of the backend that had the request last.
    pub(crate) backend: Option<&'a str>,
    /// Status that the client got; `None` if it got none.
    pub(crate) status: Option<u16>,
    /// `whole`, `cut`, `client_gone`, or the reason of the proxy's own response.
    pub(crate) reason: &'static str,
    pub(crate) fault: Option<&'a str>,
    /// The response is the proxy's own.
    pub(crate) is_own: bool,
    /// Time from the request's head to the end of its answer.
    pub(crate) duration: Duration,
}

impl ExchangeEnd<'_> {
    /// Returns whether the client got a 5xx of the proxy.
    fn is_fault_of_ours(&self) -> bool {
        self.is_own && self.status.is_some_and(|status| status >= 500)
    }
}

/// Progress of a connection whose client went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Within the request's head.
    Head,
    /// While a backend was being connected to, or had not answered yet.
    Handshake,
    /// While the backend's refusal was being forwarded.
    Refusal,
}

/// Returns whether the log tells of tunnels: if not, nobody needs the summary of a request.
pub(crate) fn tells_of_tunnels() -> bool {
    log::log_enabled!(target: TARGET, Level::Info)
}

impl Event<'_> {
    /// Feeds the event to everything that observes this proxy: the counts of its section, the
    /// endings that the admin listener tells of, and one log record.
    pub(crate) fn emit(&self) {
        if let Some(stats) = self.section().and_then(|section| section.stats.as_deref()) {
            self.count(stats);
            #[cfg(feature = "admin")]
            if let Some(endings) = &stats.endings {
                self.keep(endings);
            }
        }
        // The line that tells of a tunnel's start has to be asked for.
        if let Self::TunnelStarted { client, .. } = self
            && !client.section.settings.tunnel_start
        {
            return;
        }
        let level = self.level();
        if level > log::STATIC_MAX_LEVEL || level > log::max_level() {
            return;
        }
        log::logger().log(
            &Record::builder()
                .level(level)
                .target(TARGET)
                .args(format_args!("{}", self.name()))
                .key_values(self)
                .build(),
        );
    }

    /// Returns the message of the log record.
    fn name(&self) -> &'static str {
        match self {
            Self::Listening { .. } => "listening",
            Self::LameDuck { .. } => "lame_duck",
            Self::Draining { .. } => "draining",
            Self::Retired { .. } => "retired",
            Self::Stopped { .. } => "stopped",
            Self::ListenFailed { .. } => "listen_failed",
            Self::AcceptFailed { .. } => "accept_failed",
            Self::Backends { event, .. } => event.name(),
            Self::RegisterFailed { .. } => "register_failed",
            Self::Dropped { .. } => "dropped",
            Self::Silent { .. } => "silent",
            Self::ClientGone { .. } => "client_gone",
            Self::Refused { .. } | Self::Declined { .. } => "refused",
            Self::Exchange { .. } => "request",
            Self::Probed { .. } => "probed",
            Self::AnswerFailed { .. } => "answer_failed",
            Self::BackendUnreachable { .. } => "backend_unreachable",
            Self::Shortage { response, .. } => response.reason,
            Self::BackendFaulty { .. } => "backend_faulty",
            Self::HandshakeDeviation { .. } => "handshake_deviation",
            Self::Hint { .. } => "hint",
            Self::TunnelStarted { .. } => "tunnel_start",
            Self::TunnelEnded { .. } => "tunnel_end",
            Self::TunnelFrames { .. } => "tunnel_frames",
        }
    }

    fn level(&self) -> Level {
        match self {
            Self::ListenFailed { .. }
            | Self::AcceptFailed { .. }
            | Self::RegisterFailed { .. }
            | Self::Shortage { .. } => Level::Error,
            Self::Backends { event, .. } => event.level(),
            Self::Exchange { exchanged, .. } if exchanged.is_fault_of_ours() => Level::Info,
            Self::Exchange { .. } => Level::Debug,
            Self::BackendUnreachable { .. }
            | Self::BackendFaulty { .. }
            | Self::HandshakeDeviation { .. }
            | Self::Hint { .. } => Level::Warn,
            Self::Listening { .. }
            | Self::LameDuck { .. }
            | Self::Draining { .. }
            | Self::Retired { .. }
            | Self::Stopped { .. }
            | Self::ClientGone { .. }
            | Self::Refused { .. }
            | Self::Declined { .. }
            | Self::TunnelStarted { .. }
            | Self::TunnelEnded { .. } => Level::Info,
            Self::Dropped { .. }
            | Self::Silent { .. }
            | Self::Probed { .. }
            | Self::AnswerFailed { .. }
            | Self::TunnelFrames { .. } => Level::Debug,
        }
    }

    /// Returns the section that the event's first field names.
    fn section(&self) -> Option<&Section> {
        match self {
            Self::Listening { section }
            | Self::LameDuck { section, .. }
            | Self::Draining { section, .. }
            | Self::Retired { section }
            | Self::Stopped { section, .. }
            | Self::ListenFailed { section, .. }
            | Self::AcceptFailed { section, .. }
            | Self::Backends { section, .. }
            | Self::Hint { section, .. } => Some(section),
            _ => self.client().map(|client| &*client.section),
        }
    }

    /// Returns the client that the fields after the section name.
    fn client(&self) -> Option<&Client> {
        match self {
            Self::RegisterFailed { client, .. }
            | Self::Dropped { client }
            | Self::Silent { client, .. }
            | Self::Exchange { client, .. }
            | Self::Probed { client, .. }
            | Self::ClientGone { client, .. }
            | Self::Refused { client, .. }
            | Self::Declined { client, .. }
            | Self::TunnelStarted { client, .. }
            | Self::TunnelEnded { client, .. }
            | Self::TunnelFrames { client, .. } => Some(client),
            _ => None,
        }
    }

    /// Visits the fields of an event in the life of a section.
    fn visit_life<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        match self {
            Self::Listening { section } => {
                let address = Value::from_display(&section.local);
                let backends = Value::from_display(&section.pool);
                put(visitor, [("address", address), ("backends", backends)])
            }
            Self::LameDuck { delay, .. } => put(visitor, [("delay_ms", milliseconds(*delay))]),
            Self::Draining { spread, .. } => put(visitor, [("spread_ms", milliseconds(*spread))]),
            Self::Retired { section } => put(visitor, [("tunnels", section.pool.tunnels().into())]),
            Self::Stopped { all_ended, .. } => put(visitor, [("all_ended", all_ended.into())]),
            Self::ListenFailed { error, .. } => put(visitor, [("error", text(error))]),
            Self::AcceptFailed { failures, pause, error, .. } => {
                let pause = ("pause_ms", milliseconds(*pause));
                put(visitor, [("failures", failures.into()), pause, ("error", text(error))])
            }
            _ => Ok(()),
        }
    }

    /// Visits the fields of an event that tells of a backend.
    fn visit_fault<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        match self {
            Self::BackendUnreachable { backend, error } | Self::Shortage { backend, error, .. } => {
                put(visitor, [("backend", backend.name().into()), ("error", text(error))])
            }
            Self::BackendFaulty { backend, response: ErrorResponse { reason, detail, .. } } => {
                let reason = ("reason", Value::from(*reason));
                let error = ("error", Value::from(&**detail));
                put(visitor, [("backend", backend.name().into()), reason, error])
            }
            Self::HandshakeDeviation { backend, detail } => {
                put(visitor, [("backend", backend.name().into()), ("detail", (*detail).into())])
            }
            Self::Hint { status, .. } => {
                put(visitor, [("status", status.into()), ("hint", HINT.into())])
            }
            _ => Ok(()),
        }
    }
}

impl Source for Event<'_> {
    fn visit<'kvs>(&'kvs self, visitor: &mut dyn VisitSource<'kvs>) -> Result<(), kv::Error> {
        if let Some(section) = self.section() {
            put(visitor, [("section", Value::from(&*section.name))])?;
        }
        if let Some(Client { id, peer, .. }) = self.client() {
            put(visitor, [("id", id.into())])?;
            // The end of a tunnel with this number tells its client.
            if !matches!(self, Self::TunnelFrames { .. }) {
                put(visitor, [("client", Value::from_display(peer))])?;
            }
        }
        match self {
            Self::Listening { .. }
            | Self::LameDuck { .. }
            | Self::Draining { .. }
            | Self::Retired { .. }
            | Self::Stopped { .. }
            | Self::ListenFailed { .. }
            | Self::AcceptFailed { .. } => self.visit_life(visitor),
            Self::Backends { event, .. } => event.visit(visitor),
            Self::BackendUnreachable { .. }
            | Self::Shortage { .. }
            | Self::BackendFaulty { .. }
            | Self::HandshakeDeviation { .. }
            | Self::Hint { .. } => self.visit_fault(visitor),
            Self::RegisterFailed { error, .. } | Self::AnswerFailed { error } => {
                put(visitor, [("error", text(error))])
            }
            Self::Dropped { .. } => put(visitor, [("reason", "full".into())]),
            Self::Silent { ended_by, .. } => put(visitor, [("ended_by", Value::from(*ended_by))]),
            Self::Exchange { exchanged, summary, .. } => {
                put(visitor, exchange_fields(exchanged))?;
                put(visitor, asked_fields(*summary))
            }
            Self::Probed { status, .. } => put(visitor, [("status", status.into())]),
            Self::ClientGone { stage, summary, .. } => {
                put(visitor, [("stage", stage.name().into()), request_id_field(*summary)])
            }
            Self::Refused { response, summary, .. } => {
                put(visitor, refused_fields(response))?;
                put(visitor, asked_fields(*summary))
            }
            Self::Declined { lease, status, fault, summary, .. } => {
                put(visitor, declined_fields(lease, *status))?;
                fault.as_ref().map_or(Ok(()), |fault| put(visitor, [("fault", text(fault))]))?;
                put(visitor, asked_fields(*summary))
            }
            Self::TunnelStarted { lease, handshake, summary, .. } => {
                put(visitor, started_fields(lease, *handshake))?;
                put(visitor, request_fields(*summary))
            }
            Self::TunnelEnded { lease, handshake, lifetime, end, summary, .. } => {
                put(visitor, tunnel_fields(lease, *handshake, *lifetime, end))?;
                put(visitor, request_fields(*summary))
            }
            Self::TunnelFrames { end, .. } => put(visitor, frame_fields(end)),
        }
    }
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Handshake => "handshake",
            Self::Refusal => "refusal",
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::net::name::{BoundAddress, Peer};
    use std::sync::Arc;
    use std::time::Instant;

    use log::kv::Key;

    use super::*;
    use crate::handshake::forward::Forwarded;
    use crate::settings::{RawDrain, RawSection};

    /// Collects an event's fields as text.
    #[derive(Default)]
    struct Fields(Vec<String>);

    impl<'kvs> VisitSource<'kvs> for Fields {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            self.0.push(format!("{key}={value}"));
            Ok(())
        }
    }

    fn fields(event: Event<'_>) -> String {
        let mut fields = Fields::default();
        event.visit(&mut fields).unwrap();
        fields.0.join(" ")
    }

    fn client() -> Client {
        let raw = RawSection {
            name: Some("chat".to_owned()),
            bind: Some("127.0.0.1:0".to_owned()),
            backends: Some(vec!["a:1".into(), "b:2".into()]),
            ..RawSection::default()
        };
        let drain = RawDrain::default().check().unwrap();
        let settings = (raw.check(&drain).unwrap(), drain);
        let local = BoundAddress::Ip("127.0.0.1:8080".parse().unwrap());
        let section = Arc::new(Section::new(settings, local, None));
        let peer = Peer::Ip([192, 0, 2, 1].into(), 9);
        Client { id: 7, ..Client::new(peer, Instant::now(), &section) }
    }

    #[test]
    fn each_event_names_its_section_and_its_client_first() {
        let client = client();
        let section = &*client.section;
        let error = &io::Error::other("no luck");
        let lease = &section.pool.pick(Instant::now(), None).next().unwrap().lease;
        let head = crate::handshake::http::RequestHead::parse(b"GET /chat HTTP/1.1\r\n\r\n");
        let summary = &Summary::of(&head.unwrap(), Forwarded::Append, "0123456789abcdef");
        let summary = Some(summary);
        let client = &client;
        let declined = |fault| Event::Declined { client, lease, status: 401, fault, summary };
        let response = &ErrorResponse::origin("not you");
        let events = [
            (Event::Listening { section }, "section=chat address=127.0.0.1:8080 backends=a:1,b:2"),
            (Event::Stopped { section, all_ended: true }, "section=chat all_ended=true"),
            (
                Event::AcceptFailed {
                    section,
                    failures: 3,
                    pause: Duration::from_millis(10),
                    error,
                },
                "section=chat failures=3 pause_ms=10 error=no luck",
            ),
            (
                Event::ClientGone { client, stage: Stage::Handshake, summary },
                "section=chat id=7 client=192.0.2.1:9 stage=handshake request_id=0123456789abcdef",
            ),
            (
                Event::ClientGone { client, stage: Stage::Head, summary: None },
                "section=chat id=7 client=192.0.2.1:9 stage=head request_id=None",
            ),
            (
                Event::Refused { client, response, summary },
                "section=chat id=7 client=192.0.2.1:9 status=403 reason=origin detail=not you \
                 path=/chat request_id=0123456789abcdef",
            ),
            (
                declined(None),
                "section=chat id=7 client=192.0.2.1:9 backend=a:1 status=401 \
                 reason=backend_status path=/chat request_id=0123456789abcdef",
            ),
            (
                declined(Some(error)),
                "section=chat id=7 client=192.0.2.1:9 backend=a:1 status=401 \
                 reason=backend_status fault=no luck path=/chat request_id=0123456789abcdef",
            ),
            (
                Event::BackendUnreachable { backend: lease.backend(), error },
                "backend=a:1 error=no luck",
            ),
        ];
        for (event, expected) in events {
            assert_eq!(fields(event), expected);
        }
    }
}
