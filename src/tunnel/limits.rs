//! Limits of one direction, judged at each frame's header.

use super::control;
use super::frames::{Header, Opcode};
use super::policy::{Policy, RateAction};
use super::rate::Rate;
use super::ticks::Tick;

/// Reason for which a frame does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// The frame or its message is larger than allowed.
    MessageTooBig,
    /// The frame violates RFC 6455.
    Protocol,
    /// The client sends more than its rate allows.
    Rate,
}

/// Judgement of a frame at its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    Passes,
    /// It has to wait until its client is within its rate again.
    Waits,
    Violates(Violation),
}

/// Judges headers by the policy.
#[derive(Debug)]
pub(super) struct FrameLimits {
    /// Frames must be masked, as those of a client (RFC 6455, 5.1).
    masked: bool,
    /// An extension may give the reserved bits a meaning.
    extended: bool,
    /// Payload bytes of the open message so far; `None` between messages.
    message: Option<u64>,
    /// Rate of a client, where it is limited.
    rate: Option<Rate>,
}

impl FrameLimits {
    /// Creates the limits of a direction at its start. `extended` is for a tunnel with an
    /// extension.
    pub(super) fn new(policy: &Policy, from_client: bool, extended: bool) -> Self {
        let rate = if from_client { Rate::new(policy) } else { None };
        Self { masked: from_client, extended, message: None, rate }
    }

    /// Returns the rate, while it is limited.
    pub(super) fn rate(&mut self) -> Option<&mut Rate> {
        self.rate.as_mut()
    }

    /// Returns the tick of the rate's last refill.
    pub(super) fn rate_refilled(&self) -> Option<Tick> {
        self.rate.as_ref()?.refilled()
    }

    /// Limits the rate no longer; returns false if it was not limited, or has
    /// [ended](Rate::has_ended).
    pub(super) fn lift_rate(&mut self) -> bool {
        self.rate.take_if(|rate| !rate.has_ended()).is_some()
    }

    /// Judges a frame with this header. One that waits is judged again later; one that may be the
    /// answer to a Ping of the proxy does not.
    pub(super) fn judge(
        &mut self,
        header: &Header,
        may_be_asked_for: bool,
        policy: &Policy,
    ) -> Ruling {
        if let Some(rate) = &mut self.rate
            && !rate.take(header, may_be_asked_for)
        {
            return match policy.rate_action {
                RateAction::Pause if !rate.has_ended() => Ruling::Waits,
                RateAction::Pause | RateAction::Close => Ruling::Violates(Violation::Rate),
            };
        }
        self.violation(header, policy).map_or(Ruling::Passes, Ruling::Violates)
    }

    /// Judges a header that cannot be followed (RFC 6455, 5.2): nothing after it could be judged.
    pub(super) fn judge_opaque(policy: &Policy) -> Violation {
        if policy.strict_frames || policy.limits_rate() {
            Violation::Protocol
        } else {
            Violation::MessageTooBig
        }
    }

    /// Returns the violation by a frame with this header, if it is one.
    fn violation(&mut self, header: &Header, policy: &Policy) -> Option<Violation> {
        if policy.strict_frames && !self.is_valid(header) {
            return Some(Violation::Protocol);
        }
        let exceeds = |limit: Option<u64>, size: u64| limit.is_some_and(|limit| size > limit);
        let message = match header.opcode() {
            Opcode::Continuation => self.message.unwrap_or(0).saturating_add(header.length),
            Opcode::Text | Opcode::Binary => header.length,
            // These belong to no message, and leave the open one as it is. A control frame as it
            // should be is not held against the limit of a message.
            Opcode::Close | Opcode::Ping | Opcode::Pong if is_short(header) => 0,
            Opcode::Close | Opcode::Ping | Opcode::Pong | Opcode::Other => header.length,
        };
        if !header.is_control() && header.opcode() != Opcode::Other {
            self.message = (!header.is_final()).then_some(message);
        }
        (exceeds(policy.max_frame, header.length) || exceeds(policy.max_message, message))
            .then_some(Violation::MessageTooBig)
    }

    /// Returns whether a frame is as RFC 6455, 5.1 to 5.5 demand.
    fn is_valid(&self, header: &Header) -> bool {
        let is_continued = self.message.is_some();
        let fits = match header.opcode() {
            // 5.4: fragments of one message follow each other.
            Opcode::Continuation => is_continued,
            Opcode::Text | Opcode::Binary => !is_continued,
            // 5.5: control frames are short and not fragmented. 5.5.1: the body of a Close, if
            // there is one, begins with a code of two bytes.
            Opcode::Close if header.length == 1 => false,
            Opcode::Close | Opcode::Ping | Opcode::Pong => header.is_final() && is_short(header),
            // 5.2: reserved opcodes fail the connection.
            Opcode::Other => false,
        };
        // 5.1: a client masks all frames, a server none. 5.2: reserved bits are 0 without an
        // extension.
        fits && header.mask.is_some() == self.masked
            && (self.extended || !header.has_reserved_bits())
    }
}

/// Returns whether the payload is no longer than that of a control frame may be (RFC 6455, 5.5).
fn is_short(header: &Header) -> bool {
    header.length <= control::MAX_PAYLOAD as u64
}
